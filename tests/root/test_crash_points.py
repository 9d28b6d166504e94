"""kill -9 at every point where a plan can be cut short; then the same request again.

The driver names the points itself: one life of a volume is traced, and then lived again and again. In each life every
step dies at one of its points, is repeated by a new process, and must succeed. The process that repeats a step is the
one that dies in the next, so that there is one start for each point.
"""

from __future__ import annotations

import signal
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, cast

import grpc
import pytest

from tests import observe
from tests.client import Code, Mode, inline, outcome
from tests.observe import MIB
from tests.rules.kinds import BLOCK, DIRECTORY, EXT4, XFS, Kind

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from csi_local._proto import csi_pb2 as csi
    from tests.client import Volume
    from tests.conftest import Start
    from tests.driver import Driver

pytestmark = pytest.mark.root

SETTING = "CSI_LOCAL_CRASH_POINT"
DATA = b"precious" * 512
GROWTH = {
    "directory": 16 * MIB,
    "directory-xfs": 16 * MIB,
    "loopfile-ext4": 16 * MIB,
    "loopfile-xfs": 64 * MIB,
    "loopfile-block": 16 * MIB,
}
SIZE = {
    "directory": 16 * MIB,
    "directory-xfs": 16 * MIB,
    "loopfile-ext4": 32 * MIB,
    "loopfile-xfs": 300 * MIB,
    "loopfile-block": 16 * MIB,
}
STEADY_EXT4 = replace(EXT4, params={**EXT4.params, "mkfsOptions": "-E lazy_itable_init=0"})
"""Without that the kernel zeroes the inode tables seconds later, which takes blocks away from the image; staging
reserves them again, and so has other points in a slow life than in a quick one."""

TREE = Kind(name="directory-xfs", params={"backend": "directory", "quota": "advisory"})
"""A directory that is copied file by file."""

_COPIES = {"snapshot", "restore", "clone", "delete snapshot", "group", "delete group"}
LEAST = {
    "directory": {"create", "stage", "publish", "expand", "unpublish", "unstage", "delete"} | _COPIES - {"clone"},
    "directory-xfs": {"snapshot", "restore"},
    "loopfile-ext4": {"create", "stage", "stage later", "node-expand", "delete"} | _COPIES,
    "loopfile-xfs": {"stage", "stage later", "stage larger", "node-expand"},
    "loopfile-block": {"create", "stage", "publish", "publish read-only", "unpublish read-only", "delete"} | _COPIES,
}
"""Steps that must have points, so that a renamed setting cannot make this test vain."""

