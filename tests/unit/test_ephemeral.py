"""Inline ephemeral volumes: what a pod's author may ask for, and that nothing outlives the pod."""

from __future__ import annotations

import errno
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING

import pytest

from csi_local.engine.check import Checker, find
from csi_local.model.errors import (
    AlreadyExists,
    DriverError,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
)
from csi_local.model.parameters import EPHEMERAL, EPHEMERAL_NAMES, parse_ephemeral
from csi_local.model.quantity import GIB, MIB
from csi_local.model.volume import CapacityRange, ephemeral_id, is_ephemeral, known_id, volume_id
from csi_local.plan.life import pod_directory
from csi_local.plan.request import VolumeRequest
from tests.unit.rig import PATIENCE_S, RUN_DIR, Rig, capability, request

if TYPE_CHECKING:
    from collections.abc import Mapping

    from csi_local.model.volume import VolumeRecord

HANDLE = "csi-" + "0123456789abcdef" * 4
"""As the kubelet makes them: longer than any id."""

POD = "/kubelet/pods/6b3a"
TARGET = f"{POD}/volumes/kubernetes.io~csi/scratch/mount"
FS_TYPE = "csi.storage.k8s.io/fstype"
KINDS = {
    "ext4": {"size": "64Mi"},
    "xfs": {"size": "320Mi", FS_TYPE: "xfs"},
    "thin": {"size": "64Mi", "allocation": "thin"},
    "directory": {"size": "64Mi", "backend": "directory"},
}
POINTS = range(1, 60)


def rig(*pools: str) -> Rig:
    """Start a driver, and make what the kubelet makes for a pod."""
    made = Rig(*pools)
    made.host.make_dirs(TARGET.rpartition("/")[0])
    made.start()
    return made


def asked(attributes: Mapping[str, str], handle: str = HANDLE, target: str = TARGET) -> VolumeRequest:
    """Ask for an inline volume, as the kubelet does."""
    pod = {EPHEMERAL: "true", "csi.storage.k8s.io/pod.name": "web-0", "csi.storage.k8s.io/pod.namespace": "shop"}
    size, parameters = parse_ephemeral({**pod, **attributes})
    return VolumeRequest(
        name=handle,
        capacity=CapacityRange(required=size),
        capabilities=(capability(),),
        parameters=parameters,
        ephemeral=target,
    )


def publish(driver: Rig, attributes: Mapping[str, str], *, read_only: bool = False) -> None:
    """Publish it."""
    driver.ephemeral.publish(asked(attributes), PATIENCE_S, read_only=read_only)


def unpublish(driver: Rig, handle: str = HANDLE) -> None:
    """Unpublish it, as the Node service does."""
    if not driver.ephemeral.unpublish(handle, TARGET, PATIENCE_S):
        driver.publisher.unpublish(handle, TARGET, PATIENCE_S)


def record(driver: Rig) -> VolumeRecord:
    """Return its record."""
    volume = ephemeral_id(HANDLE)
    pool = driver.pools.locate(volume)
    assert pool is not None
    return pool.store.load(volume)


def nothing_left(driver: Rig) -> None:
    """Demand that no trace of it is left: no volume, no promise, no mount, no device, no target."""
    driver.sweeper.drain()
    assert driver.volumes.list("", 0, ephemeral=True)[0] == []
    assert [pool.store.leftovers() for pool in driver.pools.all()] == [[] for _ in driver.pools.all()]
    assert sum(pool._sum.total for pool in driver.pools.all()) == 0
    assert driver.publisher._staged.volumes() == []
    assert driver.host.stat(TARGET) is None
    assert [mount for mount in driver.host.mounts() if mount.point.startswith(POD)] == []
    assert [
        loop.backing for loop in driver.host.all_loops() if "volumes" in driver.host.backing_path(loop.device)
    ] == []


