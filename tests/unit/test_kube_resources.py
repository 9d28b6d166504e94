"""The custom resources: what the controller writes, a node reads; what a node answers, the controller shows."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from csi_local.engine.api import GroupView, SnapshotView, VolumeView
from csi_local.kube import group_resource, resources, snapshot_resource, volume_resource
from csi_local.kube.credentials import from_kubeconfig, in_cluster
from csi_local.kube.pool_resource import new_pool, pool_status, pool_view
from csi_local.model import errors
from csi_local.model.parameters import LABELS, parse_parameters
from csi_local.model.pool import Abilities, Media, PoolKind, PoolSpec, PoolView, QuotaSupport
from csi_local.model.quantity import GIB, Bytes
from csi_local.model.snapshot import (
    ContentSource,
    GroupId,
    GroupRecord,
    GroupRequest,
    SnapshotRequest,
    SourceKind,
)
from csi_local.model.volume import (
    AccessMode,
    BlockAccess,
    Capability,
    CapacityRange,
    MountAccess,
    VolumeId,
    check_name,
    volume_id,
)
from csi_local.plan import copying
from csi_local.plan.request import VolumeRequest, check_same, new_record
from tests.fake.schemas import complaint

if TYPE_CHECKING:
    from csi_local.kube.api import Object

NOW, LATER = resources.timestamp(0), resources.timestamp(60)
TEXT = st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cs")), min_size=1, max_size=30)
NAMES = TEXT | st.from_regex(r"[a-z0-9.-]{1,50}", fullmatch=True) | st.from_regex(r"id-[0-9a-f]{40}", fullmatch=True)
SIZES = st.integers(0, 1 << 50)
BOTH = (BlockAccess(),)
ACCESSES = st.builds(
    MountAccess,
    fs_type=st.sampled_from(["", "ext4", "xfs"]),
    flags=st.lists(st.sampled_from(["noatime", "ro"]), max_size=2).map(tuple),
    group=st.none() | st.integers(0, 2**32 - 2),
) | st.sampled_from(BOTH)
CAPABILITIES = st.lists(st.builds(Capability, access=ACCESSES, mode=st.sampled_from(AccessMode)), max_size=3).map(tuple)
PARAMETERS = st.fixed_dictionaries(
    {},
    optional={
        "backend": st.sampled_from(["loopfile", "directory"]),
        "media": st.sampled_from(["ssd", "hdd"]),
        LABELS[2]: TEXT,
    },
).map(parse_parameters)
REQUESTS = st.builds(
    VolumeRequest,
    name=NAMES,
    capacity=st.builds(CapacityRange, required=SIZES, limit=SIZES),
    capabilities=CAPABILITIES,
    parameters=PARAMETERS,
)
SIMPLE = VolumeRequest(name="pvc-1", capacity=CapacityRange(required=GIB))


def stored(made: Object) -> Object:
    """Return an object as the API gives it back, its schema satisfied."""
    assert not complaint(f"{made['kind'].lower()}s", made)
    answer: Object = json.loads(json.dumps(made))
    answer["metadata"] |= {"generation": 1, "resourceVersion": "7", "uid": "u"}
    return answer


def patched(found: Object, patch: Object) -> Object:
    """Return an object after a patch of its status."""
    status = {**found.get("status", {}), **patch["status"]}
    after = {**found, "status": {key: value for key, value in status.items() if value is not None}}
    return stored(after) | {"metadata": found["metadata"]}


def again(found: Object) -> Object:
    """Return an object of which something else is wanted by now."""
    return {**found, "metadata": {**found["metadata"], "generation": found["metadata"]["generation"] + 1}}


def view(request: VolumeRequest = SIMPLE, node: str = "a", problem: str = "") -> VolumeView:
    record = new_record(request, now=1)
    return VolumeView(id=record.id, node=node, pool="fast", record=record, problem=problem)


def condition(found: Object, kind: str) -> tuple[str, str, str]:
    one = resources.condition(found["status"]["conditions"], kind)
    return one["status"], one["message"], one["lastTransitionTime"]


class TestNames:
    @given(NAMES, NAMES)
    def test_one_for_each_volume(self, one: str, other: str) -> None:
        names = [resources.resource_name(volume_id(name)) for name in (one, other)]
        assert (names[0] == names[1]) == (one == other)
        for name in names:
            assert resources._SUBDOMAIN.fullmatch(name)
            assert len(name) <= 253

    @pytest.mark.parametrize("name", ["pvc-0a1b", "a.b-c", "x"])
    def test_plain_ones_stay(self, name: str) -> None:
        assert resources.resource_name(volume_id(name)) == name

    @pytest.mark.parametrize("name", ["A", "a_b", "a..b", "a.-b", "a-", "a.", "id-" + "0" * 40])
    def test_others_are_digested(self, name: str) -> None:
        assert resources._DIGEST.fullmatch(resources.resource_name(name))


class TestVolume:
    @settings(deadline=None)  # the first one reads the schemas
    @given(REQUESTS)
    def test_request_there_and_back(self, request: VolumeRequest) -> None:
        found = stored(volume_resource.new_volume(request, volume_id(check_name(request.name)), "node-a"))
        assert volume_resource.volume_request(found) == request
        assert resources.node_of(found) == found["metadata"]["labels"][resources.NODE_LABEL] == "node-a"
        assert not resources.answered(found)
        assert not volume_resource.made(found)
        assert not resources.wanted_absent(found)
        assert found["metadata"]["finalizers"] == [resources.FINALIZER]

    def test_claim(self) -> None:
        labels = dict(zip(LABELS, ("db", "shop", "pvc-1"), strict=True))
        request = replace(SIMPLE, parameters=parse_parameters({"allocation": "thin", **labels}))
        found = stored(volume_resource.new_volume(request, VolumeId("pvc-1"), "a"))
        assert found["spec"]["claim"] == {"namespace": "shop", "name": "db"}
        assert found["spec"]["persistentVolume"] == "pvc-1"
        assert found["spec"]["parameters"] == {"allocation": "thin"}
        assert volume_resource.volume_request(found) == request

    def test_ready(self) -> None:
        found = stored(volume_resource.new_volume(SIMPLE, VolumeId("pvc-1"), "a"))
        ready = patched(found, volume_resource.ready_status(found, view(), now=NOW))
        assert resources.answered(ready)
        assert volume_resource.made(ready)
        assert resources.error_of(ready) is None
        shown = volume_resource.volume_view(ready)
        assert (shown.id, shown.node, shown.pool, shown.problem) == ("pvc-1", "a", "fast", "")
        assert shown.record is not None
        check_same(shown.record, SIMPLE)
        assert shown.record.size == GIB
        assert ready["status"]["capacity"] == "1Gi"
        assert not resources.answered(again(ready))

    def test_what_another_node_has_answered_does_not_count(self) -> None:
        found = stored(volume_resource.new_volume(SIMPLE, VolumeId("pvc-1"), "a"))
        ready = patched(found, volume_resource.ready_status(found, view(), now=NOW))
        moved = {**ready, "spec": {**ready["spec"], "nodeName": "b"}}
        assert not resources.answered(moved)
        assert not volume_resource.made(moved)
        assert volume_resource.volume_view(moved).record is None

    @pytest.mark.parametrize(
        ("error", "kind"),
        [
            (errors.ResourceExhausted("no room"), errors.ResourceExhausted),
            (errors.DamagedRecord("torn"), errors.FailedPrecondition),
            (errors.Conflict("again"), errors.Busy),
            (errors.SyscallFailed("fallocate /x", 28), errors.ResourceExhausted),
            (errors.SyscallFailed("open /x", 5), errors.Unavailable),
            (errors.CommandFailed("mkfs said no"), errors.HostError),
        ],
    )
    def test_refused(self, error: errors.DriverError, kind: type[errors.DriverError]) -> None:
        found = stored(volume_resource.new_volume(SIMPLE, VolumeId("pvc-1"), "a"))
        failed = patched(found, volume_resource.failed_status(found, error, now=NOW))
        assert resources.answered(failed)
        told = resources.error_of(failed)
        assert (type(told), str(told)) == (kind, str(error))
        assert failed["status"]["phase"] == "Failed"
        assert condition(failed, "Ready")[0] == "False"
        ready = patched(again(failed), volume_resource.ready_status(again(failed), view(), now=LATER))
        assert resources.error_of(ready) is None
        assert condition(ready, "Ready") == ("True", "", LATER)

    def test_what_was_not_foreseen_is_not_told(self) -> None:
        found = stored(volume_resource.new_volume(SIMPLE, VolumeId("pvc-1"), "a"))
        failed = patched(found, volume_resource.failed_status(found, RuntimeError("hunter2"), now=NOW))
        assert "hunter2" not in json.dumps(failed)
        assert isinstance(resources.error_of(failed), errors.HostError)

    def test_a_volume_that_cannot_grow_stays_ready(self) -> None:
        found = stored(volume_resource.new_volume(SIMPLE, VolumeId("pvc-1"), "a"))
        ready = patched(found, volume_resource.ready_status(found, view(), now=NOW))
        more = again(ready)
        failed = patched(more, volume_resource.failed_status(more, errors.ResourceExhausted("no room"), now=LATER))
        assert failed["status"]["phase"] == "Ready"
        assert volume_resource.volume_view(failed).record == volume_resource.volume_view(ready).record
        gone = {**more, "spec": {**more["spec"], "state": resources.ABSENT}}
        assert volume_resource.failed_status(gone, errors.Busy("in use"), now=NOW)["status"]["phase"] == "Deleting"

    def test_health(self) -> None:
        found = stored(volume_resource.new_volume(SIMPLE, VolumeId("pvc-1"), "a"))
        ready = patched(found, volume_resource.ready_status(found, view(), now=NOW))
        assert resources.health_status(ready, "", now=LATER) is None
        patch = resources.health_status(ready, "its data is gone", now=LATER)
        assert patch is not None
        ill = patched(ready, patch)
        assert volume_resource.volume_view(ill).problem == "its data is gone"
        assert condition(ill, "Healthy") == ("False", "its data is gone", LATER)
        assert condition(ill, "Ready") == ("True", "", NOW)
        assert resources.health_status(ill, "its data is gone", now=LATER) is None

    @pytest.mark.parametrize("kind", SourceKind)
    def test_a_source(self, kind: SourceKind) -> None:
        request = replace(SIMPLE, source=ContentSource(kind=kind, id="it"))
        found = stored(volume_resource.new_volume(request, VolumeId("pvc-1"), "a"))
        assert volume_resource.volume_request(found) == request
        record = replace(new_record(SIMPLE, now=1), source=request.source_text)
        ready = patched(found, volume_resource.ready_status(found, replace(view(), record=record), now=NOW))
        shown = volume_resource.volume_view(ready).record
        assert shown is not None
        check_same(shown, request)
        assert volume_resource.volume_request(stored(volume_resource.adopted_volume(record, "a"))).source is not None

    def test_adopted(self) -> None:
        request = replace(SIMPLE, parameters=parse_parameters({"backend": "directory", "quota": "advisory"}))
        record = new_record(request, now=1)
        found = stored(volume_resource.adopted_volume(record, "a"))
        check_same(record, volume_resource.volume_request(found))


def taken(group: str = "", ready: bool = True) -> SnapshotView:  # noqa: FBT001, FBT002 (as the engine's)
    asked = SnapshotRequest(name="daily", source="pvc-1", labels=NAMED)
    record = copying.new_snapshot(asked, new_record(SIMPLE, now=1), now=1_764_100_000_123_456_789)
    return SnapshotView(id=record.id, pool="fast", record=replace(record, group=group), ready=ready)


NAMED = {"csi.storage.k8s.io/volumesnapshot/name": "daily"}


class TestSnapshot:
    @settings(deadline=None)
    @given(NAMES, NAMES)
    def test_request_there_and_back(self, name: str, source: str) -> None:
        request = SnapshotRequest(name=name, source=source, labels=NAMED)
        found = stored(snapshot_resource.new_snapshot(request, "node-a"))
        assert snapshot_resource.snapshot_request(found) == request
        assert found["metadata"]["finalizers"] == [resources.FINALIZER]
        assert not snapshot_resource.made(found)

    def test_what_is_shown_is_enough_to_make_a_volume_of(self) -> None:
        found = stored(snapshot_resource.new_snapshot(SnapshotRequest(name="daily", source="pvc-1", labels=NAMED), "a"))
        ready = patched(found, snapshot_resource.ready_status(found, taken(), now=NOW))
        shown, there = snapshot_resource.snapshot_view(ready).record, taken().record
        assert shown is not None
        assert there is not None
        assert (shown.id, shown.name, shown.source, shown.labels) == (there.id, there.name, there.source, there.labels)
        assert shown.created == there.created // 1000 * 1000
        copy = replace(SIMPLE, name="copy", source=ContentSource(kind=SourceKind.SNAPSHOT, id="daily"))
        made = [new_record(copy, now=1, like=one.volume) for one in (shown, there)]
        assert len({(one.size, one.backend, one.block, one.filesystem, one.source) for one in made}) == 1

    def test_copied_for_a_while(self) -> None:
        found = stored(snapshot_resource.new_snapshot(SnapshotRequest(name="daily", source="pvc-1"), "a"))
        pending = patched(found, snapshot_resource.ready_status(found, taken(ready=False), now=NOW))
        assert snapshot_resource.made(pending)
        assert not snapshot_resource.ready(pending)
        assert not snapshot_resource.snapshot_view(pending).ready
        assert condition(pending, "Ready") == ("False", "", NOW)
        assert resources.says(pending, snapshot_resource.ready_status(pending, taken(ready=False), now=LATER))
        ready = patched(pending, snapshot_resource.ready_status(pending, taken(), now=LATER))
        assert (ready["status"]["phase"], condition(ready, "Ready")) == ("Ready", ("True", "", LATER))
        failed = patched(pending, snapshot_resource.failed_status(pending, errors.Unavailable("EIO"), now=LATER))
        assert not snapshot_resource.made(failed)
        later = patched(ready, snapshot_resource.failed_status(ready, errors.Unavailable("EIO"), now=LATER))
        assert snapshot_resource.snapshot_view(later) == snapshot_resource.snapshot_view(ready)

    def test_adopted(self) -> None:
        view = taken()
        assert view.record is not None
        found = stored(snapshot_resource.adopted_snapshot(view.record, "a"))
        copying.check_same_snapshot(view.record, snapshot_resource.snapshot_request(found))


class TestGroup:
    def test_there_and_back(self) -> None:
        request = GroupRequest(name="both", sources=("pvc-1",), labels=NAMED)
        found = stored(group_resource.new_group(request, "node-a"))
        assert group_resource.group_request(found) == request
        assert not group_resource.made(found)
        member = taken("both")
        record = GroupRecord(id=GroupId("both"), name="both", members=(member.id,), created=5_000)
        view = GroupView(record=record, members=(member,))
        ready = patched(found, group_resource.ready_status(found, view, now=NOW))
        shown = group_resource.group_view(ready)
        assert (shown.record, shown.pool, shown.problem) == (record, "fast", "")
        assert [one.record.group for one in shown.members if one.record] == ["both"]
        assert group_resource.group_request(stored(group_resource.adopted_group(view, "a"))) == request


class TestPool:
    VIEW = PoolView(
        name="fast",
        kind=PoolKind.DEVICE,
        media=Media.NVME,
        abilities=Abilities(
            filesystem="xfs",
            reflink=True,
            quota=QuotaSupport.PROJECT,
            discard=True,
            direct_io=True,
            sector_size=512,
            preallocate=True,
        ),
        total=Bytes(100 * GIB),
        room=Bytes(90 * GIB),
        thin_room=Bytes(180 * GIB),
    )

    @pytest.mark.parametrize("unavailable", ["", "it is read-only"])
    def test_there_and_back(self, unavailable: str) -> None:
        spec = PoolSpec(name="fast", kind=PoolKind.DEVICE, target="/dev/disk/by-id/x")
        made = stored(new_pool(spec, "node-a"))
        assert resources.name_of(made) == "node-a.fast"
        assert pool_view(made).unavailable
        shown = replace(self.VIEW, unavailable=unavailable)
        told = patched(made, pool_status(made, shown, uuid="u", promised=GIB, volumes=3, now=NOW))
        assert pool_view(told) == shown
        assert condition(told, "Ready") == ("False" if unavailable else "True", unavailable, NOW)


class TestCredentials:
    def test_in_cluster(self) -> None:
        assert in_cluster("fd00::1", "443").server == "https://[fd00::1]:443"
        assert in_cluster("10.0.0.1", "6443").server == "https://10.0.0.1:6443"
        assert in_cluster("10.0.0.1", "6443").token_file

    def kubeconfig(self, **user: Any) -> dict[str, Any]:  # noqa: ANN401
        cluster = {"server": "https://api:6443/", "certificate-authority": "ca.crt"}
        return {
            "current-context": "me@here",
            "contexts": [
                {"name": "other", "context": {}},
                {"name": "me@here", "context": {"cluster": "h", "user": "me"}},
            ],
            "clusters": [{"name": "h", "cluster": cluster}],
            "users": [{"name": "me", "user": user}],
        }

    def test_kubeconfig(self) -> None:
        found = from_kubeconfig(self.kubeconfig(**{"token": "t\n", "client-key-data": "a2V5"}), "/etc/kube")
        assert (found.server, found.ca_file, found.token) == ("https://api:6443", "/etc/kube/ca.crt", "t")
        assert found.key == "key"

    @pytest.mark.parametrize("content", [None, [], {}, {"current-context": "x"}, {"contexts": None}])
    def test_no_kubeconfig(self, content: object) -> None:
        with pytest.raises(errors.InvalidArgument):
            from_kubeconfig(content, "/")

    def test_plugins_are_refused(self) -> None:
        with pytest.raises(errors.InvalidArgument, match="exec"):
            from_kubeconfig(self.kubeconfig(exec={"command": "aws"}), "/")
        with pytest.raises(errors.InvalidArgument, match="base64"):
            from_kubeconfig(self.kubeconfig(**{"client-key-data": "!"}), "/")
