"""A directory that exists becomes a volume where it is; nothing that happens to the volume takes it away."""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial
from typing import Any

import pytest
import yaml

from csi_local.adopt import Claim, persistent_volume, persistent_volume_claim, request
from csi_local.cli import main
from csi_local.engine.adopt import Adopter, AdoptRequest
from csi_local.engine.check import Checker, find
from csi_local.engine.execute import Executor
from csi_local.engine.pools import Pools
from csi_local.kube.volume_resource import adopted_volume
from csi_local.model.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound, OutOfRange
from csi_local.model.mount_options import MountOptions
from csi_local.model.quantity import GIB, MIB, Bytes
from csi_local.model.volume import CapacityRange, VolumeId, VolumeRecord
from csi_local.plan.adopting import unadoptable
from csi_local.plan.staging import StagingSeen, stage
from tests.unit import rig as rigs
from tests.unit.rig import PATIENCE_S, RUN_DIR, Rig, capability

HERE = "/srv/database"
STAGING, TARGET = "/kubelet/staging", "/kubelet/target"
ASKED = AdoptRequest(path=HERE, name="database", size=Bytes(GIB))
POINTS = range(1, 20)


def rig(*pools: str) -> Rig:
    """Start a driver beside a directory with something in it."""
    made = Rig(*(pools or ("pool=path:/pools/dir",)))
    for path in ("/pools/dir", HERE, STAGING):
        made.host.make_dirs(path)
    made.host.replace_file(f"{HERE}/table", b"rows")
    made.start()
    return made


def adopted(driver: Rig) -> str:
    """Adopt the directory, and return the volume's id."""
    return driver.adopter.adopt(ASKED)[1].id


def attach(driver: Rig, volume: str, *, read_only: bool = False) -> None:
    """Stage and publish it."""
    driver.publisher.stage(volume, STAGING, capability(), PATIENCE_S)
    driver.publisher.publish(volume, (STAGING, TARGET), capability(), PATIENCE_S, read_only=read_only)


def detach(driver: Rig, volume: str) -> None:
    """Undo that."""
    driver.publisher.unpublish(volume, TARGET, PATIENCE_S)
    driver.publisher.unstage(volume, STAGING, PATIENCE_S)


def wrong(driver: Rig) -> list[str]:
    """Return what doctor finds."""
    with ExitStack() as held:
        places = [find(driver.host, spec, RUN_DIR, held, to_mend=False) for spec in driver.specs]
        return [finding.found for finding in Checker(driver.host, places, 0).check().findings]