class TestAttributes:
    """They come from whoever may make a pod."""

    def test_what_is_understood(self) -> None:
        wanted = asked({"size": "1Gi", "media": "ssd", "pool": "fast", "csi.storage.k8s.io/pod.uid": "1-2"})
        assert (wanted.capacity.required, wanted.parameters.pool) == (GIB, "fast")
        assert wanted.parameters.given == {"size": "1Gi", "media": "ssd", "pool": "fast"}
        assert wanted.parameters.labels["csi.storage.k8s.io/pod.uid"] == "1-2"

    @pytest.mark.parametrize("name", ["", "Size", "sizes", "csi.storage.k8s.io/pvc/name", "csi.storage.k8s.io/other"])
    def test_an_unknown_name(self, name: str) -> None:
        with pytest.raises(InvalidArgument, match=r"does not exist; there are size, allocation, backend") as caught:
            parse_ephemeral({"size": "1Gi", name: "1"})
        assert all(known in str(caught.value) for known in EPHEMERAL_NAMES)

    @pytest.mark.parametrize(("name", "value"), [("mkfsOptions", "-N 100000000"), ("quota", "advisory")])
    def test_what_is_an_administrators(self, name: str, value: str) -> None:
        with pytest.raises(InvalidArgument, match="an administrator's to set"):
            parse_ephemeral({"size": "1Gi", name: value})

    @pytest.mark.parametrize("size", ["", "0", "-1", "many", "1e9", "0.5"])
    def test_a_size_that_is_none(self, size: str) -> None:
        with pytest.raises(InvalidArgument, match=r"amount of bytes|cannot be 0|whole number"):
            parse_ephemeral({"size": size})

    def test_no_size(self) -> None:
        with pytest.raises(InvalidArgument, match="needs the attribute size"):
            parse_ephemeral({EPHEMERAL: "true"})

    def test_a_token_is_not_kept(self) -> None:
        _, parameters = parse_ephemeral({"size": "1Gi", "csi.storage.k8s.io/serviceAccount.tokens": "geheim"})
        assert "geheim" not in repr(parameters)

    def test_a_raw_block_device_is_refused(self) -> None:
        driver = rig()
        wanted = VolumeRequest(name=HANDLE, capabilities=(capability(block=True),), ephemeral=TARGET)
        with pytest.raises(InvalidArgument, match="never a raw block device"):
            driver.ephemeral.publish(wanted, PATIENCE_S, read_only=False)
        nothing_left(driver)


class TestId:
    """It shares no name with an ordinary volume."""

    def test_no_ordinary_volume_has_it(self) -> None:
        volume = ephemeral_id(HANDLE)
        assert is_ephemeral(volume)
        assert known_id(volume) is None
        assert not is_ephemeral(volume_id(volume))
        assert not is_ephemeral(volume_id("ephemeral-logs"))
        assert known_id("ephemeral-logs") == "ephemeral-logs"

    @pytest.mark.parametrize("shown", [HANDLE, ephemeral_id(HANDLE)])
    def test_it_is_no_ordinary_volume(self, shown: str) -> None:
        driver = rig()
        publish(driver, KINDS["ext4"])
        driver.host.make_dirs("/kubelet/staging")
        for act in (
            partial(driver.publisher.stage, shown, "/kubelet/staging", capability(), PATIENCE_S),
            partial(driver.volumes.get, shown),
            partial(driver.sizes.expand, shown, CapacityRange(required=GIB), None, PATIENCE_S),
        ):
            with pytest.raises(NotFound):
                act()
        paths = ("/kubelet/staging", "/kubelet/target")
        with pytest.raises(NotFound):
            driver.publisher.publish(shown, paths, capability(), PATIENCE_S, read_only=False)
        driver.volumes.delete(shown, PATIENCE_S)
        driver.publisher.unstage(shown, TARGET, PATIENCE_S)
        driver.publisher.unpublish(shown, TARGET, PATIENCE_S)
        assert [mount.point for mount in driver.host.mounts() if mount.point.startswith(POD)] == [TARGET]
        assert record(driver).ephemeral == TARGET
        assert driver.volumes.list("", 0) == ([], "")
        unpublish(driver)
        nothing_left(driver)

    def test_an_ordinary_one_of_that_name(self) -> None:
        driver = rig()
        made = driver.volumes.create(request(HANDLE, 64 * MIB, {}), PATIENCE_S)
        publish(driver, KINDS["ext4"])
        unpublish(driver)
        assert driver.volumes.get(made.id).record is not None


