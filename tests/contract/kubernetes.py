"""What our client relies on in a Kubernetes API: in the one for tests, and in a real one."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING

import pytest

from csi_local.kube import resources
from csi_local.kube.resources import ABSENT, FINALIZER, NODE_LABEL, VOLUMES
from csi_local.kube.volume_resource import failed_status, new_volume, ready_status
from csi_local.model.errors import AlreadyExists, Busy, Conflict, Expired, InvalidArgument, NotFound
from csi_local.model.volume import CapacityRange, volume_id
from csi_local.plan.request import VolumeRequest

if TYPE_CHECKING:
    from csi_local.kube.api import Api, Object


def volume(node: str = "node-a") -> Object:
    """Return a LocalVolume that nobody has yet."""
    request = VolumeRequest(name=f"contract-{uuid.uuid4()}", capacity=CapacityRange(required=1 << 30))
    return new_volume(request, volume_id(request.name), node)


def name_of(found: Object) -> str:
    """Return its name."""
    return resources.name_of(found)


def remove(api: Api, name: str) -> None:
    """Remove it, finalizers or not."""
    api.patch(VOLUMES, name, {"metadata": {"finalizers": []}})
    try:
        api.delete(VOLUMES, name)
    except NotFound:
        return


def only_the_spec_has_generations(api: Api) -> None:
    wanted = volume()
    made = api.create(VOLUMES, {**wanted, "status": {"phase": "Ready"}})
    assert "status" not in made
    assert made["metadata"]["generation"] == 1
    assert api.get(VOLUMES, name_of(made)) == made
    patch = failed_status(made, Busy("not yet"), now=resources.timestamp(0))
    told = api.patch(VOLUMES, name_of(made), {**patch, "spec": {"attempt": 9}}, status=True)
    assert told["spec"] == made["spec"]
    assert told["metadata"]["generation"] == 1
    labelled = api.patch(VOLUMES, name_of(made), {"metadata": {"labels": {"x": "y"}}, "status": {"phase": "Ready"}})
    assert labelled["status"] == told["status"]
    assert labelled["metadata"]["generation"] == 1
    changed = api.patch(VOLUMES, name_of(made), {"spec": {"attempt": 1}})
    assert changed["metadata"]["generation"] == 2
    versions = [int(one["metadata"]["resourceVersion"]) for one in (made, told, labelled, changed)]
    assert versions == sorted(set(versions))
    remove(api, name_of(made))


def null_takes_a_field_away(api: Api) -> None:
    made = api.create(VOLUMES, volume())
    failed = api.patch(VOLUMES, name_of(made), failed_status(made, Busy("x"), now=resources.timestamp(0)), status=True)
    assert failed["status"]["error"]["code"] == "ABORTED"
    taken = api.patch(VOLUMES, name_of(made), {"status": {"error": None, "conditions": []}}, status=True)
    assert "error" not in taken["status"]
    assert taken["status"].get("conditions", []) == []
    remove(api, name_of(made))


def nothing_new_is_no_new_version(api: Api) -> None:
    made = api.create(VOLUMES, volume())
    again = api.patch(VOLUMES, name_of(made), {"spec": {"state": "Present"}})
    assert again["metadata"]["resourceVersion"] == made["metadata"]["resourceVersion"]
    remove(api, name_of(made))


def a_version_guards(api: Api) -> None:
    made = api.create(VOLUMES, volume())
    name, old = name_of(made), {"resourceVersion": made["metadata"]["resourceVersion"]}
    api.patch(VOLUMES, name, {"metadata": old, "spec": {"attempt": 1}})
    for status, patch in ((False, {"spec": {"attempt": 2}}), (True, {"status": {"phase": "Ready"}})):
        with pytest.raises(Conflict):
            api.patch(VOLUMES, name, {"metadata": old, **patch}, status=status)
    with pytest.raises(Conflict):
        api.delete(VOLUMES, name, version=old["resourceVersion"])
    with pytest.raises(Conflict):
        api.delete(VOLUMES, name, uid=str(uuid.uuid4()))
    assert api.get(VOLUMES, name)["spec"]["attempt"] == 1
    remove(api, name)


def what_is_wrong_is_refused(api: Api) -> None:
    made = api.create(VOLUMES, volume())
    with pytest.raises(AlreadyExists):
        api.create(VOLUMES, made | {"metadata": {"name": name_of(made)}})
    for patch in ({"state": "Maybe"}, {"nodeName": None}, {"capacity": {"requiredBytes": -1}}):
        with pytest.raises(InvalidArgument):
            api.patch(VOLUMES, name_of(made), {"spec": patch})
    remove(api, name_of(made))
    with pytest.raises(NotFound):
        api.get(VOLUMES, name_of(made))
    with pytest.raises(NotFound):
        api.patch(VOLUMES, name_of(made), {"spec": {"attempt": 1}})
    with pytest.raises(NotFound):
        api.delete(VOLUMES, name_of(made))


def finalizers_hold(api: Api) -> None:
    made = api.create(VOLUMES, volume())
    name = name_of(made)
    api.delete(VOLUMES, name)
    held = api.get(VOLUMES, name)
    assert held["metadata"]["deletionTimestamp"]
    assert held["metadata"]["generation"] == 2
    assert held["metadata"]["finalizers"] == [FINALIZER]
    changed = api.patch(VOLUMES, name, {"spec": {"state": ABSENT}})
    assert changed["metadata"]["generation"] == 3
    api.patch(VOLUMES, name, {"metadata": {"finalizers": []}})
    with pytest.raises(NotFound):
        api.get(VOLUMES, name)


def a_watch_tells_what_its_selector_chooses(api: Api) -> None:
    here, there = (f"{kind}-{uuid.uuid4().hex[:8]}" for kind in ("here", "there"))
    since = api.version(VOLUMES)
    made = api.create(VOLUMES, volume(here))
    name = name_of(made)
    moved = api.patch(
        VOLUMES, name, {"metadata": {"labels": {NODE_LABEL: there}}, "spec": {"nodeName": there, "attempt": 1}}
    )
    remove(api, name)
    watched = {node: events(api, since, node, 2) for node in (here, there)}
    assert [kind for kind, _ in watched[here]] == ["ADDED", "DELETED"]
    assert watched[here][0][1] == made
    gone = watched[here][1][1]["metadata"]
    assert gone["resourceVersion"] == moved["metadata"]["resourceVersion"]
    assert [kind for kind, _ in watched[there]] == ["ADDED", "MODIFIED"]
    last = watched[there][-1][1]["metadata"]["resourceVersion"]
    assert [kind for kind, _ in events(api, last, there, 1)] == ["DELETED"]
    assert api.list(VOLUMES, resources.selector(here))[0] == []


def events(api: Api, since: str, node: str, count: int) -> list[tuple[str, Object]]:
    """Return the first events of a watch that are no bookmarks."""
    found: list[tuple[str, Object]] = []
    watch = api.watch(VOLUMES, since, selector=resources.selector(node), timeout_s=10)
    for kind, one in watch:
        if kind != "BOOKMARK":
            found.append((kind, one))
        if len(found) == count:
            break
    watch.close()  # type: ignore[attr-defined]  # a generator
    return found


def ready_is_taken_as_it_is_written(api: Api) -> None:
    from tests.unit.test_kube_resources import view  # noqa: PLC0415 (a made-up answer of a node)

    made = api.create(VOLUMES, volume())
    patch = ready_status(made, view(), now=resources.timestamp(1))
    told = api.patch(VOLUMES, name_of(made), patch, status=True)
    wanted = {key: value for key, value in patch["status"].items() if value is not None}
    assert told["status"] == wanted
    remove(api, name_of(made))


PROMISES = (
    only_the_spec_has_generations,
    null_takes_a_field_away,
    nothing_new_is_no_new_version,
    a_version_guards,
    what_is_wrong_is_refused,
    finalizers_hold,
    a_watch_tells_what_its_selector_chooses,
    ready_is_taken_as_it_is_written,
)


def old_versions_expire(api: Api) -> None:
    """Of the one for tests alone: a real one keeps its history for minutes."""
    with pytest.raises(Expired):
        list(api.watch(VOLUMES, "1", timeout_s=1))