class TestLife:
    def test_whole(self) -> None:
        driver = rig()
        volume = adopted(driver)
        attach(driver, volume)
        assert driver.host.read_file(f"{TARGET}/table") == b"rows"
        driver.host.replace_file(f"{TARGET}/table", b"more rows")
        with pytest.raises(FailedPrecondition, match=TARGET):
            driver.volumes.delete(volume, PATIENCE_S)
        usage, _, problem = driver.publisher.stats(volume, TARGET)
        assert (usage.total > 0, problem, wrong(driver)) == (True, "", [])
        detach(driver, volume)
        assert driver.host.stat(TARGET) is None
        driver.volumes.delete(volume, PATIENCE_S)
        driver.sweeper.drain()
        assert driver.host.read_file(f"{HERE}/table") == b"more rows"
        assert driver.pools.all()[0].store.leftovers() == []
        with pytest.raises(NotFound):
            driver.volumes.get(volume)

    def test_a_driver_that_runs_sees_it_at_once(self) -> None:
        driver = rig()
        visiting = Pools(driver.host, driver.specs, RUN_DIR, visiting=True)
        visiting.open()
        adopter = Adopter(driver.host, visiting, Executor(driver.host, lambda _name: None), lambda: 1.0)
        volume = adopter.adopt(ASKED)[1].id
        view = driver.volumes.get(volume)
        assert view.record is not None
        assert (view.record.adopted, view.problem) == (HERE, "")
        assert [one.id for one in driver.volumes.list("", 0)[0]] == [volume]
        attach(driver, volume)

    def test_in_kubernetes_it_has_the_resource_of_a_directory_without_a_limit(self) -> None:
        driver = rig()
        record = driver.volumes.get(adopted(driver)).record
        assert record is not None
        spec = adopted_volume(record, "node-1")["spec"]
        assert spec["parameters"] == {"backend": "directory", "quota": "advisory"}

    def test_it_takes_nothing_from_the_pool(self) -> None:
        driver = rig()
        before = driver.pools.views()[0].room - MIB  # the record is there
        volume = driver.adopter.adopt(AdoptRequest(path=HERE, size=Bytes(before * 2)))[1].id
        assert driver.pools.views()[0].room >= before
        driver.crash()
        assert driver.pools.views()[0].room >= before
        size, on_node = driver.sizes.expand(volume, CapacityRange(required=before * 3), None, PATIENCE_S)
        assert (size, on_node) == (before * 3, False)
        assert driver.pools.views()[0].room >= before

    def test_read_only(self) -> None:
        driver = rig()
        attach(driver, adopted(driver), read_only=True)
        assert "ro" in driver.host.mount_flags(TARGET)

    def test_a_restart_and_a_reboot(self) -> None:
        driver = rig()
        volume = adopted(driver)
        attach(driver, volume)
        driver.crash()
        assert driver.publisher._staged.volumes() == [volume]
        attach(driver, volume)
        assert [mount.point for mount in driver.host.mounts("database")] == [STAGING, TARGET]
        driver.reboot()
        driver.publisher.publish(volume, (STAGING, TARGET), capability(), PATIENCE_S, read_only=False)
        assert driver.host.read_file(f"{TARGET}/table") == b"rows"
        detach(driver, volume)

    def test_a_directory_that_is_a_mount_of_its_own(self) -> None:
        """As disks for local volumes often are: that mount is not the volume's use."""
        driver = rig()
        driver.host.make_dirs("/mnt/disk")
        driver.host.bind(HERE, "/mnt/disk", frozenset())
        volume = driver.adopter.adopt(AdoptRequest(path="/mnt/disk", name="disk"))[1].id
        driver.volumes.delete(volume, PATIENCE_S)
        assert driver.host.read_file("/mnt/disk/table") == b"rows"

    def test_again(self) -> None:
        driver = rig()
        assert driver.adopter.adopt(ASKED) == driver.adopter.adopt(ASKED)
        unnamed = AdoptRequest(path=HERE)
        with pytest.raises(InvalidArgument, match="is volume database already"):
            driver.adopter.adopt(unnamed)
        with pytest.raises(AlreadyExists, match="1Gi"):
            driver.adopter.adopt(AdoptRequest(path=HERE, name="database", size=Bytes(2 * GIB)))

    def test_a_name_that_is_taken(self) -> None:
        driver = rig()
        asked = rigs.request("database", 64 * MIB, {})
        driver.volumes.create(asked, PATIENCE_S)
        with pytest.raises(AlreadyExists, match="another name"):
            adopted(driver)
        driver.volumes.delete("database", PATIENCE_S)
        adopted(driver)
        with pytest.raises(AlreadyExists, match="adopted from"):
            driver.volumes.create(asked, PATIENCE_S)

    def test_a_volume_that_is_being_made_is_left_alone(self) -> None:
        """A volume's id may end in anything, and adopting goes on beside a driver that makes one."""
        driver = rig()
        made = driver.pools.all()[0].layout.new(VolumeId("database.adopted"))
        driver.host.make_dir(made)
        adopted(driver)
        assert driver.host.stat(made) is not None

    def test_a_crash_anywhere(self) -> None:
        for number in POINTS:
            driver = rig()
            driver.die_at_point(number)
            done = driver.acknowledged(partial(adopted, driver))
            attach(driver, adopted(driver))
            driver.sweeper.drain()
            assert driver.pools.all()[0].store.leftovers() == []
            assert driver.host.read_file(f"{TARGET}/table") == b"rows"
            if done:
                break
        assert number > 5


class TestExchanged:
    """The directory itself was adopted, not whatever is at its path."""

    def exchange(self, driver: Rig) -> None:
        driver.host.rename(HERE, "/srv/old")
        driver.host.make_dirs(HERE)

    def test_before_staging(self) -> None:
        driver = rig()
        volume = adopted(driver)
        self.exchange(driver)
        with pytest.raises(FailedPrecondition, match="another directory than the directory that was adopted"):
            attach(driver, volume)
        assert "another directory" in driver.volumes.get(volume).problem
        assert len(wrong(driver)) == 1

    @pytest.mark.parametrize("other", ["gone", "link", "file"])
    def test_for_something_else(self, other: str) -> None:
        driver = rig()
        volume = adopted(driver)
        driver.host.rename(HERE, "/srv/old")
        if other == "link":
            driver.host.make_link(HERE, "/srv/old")
        elif other == "file":
            driver.host.make_file(HERE)
        with pytest.raises(FailedPrecondition, match="is gone" if other == "gone" else "that was adopted"):
            attach(driver, volume)
        assert [mount for mount in driver.host.mounts() if mount.point == STAGING] == []
        driver.volumes.delete(volume, PATIENCE_S)

    def test_between_the_look_and_the_mount(self) -> None:
        """What was planned for the one directory is carried out on the other, and undone."""
        driver = rig()
        record = driver.volumes.get(adopted(driver)).record
        assert record is not None
        seen = StagingSeen(path=driver.host.stat(STAGING), bytes_there=driver.host.stat(HERE))
        plan = stage(record, capability(), MountOptions(), STAGING, driver.pool_of(record.id).layout, seen, "")
        self.exchange(driver)
        with pytest.raises(FailedPrecondition, match="another directory than the one adopted"):
            Executor(driver.host, lambda _name: None).run("stage", plan)
        assert [mount for mount in driver.host.mounts() if mount.point == STAGING] == []

    def test_while_it_is_used(self) -> None:
        """The pod has what it had, and can go."""
        driver = rig()
        volume = adopted(driver)
        attach(driver, volume)
        self.exchange(driver)
        assert driver.host.read_file(f"{TARGET}/table") == b"rows"
        detach(driver, volume)
        assert driver.host.stat(TARGET) is None

    def test_a_damaged_record(self) -> None:
        driver = rig()
        volume = adopted(driver)
        attach(driver, volume)
        layout = driver.pool_of(volume).layout
        driver.host.replace_file(layout.record(VolumeId(volume)), b"{")
        detach(driver, volume)
        assert driver.host.stat(TARGET) is None

    def test_the_link_is_gone(self) -> None:
        driver = rig()
        volume = adopted(driver)
        driver.host.remove(driver.pool_of(volume).layout.data(VolumeId(volume)))
        assert wrong(driver) == [f"the link to the directory {HERE}, which was adopted, is gone"]