@pytest.mark.parametrize("kind", KINDS)
class TestLife:
    """Published, it is there; unpublished, it is gone."""

    def test_whole(self, kind: str) -> None:
        driver = rig()
        publish(driver, KINDS[kind])
        publish(driver, KINDS[kind])
        driver.host.replace_file(f"{TARGET}/marker", b"scratch")
        usage, _, problem = driver.publisher.stats(HANDLE, TARGET)
        assert (usage.total >= 32 * MIB, problem) == (True, "")
        assert record(driver).labels["csi.storage.k8s.io/pod.name"] == "web-0"
        unpublish(driver)
        nothing_left(driver)
        unpublish(driver)

    def test_read_only(self, kind: str) -> None:
        driver = rig()
        publish(driver, KINDS[kind], read_only=True)
        assert "ro" in driver.host.mount_flags(TARGET)
        publish(driver, KINDS[kind], read_only=True)
        with pytest.raises(AlreadyExists):
            publish(driver, KINDS[kind])
        unpublish(driver)
        nothing_left(driver)

    def test_after_a_restart(self, kind: str) -> None:
        driver = rig()
        publish(driver, KINDS[kind])
        driver.host.replace_file(f"{TARGET}/marker", b"scratch")
        driver.crash()
        assert driver.publisher._staged.volumes() == [ephemeral_id(HANDLE)]
        publish(driver, KINDS[kind])
        assert driver.host.read_file(f"{TARGET}/marker") == b"scratch"
        driver.crash()
        unpublish(driver)
        nothing_left(driver)

    def test_after_a_reboot(self, kind: str) -> None:
        """The kubelet starts the same pod again: its scratch data outlives that, as in an emptyDir."""
        driver = rig()
        publish(driver, KINDS[kind])
        driver.host.replace_file(f"{TARGET}/marker", b"scratch")
        driver.reboot()
        publish(driver, KINDS[kind])
        assert driver.host.read_file(f"{TARGET}/marker") == b"scratch"
        driver.reboot()
        unpublish(driver)
        nothing_left(driver)

    def test_a_crash_anywhere(self, kind: str) -> None:
        for act, again in ((publish, True), (publish, False), (unpublish, True)):
            for number in POINTS:
                driver = rig()
                if act is unpublish:
                    publish(driver, KINDS[kind])
                driver.die_at_point(number)
                action = partial(publish, driver, KINDS[kind]) if act is publish else partial(unpublish, driver)
                done = driver.acknowledged(action)
                if again:
                    action()
                if act is publish:
                    unpublish(driver)
                nothing_left(driver)
                if done:
                    break
            assert number > 1

    def test_any_one_error(self, kind: str) -> None:
        for number in POINTS:
            driver = rig()
            driver.host.fail("", errno.EIO, nth=number)
            driver.acknowledged(partial(publish, driver, KINDS[kind]))
            unpublish(driver)
            nothing_left(driver)


