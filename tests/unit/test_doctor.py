"""Doctor on the machine in memory: everything is found, what is safe is mended, and nothing else is touched."""

from __future__ import annotations

import dataclasses
import errno
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

from csi_local.cli import main
from csi_local.doctor import finding_rows
from csi_local.engine.check import Checker, Report, find
from csi_local.engine.execute import Executor
from csi_local.model.operations import Commit
from csi_local.model.quantity import MIB, Bytes
from csi_local.model.volume import FormatState, VolumeId
from csi_local.store.records import encode
from tests.unit.rig import PATIENCE_S, RUN_DIR, Rig, capability, request

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from csi_local.plan.findings import Finding
    from tests.fake.tree import Node

SIZE = 64 * MIB
FS_TYPE = "csi.storage.k8s.io/fstype"
PATH_POOL, XFS_POOL = "pool=path:/pools/dir", "pool=image:/pools/pool.img,size=4Gi"
BTRFS_POOL = "pool=image:/pools/pool.img,size=4Gi,fs=btrfs"


class Bench(Rig):
    """A driver that has stopped, but for what its volumes keep, and doctors who come to see its pools."""

    def __init__(self, *pools: str) -> None:
        super().__init__(*pools)
        self.host.make_dirs("/pools/dir")
        self.start()
        self.held = ExitStack()

    @property
    def root(self) -> str:
        """The first pool's top directory."""
        return self.pools.all()[0].root

    def create(self, name: str, **parameters: str) -> str:
        """Create a volume: an ext4, or what the parameters say; return its directory."""
        block = bool(parameters.pop("block", ""))
        chosen = parameters or ({} if block else {FS_TYPE: "ext4"})
        found = self.volumes.create(request(name, SIZE, chosen, block=block), PATIENCE_S)
        return self.pool_of(found.id).layout.volume(found.id)

    def stage(self, name: str, *, block: bool = False) -> str:
        """Stage a volume; return where."""
        self.host.make_dirs(f"/kubelet/{name}")
        self.publisher.stage(name, f"/kubelet/{name}", capability(block=block), PATIENCE_S)
        return f"/kubelet/{name}"

    def node(self, path: str) -> Node:
        """What a path names, to be damaged."""
        return self.host.walk(path, "test").node

    def see(self, *, repair: bool = False, driver: bool = False) -> Report:
        """Let a doctor come; the *driver*'s lock is let go otherwise."""
        if not driver:
            self.host.crash()
        with ExitStack() as held:
            places = [find(self.host, spec, RUN_DIR, held, to_mend=repair) for spec in self.specs]
            checker = Checker(self.host, places, 0)
            return checker.repair() if repair else checker.check()

    def digest(self, *, without: str = "none") -> dict[str, object]:
        """All that is in the first pool."""
        top = self.node(self.root)
        return dict(self._below(top, "", without))

    def _below(self, node: Node, path: str, without: str) -> Iterator[tuple[str, object]]:
        if path != without:
            yield path, (node.kind, node.mode, node.uid, node.gid, node.size, node.allocated, node.data, node.project)
            for name, child in node.children.items():
                yield from self._below(child, f"{path}/{name}", without)


def keep(bench: Bench) -> None:
    """Let the pool stay mounted when the driver goes, by a volume in use; and be able to look into it."""
    bench.create("keep")
    bench.stage("keep")


@pytest.fixture(params=[XFS_POOL, BTRFS_POOL, PATH_POOL], ids=["xfs", "btrfs", "path"])
def bench(request: pytest.FixtureRequest) -> Bench:
    """Give a pool of each kind, with a volume in use."""
    made = Bench(request.param)
    keep(made)
    return made


def one(report: Report, where: str) -> Finding:
    """Demand exactly one finding, there."""
    assert [finding.where for finding in report.findings] == [where], report.findings
    return report.findings[0]