class TestRefused:
    POOLS = {"/mnt/hdd": "big", "/run/csi-local/pools/fast": "fast", "/var/pools/fast.img": "fast"}  # noqa: RUF012
    TAKEN = {"logs": "/srv/logs"}  # noqa: RUF012

    @pytest.mark.parametrize(
        "path",
        [
            "/", "/etc", "/etc/ssl", "/usr/share", "/proc/1", "/dev/shm", "/run/x", "/var", "/var/lib", "/home", "/mnt",
            "/tmp", "/var/lib/kubelet", "/var/lib/kubelet/pods/1/volumes/x", "/data/pods/1/volumes/x/y",
            "/k/plugins/kubernetes.io/csi/x", "/mnt/hdd", "/mnt/hdd/volumes", "/mnt/hdd/volumes/x/data",
            "/mnt/hdd/.new-x", "/mnt/hdd/.trash-x.1", "/mnt/hdd/snapshots", "/srv/logs", "/srv/logs/app", "/srv",
            "/var/pools",
        ],
    )  # fmt: skip
    def test_places(self, path: str) -> None:
        assert unadoptable(path, "ext4", self.POOLS, self.TAKEN)

    @pytest.mark.parametrize("filesystem", ["tmpfs", "proc", "overlay", "cgroup2"])
    def test_filesystems(self, filesystem: str) -> None:
        assert filesystem in unadoptable("/data", filesystem, {}, {})

    @pytest.mark.parametrize(
        "path", ["/data", "/mnt/disks/vol1", "/mnt/hdd/database", "/mnt/hdd2", "/srv/logs2", "/home/me/db", "/etcetera"]
    )
    def test_what_may_be(self, path: str) -> None:
        assert unadoptable(path, "xfs", self.POOLS, self.TAKEN) == ""

    @pytest.mark.parametrize(("path", "words"), [("/srv/none", "not there"), (f"{HERE}/table", "a file")])
    def test_no_directory(self, path: str, words: str) -> None:
        with pytest.raises(InvalidArgument, match=words):
            rig().adopter.adopt(AdoptRequest(path=path))

    def test_a_size_that_csi_cannot_say(self) -> None:
        """It would end every listing of volumes."""
        driver = rig()
        with pytest.raises(OutOfRange, match="1024Pi"):
            driver.adopter.adopt(AdoptRequest(path=HERE, size=Bytes(1 << 63)))

    def test_through_a_link(self) -> None:
        """It is followed once, when a person asks for it; what counts is where it leads."""
        driver = rig()
        driver.host.make_dirs("/etc/ssl")
        driver.host.make_link("/srv/innocent", "/etc/ssl")
        driver.host.make_link("/srv/short", HERE)
        with pytest.raises(InvalidArgument, match="/etc/ssl cannot be adopted"):
            driver.adopter.adopt(AdoptRequest(path="/srv/innocent"))
        assert driver.adopter.adopt(AdoptRequest(path="/srv/short"))[1].adopted == HERE

    @pytest.mark.parametrize("path", ["/srv/strange", "/srv/strange/volumes", "/srv/strange/volumes/x/data"])
    def test_the_pools_of_others(self, path: str) -> None:
        """Whoever adopts may say less of the pools on this machine than those who serve them."""
        driver = rig()
        driver.host.make_dirs("/srv/strange/volumes/x/data")
        driver.host.make_file("/srv/strange/pool.json")
        with pytest.raises(InvalidArgument, match="pool at /srv/strange"):
            driver.adopter.adopt(AdoptRequest(path=path))

    def test_where_the_image_of_a_pool_is(self) -> None:
        driver = Rig("pool=image:/srv/data/a.img,size=1Gi")
        driver.host.make_dirs("/srv/data")
        driver.start()
        with pytest.raises(InvalidArgument, match="pool pool is in it"):
            driver.adopter.adopt(AdoptRequest(path="/srv/data"))

    def test_a_record_stays_where_it_is(self) -> None:
        driver = Rig("a=image:/pools/a.img,size=1Gi", "b=image:/pools/b.img,size=1Gi")
        driver.host.make_dirs(HERE)
        driver.start()
        asked = AdoptRequest(path=HERE, pool="a")
        assert driver.adopter.adopt(asked) == driver.adopter.adopt(asked)
        with pytest.raises(AlreadyExists, match="pool a has its record"):
            driver.adopter.adopt(AdoptRequest(path=HERE, pool="b"))

    def test_which_pool(self) -> None:
        driver = rig()
        driver.host.make_dirs("/pools/other")
        two = Rig("a=image:/pools/a.img,size=1Gi", "b=image:/pools/b.img,size=1Gi", host=driver.host)
        two.start()
        with pytest.raises(FailedPrecondition, match=r"--record-in; there are a, b"):
            two.adopter.adopt(ASKED)
        assert two.adopter.adopt(AdoptRequest(path=HERE, pool="b"))[0] == "b"
        with pytest.raises(FailedPrecondition):
            two.adopter.adopt(AdoptRequest(path="/pools/other", pool="c"))

    @pytest.mark.parametrize(
        "word", ["--name=Data_1", "--claim=a/b", "--namespace=..", "--size=0", "--size=much", "--storage-class=A b"]
    )
    def test_words(self, word: str) -> None:
        assert main(["adopt", "/nowhere", "--pool", "a=path:/nowhere", word]) == 2

    def test_a_path_that_a_shell_left_empty(self, capsys: pytest.CaptureFixture[str]) -> None:
        """It would be the directory that the shell is in."""
        assert main(["adopt", "", "--pool", "a=path:/nowhere"]) == 2
        assert "PATH is empty" in capsys.readouterr().err