ONLY = {"loopfile-xfs": LEAST["loopfile-xfs"], "directory-xfs": LEAST["directory-xfs"]}
"""The other steps of this kind pass the very operations that another kind's do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """A request, and what must be true once it was answered."""

    name: str
    act: Callable[[], object]
    check: Callable[[], object] = lambda: None


class Life:
    """A volume from its creation to its deletion."""

    def __init__(self, driver: Driver, kind: Kind) -> None:
        self.driver = driver
        self.kind = kind
        self.size = SIZE[kind.name]
        self.volume: Volume | None = None
        self.copied: Volume | None = None
        self.taken: csi.Snapshot | None = None

    def steps(self) -> list[Step]:
        """Return all that a CO asks for in the life of a volume."""
        return [
            Step(name="create", act=self._create),
            Step(name="stage", act=self._stage),
            Step(name="publish", act=self._publish, check=self._write),
            Step(name="expand", act=partial(self._expand, 1)),
            Step(name="node-expand", act=self._node_expand, check=self._read),
            *self._copies(),
            Step(name="unpublish", act=partial(self._unpublish, "target")),
            Step(name="publish read-only", act=self._publish_read_only),
            Step(name="unpublish read-only", act=partial(self._unpublish, "read-only")),
            Step(name="unstage", act=self._unstage),
            Step(name="stage later", act=self._stage),
            Step(name="unstage later", act=self._unstage),
            Step(name="expand unstaged", act=partial(self._expand, 2)),
            Step(name="stage larger", act=self._stage),
            Step(name="publish again", act=self._publish, check=self._read),
            Step(name="unpublish again", act=partial(self._unpublish, "target")),
            Step(name="unstage again", act=self._unstage),
            Step(name="delete", act=self._delete),
        ]

    def _copies(self) -> list[Step]:
        """Return what is asked of a volume in use that concerns copies of it."""
        return [
            Step(name="snapshot", act=self._snapshot),
            Step(name="restore", act=self._restore),
            Step(name="stage restored", act=lambda: self.driver.stage(self.copy)),
            Step(name="publish restored", act=lambda: self.driver.publish(self.copy), check=self._read_copy),
            Step(name="unpublish restored", act=lambda: self.driver.unpublish(self.copy)),
            Step(name="unstage restored", act=lambda: self.driver.unstage(self.copy)),
            Step(name="delete restored", act=lambda: self.driver.delete(self.copy)),
            Step(name="delete snapshot", act=self._delete_snapshot),
            Step(name="clone", act=self._clone),
            Step(name="delete clone", act=lambda: self.driver.delete(self.copy)),
            Step(name="group", act=lambda: self.driver.snapshot_group("group", self.made)),
            Step(name="delete group", act=self._delete_group),
        ]

    @property
    def copy(self) -> Volume:
        """The volume made from it, which must have been created."""
        assert self.copied is not None
        return self.copied

    def _snapshot(self) -> None:
        self.taken = self.driver.snapshot(self.made, "daily")
        assert self.taken.ready_to_use
        assert self.driver.snapshots() == [self.taken]

    def _restore(self) -> None:
        mode = Mode.SINGLE_NODE_MULTI_WRITER
        self.copied = self.kind.create(self.driver, name="restored", mode=mode, source=self.taken)

    def _clone(self) -> None:
        mode = Mode.SINGLE_NODE_MULTI_WRITER
        self.copied = self.kind.create(self.driver, name="cloned", mode=mode, source=self.made)

    def _read_copy(self) -> None:
        assert observe.get(self.driver.target_path(self.copy), len(DATA)) == DATA
        observe.put(self.driver.target_path(self.made), DATA)  # nothing is frozen

    def _delete_snapshot(self) -> None:
        assert self.taken is not None
        self.driver.delete_snapshot(self.taken)
        assert self.driver.snapshots() == []

    def _delete_group(self) -> None:
        self.driver.delete_group("group")
        assert self.driver.snapshots() == []

    @property
    def made(self) -> Volume:
        """The volume, which must have been created."""
        assert self.volume is not None
        return self.volume

    def _create(self) -> None:
        mode = Mode.SINGLE_NODE_MULTI_WRITER
        self.volume = self.kind.create(self.driver, name="data", size=self.size, mode=mode)
        assert self.volume.size == self.size

    def _stage(self) -> None:
        self.driver.stage(self.made)

    def _publish(self) -> None:
        self.driver.publish(self.made)

    def _publish_read_only(self) -> None:
        self.driver.publish(self.made, "read-only", readonly=True)
        target = self.driver.target_path(self.made, "read-only")
        assert observe.get(target, len(DATA)) == DATA
        with pytest.raises(OSError, match=r"Read-only|not permitted"):
            observe.put(target, b"x")

    def _write(self) -> None:
        observe.put(self.driver.target_path(self.made), DATA)

    def _read(self) -> None:
        assert observe.get(self.driver.target_path(self.made), len(DATA)) == DATA

    def _expand(self, times: int) -> None:
        wanted = self.size + times * GROWTH[self.kind.name]
        assert self.driver.expand_controller(self.made, wanted).capacity_bytes == wanted

    def _node_expand(self) -> None:
        size = self.size + GROWTH[self.kind.name]
        try:
            self.driver.expand_node(self.made, size)
        except grpc.RpcError as error:
            refused = cast("grpc.Call", error).code() is Code.FAILED_PRECONDITION
            if not (refused and self.kind.fs == "ext4"):  # a mounted ext4 grows only where the kernel lets it
                raise

    def _unpublish(self, name: str) -> None:
        self.driver.unpublish(self.made, name)
        assert not self.driver.target_path(self.made, name).exists()

    def _unstage(self) -> None:
        self.driver.unstage(self.made)
        assert not observe.mounts(self.driver.staging_path(self.made))

    def _delete(self) -> None:
        self.driver.delete(self.made)
        assert self.driver.volumes() == []


class FarLife(Life):
    """A volume whose pool cannot share blocks, so that everything is copied in the background."""

    def steps(self) -> list[Step]:
        """Return what is asked of it."""
        return [
            Step(name="create", act=self._create),
            Step(name="stage", act=self._stage),
            Step(name="publish", act=self._publish, check=self._write),
            Step(name="unpublish", act=partial(self._unpublish, "target")),
            Step(name="unstage", act=self._unstage),
            Step(name="snapshot", act=self._snapshot),
            Step(name="restore", act=self._restore),
            Step(name="stage restored", act=lambda: self.driver.stage(self.copy)),
            Step(name="publish restored", act=lambda: self.driver.publish(self.copy), check=self._read_copy),
            Step(name="unpublish restored", act=lambda: self.driver.unpublish(self.copy)),
            Step(name="unstage restored", act=lambda: self.driver.unstage(self.copy)),
            Step(name="delete restored", act=lambda: self.driver.delete(self.copy)),
            Step(name="delete snapshot", act=self._delete_snapshot),
            Step(name="delete", act=self._delete),
        ]

    def _read_copy(self) -> None:
        assert observe.get(self.driver.target_path(self.copy), len(DATA)) == DATA


def traced(driver: Driver, kind: Kind, file: Path, life: type[Life] = Life) -> dict[str, list[str]]:
    """Live a life, and return the points that each step passes."""
    points: dict[str, list[str]] = {}
    restart(driver, f"trace:{file}")
    before = 0
    for step in life(driver, kind).steps():
        step.act()
        step.check()
        lines = file.read_text().splitlines() if file.exists() else []
        points[step.name] = list(dict.fromkeys(lines[before:]))
        before = len(lines)
    return points


def worth_dying_at(points: Mapping[str, list[str]], kind: Kind) -> dict[str, list[str]]:
    """Leave out the steps that pass the very points that an earlier one passed; a read-only device is another one.

    A copy's own life is as the volume's, which is what dies.
    """
    first: dict[object, str] = {}
    for name, found in points.items():
        if found and name in ONLY.get(kind.name, points) and not name.endswith((" restored", " clone")):
            first.setdefault((*found, kind.block and name.endswith("read-only")), name)
    return {name: points[name] for name in first.values()}


def restart(driver: Driver, setting: str) -> None:
    """Do away with the process, and start one that has that setting."""
    if driver.running:
        driver.kill()
    driver.env = {**driver.env, SETTING: setting}
    driver.start()


def live_and_die(driver: Driver, kind: Kind, deaths: Mapping[str, str], life: type[Life] = Life) -> None:
    """Live a life in which each step of *deaths* dies at that point."""
    again: Callable[[], object] = lambda: None  # noqa: E731 (nothing, before the first death)
    restart(driver, "")
    for step in life(driver, kind).steps():
        point = deaths.get(step.name)
        if point is not None:
            restart(driver, f"kill:{point}")
            again()
            code = outcome(step.act)
            observe.until(lambda: not driver.running, f"{step.name} dies at {point}; it answered {code}", seconds=5)
            assert driver.process.wait() == -signal.SIGKILL
            again = partial(repeat, step, point)
        else:
            if not driver.running:
                restart(driver, "")
            again()
            again = partial(repeat, step, "no point")
    if not driver.running:
        restart(driver, "")
    again()


def repeat(step: Step, point: str) -> None:
    """Make a request again, which must succeed."""
    try:
        step.act()
        step.check()
    except Exception as error:
        raise AssertionError(f"{step.name}, again after it died at {point}: {error}") from error


@pytest.mark.parametrize("kind", [DIRECTORY, TREE, STEADY_EXT4, XFS, BLOCK], ids=str)
def test_every_point_is_survived(start: Start, kind: Kind, folder: Path) -> None:
    filesystem = "btrfs" if kind is DIRECTORY else "xfs"
    driver = start(f"image:{{root}}/pool.img,size=1536Mi,allocation=thin,fs={filesystem}")
    points = worth_dying_at(traced(driver, kind, folder / "trace"), kind)
    assert LEAST[kind.name] <= points.keys()
    for number in range(max(map(len, points.values()))):
        live_and_die(driver, kind, {name: found[number] for name, found in points.items() if number < len(found)})
        assert not (left := driver.leftovers()), "left behind: " + ", ".join(left)


def test_every_point_of_a_copy_is_survived(start: Start, folder: Path) -> None:
    driver = start("image:{root}/pool.img,size=1Gi,allocation=thin,fs=ext4")
    points = traced(driver, STEADY_EXT4, folder / "trace", FarLife)
    points = {name: points[name] for name in ("snapshot", "restore")}
    assert min(map(len, points.values())) > 5
    for number in range(max(map(len, points.values()))):
        deaths = {name: found[number] for name, found in points.items() if number < len(found)}
        live_and_die(driver, STEADY_EXT4, deaths, FarLife)
        assert not (left := driver.leftovers()), "left behind: " + ", ".join(left)


INLINE = {
    "ext4": {"size": "32Mi"},
    "directory": {"size": "32Mi", "backend": "directory"},
}


class Pod:
    """What a kubelet asks for where a pod has an inline volume."""

    def __init__(self, driver: Driver, attributes: Mapping[str, str]) -> None:
        self.driver = driver
        self.volume = inline(attributes)

    def publish(self) -> None:
        """Publish it for a group; its data is there, and the group's."""
        target = self.driver.publish_inline(self.volume, group="4711")
        assert len(observe.mounts(target)) == 1
        assert target.stat().st_gid == 4711
        observe.put(target, DATA)

    def unpublish(self) -> None:
        """Take it down."""
        for _, target in list(self.driver._targets):
            self.driver.unpublish(self.volume, target)
            assert not target.exists()

    def die(self, act: Callable[[], None], point: str) -> None:
        """Let the driver die at that point of *act*, and start another."""
        restart(self.driver, f"kill:{point}")
        code = outcome(act)
        observe.until(lambda: not self.driver.running, f"{act} dies at {point}; it answered {code}", seconds=5)
        restart(self.driver, "")