def untouched(bench: Bench, where: str, words: str) -> None:
    """Demand that something is found, that a doctor who mends says it too, and that nothing changes."""
    before = bench.digest()
    assert words in one(bench.see(), where).found
    report = bench.see(repair=True)
    assert words in one(report, where).found
    assert report.mended == ()
    assert bench.digest() == before


def mended(bench: Bench, where: str, words: str) -> None:
    """Demand that something is found, changed only by a doctor who mends, and then gone."""
    before = bench.digest()
    assert words in one(bench.see(), where).found
    assert bench.digest() == before
    report = bench.see(repair=True)
    assert report.findings == ()
    assert [finding.where for finding in report.mended] == [where]
    assert bench.see() == dataclasses.replace(report, mended=(), seen=bench.see().seen)


def test_nothing_is_wrong_after_a_life(bench: Bench) -> None:
    bench.create("other", backend="loopfile", allocation="thin")
    before = bench.digest()
    assert bench.see(driver=True).findings == ()
    assert bench.see().findings == ()
    assert bench.see(repair=True).findings == ()
    assert bench.digest() == before


class TestRecords:
    @pytest.mark.parametrize(
        ("spoil", "words"),
        [
            (lambda _: b"", "empty"),
            (lambda data: data[: len(data) // 2], "cannot be parsed"),
            (lambda data: data.replace(b"67108864", b"67108865"), "checksum"),
            (lambda data: data.replace(b'"layout":', b'"layout":9'), "newer"),
        ],
    )
    def test_spoilt(self, bench: Bench, spoil: Callable[[bytes], bytes], words: str) -> None:
        path = bench.create("data") + "/volume.json"
        node = bench.node(path)
        node.data = spoil(node.data)
        untouched(bench, path, words)

    def test_missing(self, bench: Bench) -> None:
        path = bench.create("data") + "/volume.json"
        bench.host.remove(path)
        untouched(bench, path, "missing")

    def test_of_another_volume(self, bench: Bench) -> None:
        here, there = bench.create("here"), bench.create("there")
        bench.node(f"{here}/volume.json").data = bench.node(f"{there}/volume.json").data
        untouched(bench, f"{here}/volume.json", "that of 'there'")

    def test_unreadable(self, bench: Bench) -> None:
        path = bench.create("data")
        bench.host.crash()
        with ExitStack() as held:
            places = [find(bench.host, spec, RUN_DIR, held, to_mend=False) for spec in bench.specs]
            bench.host.fail("read_file", errno.EIO, nth=2)  # after pool.json
            found = Checker(bench.host, places, 0).check().findings
        assert [finding.where for finding in found] == [f"{path}/volume.json"]
        assert "EIO" in found[0].found

    @pytest.mark.parametrize("name", ["", "/volume.json", "/disk.img"])
    def test_owner_and_mode(self, bench: Bench, name: str) -> None:
        path = bench.create("data") + name
        node = bench.node(path)
        node.uid, node.mode = 1000, node.mode | 0o044
        data = node.data
        mended(bench, path, "belongs to user 1000 instead of 0 and has mode 0")
        assert (node.uid, node.mode & 0o077, node.data) == (0, 0, data)

    def test_pool_file(self, bench: Bench) -> None:
        bench.node(f"{bench.root}/pool.json").data = b"{"
        untouched(bench, f"{bench.root}/pool.json", "damaged")


class TestBytes:
    def test_gone(self, bench: Bench) -> None:
        path = bench.create("data") + "/disk.img"
        bench.host.remove(path)
        untouched(bench, path, "gone")

    def test_short(self, bench: Bench) -> None:
        path = bench.create("data") + "/disk.img"
        bench.node(path).size -= 4096
        untouched(bench, path, "cut short")

    def test_larger(self, bench: Bench) -> None:
        path = bench.create("data", backend="loopfile", allocation="thin") + "/disk.img"
        bench.node(path).size += MIB
        untouched(bench, path, "harmless")
        assert not bench.see().findings[0].wrong

    def test_holes(self, bench: Bench) -> None:
        path = bench.create("data") + "/disk.img"
        bench.node(path).allocated -= MIB
        mended(bench, path, "1Mi of its 64Mi")
        assert bench.node(path).allocated == SIZE

    def test_holes_and_no_room(self, bench: Bench) -> None:
        path = bench.create("data") + "/disk.img"
        bench.node(path).allocated -= MIB
        bench.host.crash()
        with ExitStack() as held:
            places = [find(bench.host, spec, RUN_DIR, held, to_mend=True) for spec in bench.specs]
            bench.host.fail("resize_image", errno.ENOSPC)
            report = Checker(bench.host, places, 0).repair()
        assert report.mended == ()
        assert "could not" in one(report, path).fix
        assert "ENOSPC" in one(report, path).fix

    def test_formatted_and_blank(self, bench: Bench) -> None:
        path = bench.create("data") + "/disk.img"
        bench.publisher.unstage("data", bench.stage("data"), PATIENCE_S)
        bench.node(path).held = None
        untouched(bench, path, "nothing is found on it")

    def test_formatting(self, bench: Bench) -> None:
        path = bench.create("data")
        record = bench.volumes.get("data").record
        assert record is not None
        intent = dataclasses.replace(record, format=FormatState.FORMATTING, fs_uuid="x")
        bench.host.replace_file(f"{path}/volume.json", encode(intent))
        untouched(bench, f"{path}/disk.img", "harmless")


class TestLimits:
    def test_subvolume(self) -> None:
        bench = Bench(BTRFS_POOL)
        keep(bench)
        data = bench.create("data", backend="directory") + "/data"
        bench.node(data).limit = 0
        mended(bench, data, "limited to nothing")
        assert bench.node(data).limit == SIZE

    def test_no_subvolume(self) -> None:
        """A limit set on a plain directory would be the limit of all that is in the pool."""
        bench = Bench(BTRFS_POOL)
        keep(bench)
        data = bench.create("data", backend="directory") + "/data"
        bench.host.remove_tree(data)
        bench.host.make_dir(data)
        untouched(bench, data, "not a subvolume")

    @pytest.mark.parametrize("project", [0, 5])
    def test_project(self, project: int) -> None:
        bench = Bench(XFS_POOL)
        keep(bench)
        data = bench.create("data", backend="directory") + "/data"
        bench.node(data).project = project
        mended(bench, data, f"quota project {project}")

    def test_project_without_a_limit(self) -> None:
        bench = Bench(XFS_POOL)
        keep(bench)
        data = bench.create("data", backend="directory") + "/data"
        node = bench.node(data)
        node.filesystem.limits.clear()
        mended(bench, data, "limited to nothing")
        assert node.filesystem.limits == {node.project: SIZE}


class TestNames:
    @pytest.mark.parametrize("name", [".new-x", ".trash-x.1", ".probe-1"])
    def test_leftovers(self, bench: Bench, name: str) -> None:
        path = f"{bench.root}/{name}"
        bench.host.make_dirs(f"{path}/data/below")
        before = bench.digest(without=f"/{name}")
        mended(bench, path, "")
        assert bench.digest() == before

    @pytest.mark.parametrize("name", ["pool.json.tmp", "volumes/keep/volume.json.tmp"])
    def test_unfinished(self, bench: Bench, name: str) -> None:
        bench.host.make_file(f"{bench.root}/{name}")
        before = bench.digest(without=f"/{name}")
        mended(bench, f"{bench.root}/{name}", "the file itself is whole")
        assert bench.digest() == before

    @pytest.mark.parametrize("name", ["x", "x.tmp", "volumes/.hidden", "volumes/.trash-x", "volumes/keep/x"])
    def test_unknown(self, bench: Bench, name: str) -> None:
        bench.host.make_dirs(f"{bench.root}/{name}/below")
        untouched(bench, f"{bench.root}/{name}", "did not make")
        mine = bench.see().findings[0].wrong
        assert mine == ("/" in name or "path" not in bench.specs[0].kind)

    def test_beside_a_driver(self, bench: Bench) -> None:
        bench.host.make_dirs(f"{bench.root}/.trash-x.1/data")
        before = bench.digest()
        assert not one(bench.see(driver=True), f"{bench.root}/.trash-x.1").wrong
        report = bench.see(driver=True, repair=True)
        assert [finding.where for finding in report.findings] == ["", f"{bench.root}/.trash-x.1"]
        assert "running csi-local" in report.findings[0].found
        assert "stop the driver" in report.findings[0].fix
        assert bench.digest() == before


class TestLoops:
    def delete_behind(self, bench: Bench, name: str) -> str:
        """Move a volume into the trash though it is used, as nobody should."""
        trash = f"{bench.root}/.trash-{name}.1"
        layout = bench.pools.all()[0].layout
        Executor(bench.host, lambda _: None).run("x", [Commit(source=layout.volume(VolumeId(name)), target=trash)])
        return trash

    def test_orphan_of_trash(self, bench: Bench) -> None:
        bench.create("data", block="yes")
        bench.stage("data", block=True)
        trash = self.delete_behind(bench, "data")
        (loop,) = bench.host.loops(f"{trash}/disk.img")
        assert {finding.where for finding in bench.see().findings} == {loop.path, trash}
        report = bench.see(repair=True)
        assert report.findings == ()
        assert len(report.mended) == 2
        assert bench.host.stat(trash) is None
        assert bench.see().findings == ()

    def test_orphan_of_a_removed_file(self, bench: Bench) -> None:
        bench.create("data", block="yes")
        bench.stage("data", block=True)
        bench.host.remove_tree(self.delete_behind(bench, "data"))
        (finding,) = bench.see().findings
        assert "deleted" in finding.found
        report = bench.see(repair=True)
        assert (report.findings, len(report.mended)) == ((), 1)

    def test_orphan_in_use(self, bench: Bench) -> None:
        path = bench.create("data", block="yes")
        bench.stage("data", block=True)
        loop = bench.host.loops(f"{path}/disk.img")[0]
        trash = self.delete_behind(bench, "data")
        bench.host.crash()
        bench.host.attached[loop.device & 0xFF].openers = 1
        with ExitStack() as held:
            places = [find(bench.host, spec, RUN_DIR, held, to_mend=True) for spec in bench.specs]
            report = Checker(bench.host, places, 0).repair()
        assert report.mended == ()
        assert any("process 2" in finding.fix for finding in report.findings)
        assert bench.host.loops(f"{trash}/disk.img") == [loop]

    def test_mounted_without_a_volume(self, bench: Bench) -> None:
        bench.create("data")
        point = bench.stage("data")
        trash = self.delete_behind(bench, "data")
        before = bench.digest()
        report = bench.see(repair=True)
        assert report.mended == ()
        assert len(report.findings) == 2
        assert any(point in finding.fix for finding in report.findings)
        assert bench.digest() == before
        assert bench.host.stat(trash) is not None

    def test_somebody_elses(self, bench: Bench) -> None:
        """A pod, or anybody, may attach a file that is on the same filesystem: no business of ours."""
        bench.host.make_image(f"{bench.root}/volumes/keep/mine.img", Bytes(SIZE), thick=False)
        with bench.host.attach(f"{bench.root}/volumes/keep/mine.img", sector_size=0, keep=True):
            pass
        bench.see(repair=True)
        assert len(bench.host.loops(f"{bench.root}/volumes/keep/mine.img")) == 1

    def test_two_writers(self, bench: Bench) -> None:
        image = bench.create("data", block="yes") + "/disk.img"
        bench.stage("data", block=True)
        first = next(iter(bench.host.attached.values()))
        for loop in bench.host.attached.values():
            first = loop if loop.image.node is bench.node(image) else first
        again = dataclasses.replace(first, number=9)
        bench.host.attached[9] = again
        bench.node("/dev").filesystem.add(
            bench.node("/dev"), "loop9", bench.node("/dev/loop0").kind, 0o660
        ).special = again.device
        found = [finding for finding in bench.see(repair=True).findings if "write to one image" in finding.found]
        assert [finding.where for finding in found] == [image]
        assert len(bench.host.loops(image)) == 2

    def test_bound_without_a_volume(self) -> None:
        bench = Bench(XFS_POOL)
        keep(bench)
        bench.create("data", backend="directory")
        point = bench.stage("data")
        trash = self.delete_behind(bench, "data")
        before = bench.digest()
        report = bench.see(repair=True)
        assert {finding.where for finding in report.findings} == {point, trash}
        assert bench.digest() == before


class TestPools:
    def test_twice(self) -> None:
        bench = Bench("a=image:/pools/a.img,size=1Gi", "b=image:/pools/b.img,size=1Gi")
        keep(bench)
        a, b = (pool.root for pool in bench.pools.all())
        bench.node(f"{b}/pool.json").data = bench.node(f"{a}/pool.json").data
        bench.host.make_dir(f"{b}/volumes/keep")
        bench.host.replace_file(f"{b}/volumes/keep/volume.json", bench.node(f"{a}/volumes/keep/volume.json").data)
        found = bench.see().findings
        assert [finding.pool for finding in found if "same uuid" in finding.found] == ["a", "b"]
        assert [finding.pool for finding in found if "too" in finding.found] == ["a", "b"]

    def test_missing(self) -> None:
        bench = Bench(XFS_POOL)
        bench.pools.close()
        bench.host.crash()
        bench.host.remove("/pools/pool.img")
        for repair in (False, True):
            assert "not there" in one(bench.see(repair=repair), "").found
        assert bench.host.stat("/pools/pool.img") is None, "--repair makes nothing"

    @pytest.mark.parametrize("pool", [XFS_POOL, BTRFS_POOL])
    def test_frozen(self, pool: str) -> None:
        bench = Bench(pool)
        keep(bench)
        frozen = [bench.node(path).filesystem for path in (bench.root, "/kubelet/keep")]
        for filesystem in frozen:
            filesystem.frozen = True
        bench.see()
        bench.see(repair=True, driver=False)
        assert not any(filesystem.frozen for filesystem in frozen)
        bench.start()
        for filesystem in frozen:
            filesystem.frozen = True
        bench.see(repair=True, driver=True)
        assert all(filesystem.frozen for filesystem in frozen)

    def test_only_our_devices_are_thawed(self) -> None:
        bench = Bench(PATH_POOL)
        keep(bench)
        bench.host.disk.frozen = bench.node("/kubelet/keep").filesystem.frozen = True
        report = bench.see(repair=True)
        assert [finding.where for finding in report.mended] == ["/kubelet/keep"]
        assert bench.host.disk.frozen

    def test_closed_pool_is_opened_to_look(self) -> None:
        bench = Bench(XFS_POOL)
        bench.create("data")
        bench.pools.close()
        assert [len(bench.see(repair=repair).seen[0].volumes) for repair in (False, True)] == [1, 1]
        assert bench.host.locked == []


class TestShown:
    def test_rows(self, bench: Bench) -> None:
        bench.host.make_dirs(f"{bench.root}/volumes/.a\nb")
        bench.host.make_file(f"{bench.root}/pool.json.tmp")
        rows = finding_rows(bench.see(repair=True))
        assert [row["state"] for row in rows] == ["mended", "warning"]
        assert [row["check"] for row in rows] == ["pool pool: pool.json.tmp", "pool pool: volumes/.a\\nb"]
        assert not any(row["mendable"] for row in rows)

    def test_repair_of_what(self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("CSI_LOCAL_CONFIG", raising=False)
        assert main(["doctor", "--repair"]) == 2
        assert "--pool" in capsys.readouterr().err