class TestTrouble:
    """What a failed publishing made is removed: the kubelet takes most errors for the end, and never unpublishes."""

    def test_no_room(self) -> None:
        driver = rig()
        with pytest.raises(ResourceExhausted, match="does not fit"):
            publish(driver, {"size": "1Ti"})
        nothing_left(driver)

    def test_too_many_volumes(self) -> None:
        driver = rig()
        driver.max_volumes = 1
        driver.crash()
        other = "csi-other"
        driver.ephemeral.publish(asked(KINDS["ext4"], other, f"{POD}/other"), PATIENCE_S, read_only=False)
        with pytest.raises(ResourceExhausted, match="limit of 1 volumes"):
            publish(driver, KINDS["ext4"])
        assert [view.id for view in driver.volumes.list("", 0, ephemeral=True)[0]] == [ephemeral_id(other)]

    def test_something_else_is_mounted_there(self) -> None:
        driver = rig()
        driver.host.make_dirs(TARGET)
        driver.host.bind("/tmp", TARGET, frozenset())
        with pytest.raises(FailedPrecondition, match="something else is mounted"):
            publish(driver, KINDS["ext4"])
        assert driver.volumes.list("", 0, ephemeral=True)[0] == []
        driver.host.unmount(TARGET)

    @pytest.mark.parametrize("change", [{"size": "128Mi"}, {"size": "64Mi", "allocation": "thin"}])
    def test_another_request_for_the_same(self, change: Mapping[str, str]) -> None:
        driver = rig()
        publish(driver, KINDS["ext4"])
        with pytest.raises(AlreadyExists):
            publish(driver, change)
        with pytest.raises(AlreadyExists, match="another target"):
            driver.ephemeral.publish(asked(KINDS["ext4"], target=f"{POD}/x"), PATIENCE_S, read_only=False)
        assert record(driver).size == 64 * MIB

    def test_in_use_elsewhere(self) -> None:
        driver = rig()
        publish(driver, KINDS["ext4"])
        driver.host.make_dirs("/tmp/spy")
        driver.host.bind(TARGET, "/tmp/spy", frozenset())
        with pytest.raises(FailedPrecondition, match="/tmp/spy"):
            unpublish(driver)
        driver.host.unmount("/tmp/spy")
        unpublish(driver)
        nothing_left(driver)

    def test_a_damaged_record(self) -> None:
        """Its content was never to outlive its pod, and the pod must be able to go."""
        driver = rig()
        publish(driver, KINDS["ext4"])
        pool = driver.pools.locate(ephemeral_id(HANDLE))
        assert pool is not None
        driver.host.replace_file(pool.layout.record(ephemeral_id(HANDLE)), b"{")
        with pytest.raises(DriverError, match="cannot be parsed"):
            publish(driver, KINDS["ext4"])
        unpublish(driver)
        nothing_left(driver)

    def test_a_pool_that_is_gone(self) -> None:
        driver = Rig("a=path:/pools/a")
        for path in ("/pools/a", "/empty", TARGET.rpartition("/")[0]):
            driver.host.make_dirs(path)
        driver.start()
        publish(driver, KINDS["ext4"])
        driver.host.bind("/empty", "/pools/a", frozenset())
        driver.pools.retry()
        unpublish(driver)
        assert driver.host.stat(TARGET) is None
        driver.host.unmount("/pools/a")
        driver.pools.retry()
        assert [view.id for view in driver.volumes.list("", 0, ephemeral=True)[0]] == [ephemeral_id(HANDLE)]

    def test_a_pool_that_was_missing(self) -> None:
        """The pod started again meanwhile, with another volume. Both are its own, and must not keep it here."""
        driver = Rig("a=path:/pools/a", "b=path:/pools/b")
        for path in ("/pools/a", "/pools/b", "/empty", TARGET.rpartition("/")[0]):
            driver.host.make_dirs(path)
        driver.start()
        for _ in range(2):
            publish(driver, KINDS["ext4"])
            home = driver.pools.having(ephemeral_id(HANDLE))[0].root
            driver.host.unmount(TARGET)
            driver.host.bind("/empty", home, frozenset())
            driver.pools.retry()
        for pool in "ab":
            driver.host.unmount(f"/pools/{pool}")
        driver.pools.retry()
        assert len(driver.pools.having(ephemeral_id(HANDLE))) == 2
        with pytest.raises(FailedPrecondition, match="in the pools a and b"):
            publish(driver, KINDS["ext4"])
        unpublish(driver)
        nothing_left(driver)

    def test_a_filesystem_that_became_read_only(self) -> None:
        driver = rig()
        publish(driver, KINDS["ext4"])
        driver.host.walk(TARGET, "test").mount.filesystem.read_only = True
        assert "has become read-only" in driver.publisher.stats(HANDLE, TARGET)[2]