def points_of(driver: Driver, attributes: Mapping[str, str], file: Path) -> tuple[list[str], list[str]]:
    """Trace what publishing and unpublishing an inline volume pass."""
    restart(driver, f"trace:{file}")
    pod = Pod(driver, attributes)
    pod.publish()
    publishing = file.read_text().splitlines()
    pod.unpublish()
    return publishing, file.read_text().splitlines()[len(publishing) :]


@pytest.mark.parametrize("attributes", INLINE.values(), ids=INLINE)
def test_every_point_of_an_inline_volume(start: Start, attributes: Mapping[str, str], folder: Path) -> None:
    """The kubelet asks again, or takes the pod down: neither leaves anything."""
    driver = start("image:{root}/pool.img,size=1Gi,allocation=thin,fs=btrfs")
    publishing, unpublishing = points_of(driver, attributes, folder / "trace")
    assert {point.partition(":")[0] for point in publishing} == {"create", "stage", "stage-group"}
    assert {point.partition(":")[0] for point in unpublishing} >= {"unpublish", "unpublish-target", "delete"}
    for point in publishing:
        for again in (True, False):
            pod = Pod(driver, attributes)
            pod.die(pod.publish, point)
            if again:
                pod.publish()
            pod.unpublish()
            assert not (left := driver.leftovers()), f"left after {point}: " + ", ".join(left)
    for point in unpublishing:
        pod = Pod(driver, attributes)
        pod.publish()
        pod.die(pod.unpublish, point)
        pod.unpublish()
        assert not (left := driver.leftovers()), f"left after {point}: " + ", ".join(left)