class TestManifests:
    def record(self, size: int = 5 * GIB) -> VolumeRecord:
        driver = rig()
        return driver.adopter.adopt(AdoptRequest(path=HERE, name="database", size=Bytes(size)))[1]

    def test_they_belong_together(self) -> None:
        claim = Claim(name="data", namespace="shop", storage_class="retained", access_mode="ReadWriteOncePod")
        volume: Any = persistent_volume(self.record(), claim, "node-1")
        wanted: Any = persistent_volume_claim(self.record(), claim)
        assert volume["metadata"]["name"] == wanted["spec"]["volumeName"] == "database"
        assert volume["spec"]["claimRef"]["name"] == wanted["metadata"]["name"] == "data"
        assert volume["spec"]["claimRef"]["namespace"] == wanted["metadata"]["namespace"] == "shop"
        assert volume["spec"]["storageClassName"] == wanted["spec"]["storageClassName"] == "retained"
        assert volume["spec"]["accessModes"] == wanted["spec"]["accessModes"] == ["ReadWriteOncePod"]
        assert volume["spec"]["capacity"] == wanted["spec"]["resources"]["requests"] == {"storage": "5Gi"}
        assert volume["spec"]["persistentVolumeReclaimPolicy"] == "Retain"
        assert volume["spec"]["csi"] == {"driver": "csi-local.io", "volumeHandle": "database"}

    def test_no_class_is_written_out(self) -> None:
        """Without it Kubernetes would give the claim its default class, and make another volume."""
        for one in (persistent_volume(self.record(), Claim(), "n"), persistent_volume_claim(self.record(), Claim())):
            spec: Any = one["spec"]
            assert spec["storageClassName"] == ""

    def test_an_odd_size(self) -> None:
        volume: Any = persistent_volume(self.record(GIB + 4096), Claim(read_only=True), "node-1")
        assert volume["spec"]["capacity"]["storage"] == str(GIB + 4096)
        assert volume["spec"]["csi"]["readOnly"] is True

    def test_a_name_of_digits_stays_a_text(self) -> None:
        text = yaml.safe_dump(persistent_volume(self.record(), Claim(), "0123"))
        (term,) = yaml.safe_load(text)["spec"]["nodeAffinity"]["required"]["nodeSelectorTerms"]
        assert term["matchExpressions"][0]["values"] == ["0123"]

    def test_the_claim_is_kept_for_people(self) -> None:
        kept = request("/x", "n", None, "", Claim(name="data", namespace="shop")).labels
        assert kept == {"csi.storage.k8s.io/pvc/namespace": "shop", "csi.storage.k8s.io/pvc/name": "data"}