class TestSweep:
    """A pod that is gone for ever asks for nothing any more."""

    def gone(self, driver: Rig) -> bool:
        return driver.pools.locate(ephemeral_id(HANDLE)) is None

    def test_gone_with_its_pod(self) -> None:
        driver = rig()
        publish(driver, KINDS["ext4"])
        driver.reboot()
        driver.host.remove_tree(POD)
        driver.ephemeral.sweep()
        assert not self.gone(driver), "once is not enough"
        driver.ephemeral.sweep()
        nothing_left(driver)

    def test_doctor_tells_of_it(self) -> None:
        driver = rig()
        publish(driver, KINDS["ext4"])
        driver.reboot()
        assert self.told(driver) == []
        driver.host.remove_tree(POD)
        (found,) = self.told(driver)
        assert f"whose pod is gone: {TARGET}" in found

    def told(self, driver: Rig) -> list[str]:
        with ExitStack() as held:
            places = [find(driver.host, spec, RUN_DIR, held, to_mend=False) for spec in driver.specs]
            return [finding.found for finding in Checker(driver.host, places, 0).check().findings]

    def test_not_while_the_pod_is_there(self) -> None:
        driver = rig()
        publish(driver, KINDS["ext4"])
        for _ in range(3):
            driver.ephemeral.sweep()
        assert not self.gone(driver)

    def test_not_while_the_kubelet_is_not_there(self) -> None:
        """Its directory may be on a disk that is mounted later."""
        driver = rig()
        publish(driver, KINDS["ext4"])
        driver.reboot()
        driver.host.remove_tree("/kubelet/pods")
        for _ in range(3):
            driver.ephemeral.sweep()
        assert not self.gone(driver)

    def test_seen_twice_in_a_row(self) -> None:
        driver = rig()
        publish(driver, KINDS["ext4"])
        driver.reboot()
        driver.host.remove_tree(POD)
        driver.ephemeral.sweep()
        driver.host.make_dirs(TARGET.rpartition("/")[0])
        driver.ephemeral.sweep()
        driver.host.remove_tree(POD)
        driver.ephemeral.sweep()
        assert not self.gone(driver)

    @pytest.mark.parametrize(
        ("target", "pod"),
        [
            (TARGET, POD),
            ("/var/lib/kubelet/pods/u/volumes/kubernetes.io~csi/v/mount", "/var/lib/kubelet/pods/u"),
            ("/targets/mount", None),
            ("/pods/u/volumes/kubernetes.io~csi/v/mount/deeper", None),
            ("/x/pods/u/volumes/v/mount", None),
        ],
    )
    def test_whose_pod(self, target: str, pod: str | None) -> None:
        assert pod_directory(target) == pod


class TestRoom:
    """How much of a pool pods' authors may have is the administrator's to say."""

    def test_none(self) -> None:
        driver = rig("pool=image:/pools/pool.img,size=4Gi,ephemeral=0")
        with pytest.raises(ResourceExhausted, match="it has room for 0"):
            publish(driver, KINDS["ext4"])
        driver.volumes.create(request("ordinary", GIB, {}), PATIENCE_S)

    def test_some(self) -> None:
        driver = rig("pool=image:/pools/pool.img,size=4Gi,ephemeral=100Mi")
        publish(driver, KINDS["ext4"])
        with pytest.raises(ResourceExhausted, match="it has room for 36Mi"):
            driver.ephemeral.publish(asked(KINDS["thin"], "other", f"{POD}/x"), PATIENCE_S, read_only=False)
        driver.volumes.create(request("ordinary", GIB, {}), PATIENCE_S)
        unpublish(driver)
        driver.ephemeral.publish(asked(KINDS["thin"], "other", f"{POD}/x"), PATIENCE_S, read_only=False)
