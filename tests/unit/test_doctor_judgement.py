"""From what is seen in pools to findings: pure, so in tables."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from csi_local.model.observed import FileInfo, FileKind, LoopDevice, Signature
from csi_local.model.operations import CommitSubvolume, Detach, LimitProject, LimitSubvolume, RemoveTree, ResizeImage
from csi_local.model.pool import PoolKind
from csi_local.model.quantity import MIB, Bytes
from csi_local.model.volume import (
    Allocation,
    BackendKind,
    Filesystem,
    FormatState,
    QuotaMode,
    VolumeId,
    VolumeRecord,
)
from csi_local.plan.check import judge
from csi_local.plan.findings import (
    BindSeen,
    Finding,
    LimitSeen,
    LoopSeen,
    PoolSeen,
    Seen,
    Severity,
    TakeOver,
    VolumeSeen,
)

ROOT = "/pool"
SIZE = Bytes(16 * MIB)
UUID = "a-uuid"


def seen(path: str, kind: FileKind = FileKind.FILE, *, owner: int = 0, **info: int) -> Seen:
    """A file of the driver's own."""
    mode = 0o700 if kind is FileKind.DIRECTORY else 0o600
    plain = {"size": 0, "allocated": 0, "device": 1, "inode": 2, "special": 0, "gid": 0, "mode": mode}
    return Seen(path=f"{ROOT}/{path}", info=FileInfo(kind=kind, mount_root=False, **{**plain, **info}), owner=owner)


def record(**values: Any) -> VolumeRecord:  # noqa: ANN401
    """A formatted thick ext4."""
    plain: dict[str, Any] = {
        "id": VolumeId("data"),
        "name": "data",
        "size": SIZE,
        "backend": BackendKind.LOOPFILE,
        "filesystem": Filesystem.EXT4,
        "format": FormatState.FORMATTED,
        "fs_uuid": UUID,
    }
    return VolumeRecord(**{**plain, **values})


def image(**values: Any) -> VolumeSeen:  # noqa: ANN401
    """A volume with an image, and nothing wrong with it."""
    files = (
        seen("volumes/data", FileKind.DIRECTORY),
        seen("volumes/data/volume.json"),
        seen("volumes/data/disk.img", size=SIZE, allocated=SIZE),
    )
    plain: dict[str, Any] = {"record": record(), "signature": Signature(type="ext4", uuid=UUID)}
    return VolumeSeen(**{"id": VolumeId("data"), "files": files, **plain, **values})


def directory(**values: Any) -> VolumeSeen:  # noqa: ANN401
    """A directory volume, and nothing wrong with it."""
    files = (
        seen("volumes/data", FileKind.DIRECTORY),
        seen("volumes/data/volume.json"),
        seen("volumes/data/data", FileKind.DIRECTORY, mode=0o2777, owner=1000),
    )
    of = record(
        backend=BackendKind.DIRECTORY, filesystem=None, format=FormatState.NONE, fs_uuid="", project=7, **_quota(values)
    )
    limit = LimitSeen(project=7, total=SIZE)
    return VolumeSeen(**{"id": VolumeId("data"), "files": files, "record": of, "limit": limit, **values})


def _quota(values: dict[str, Any]) -> dict[str, Any]:
    return {"quota": values.pop("quota")} if "quota" in values else {}


def with_file(volume: VolumeSeen, name: str, **info: Any) -> VolumeSeen:  # noqa: ANN401
    """The same volume with another size, say, of one of its files."""
    files = [replace(one, info=replace(one.info, **info)) if one.name == name else one for one in volume.files]
    return replace(volume, files=tuple(files))


def without(volume: VolumeSeen, name: str) -> VolumeSeen:
    """The same volume with one of its files gone."""
    return replace(volume, files=tuple(one for one in volume.files if one.name != name))


def pool(**values: Any) -> PoolSeen:  # noqa: ANN401
    """A pool with nothing wrong."""
    names = (seen("pool.json"), seen("volumes", FileKind.DIRECTORY), seen("lost+found", FileKind.DIRECTORY))
    plain: dict[str, Any] = {"name": "fast", "kind": PoolKind.IMAGE, "root": ROOT, "uuid": "u", "filesystem": "xfs"}
    return PoolSeen(**{"names": names, **plain, **values})


def only(*pools: PoolSeen) -> Finding:
    """The one finding there is."""
    found = judge(pools)
    assert len(found) == 1, found
    return found[0]


def more(name: str, is_a: FileKind = FileKind.FILE, **values: Any) -> PoolSeen:  # noqa: ANN401
    """A pool with something else in its top directory."""
    return pool(names=(*pool().names, seen(name, is_a)), **values)


def loop(number: int = 1, **values: Any) -> LoopSeen:  # noqa: ANN401
    """A loop device on the volume's image, mounted."""
    device = LoopDevice(
        path=f"/dev/loop{number}",
        device=number,
        backing=(1, 99),
        read_only=values.pop("read_only", False),
        autoclear=True,
    )
    plain: dict[str, Any] = {"file": f"{ROOT}/volumes/data/disk.img", "volume": VolumeId("data"), "points": ("/a",)}
    return LoopSeen(device=device, **{**plain, **values})


def test_nothing() -> None:
    bind = BindSeen(point="/pods/x", inside="volumes/data/data")
    assert judge([pool(volumes=(image(),), loops=(loop(),)), pool(name="big", uuid="v", kind=PoolKind.PATH)]) == []
    assert judge([pool(volumes=(directory(),), binds=(bind,))]) == []
    assert judge([pool(volumes=(directory(quota=QuotaMode.ADVISORY, limit=None),))]) == []


ERROR, WARNING, INFO = Severity.ERROR, Severity.WARNING, Severity.INFO
THIN = record(allocation=Allocation.THIN)
FORMATTING = record(format=FormatState.FORMATTING)
BLOCK = record(filesystem=None, block=True, format=FormatState.NONE, fs_uuid="")
GONE: dict[str, Any] = {"volume": None, "points": (), "file": f"{ROOT}/volumes/old/disk.img"}
IMAGE = f"{ROOT}/volumes/data/disk.img"
DATA = f"{ROOT}/volumes/data/data"

ALONE = [
    (pool(problem="it is not there"), ERROR, "not there"),
    (pool(damage="pool.json is damaged"), ERROR, "damaged"),
    (pool(names=(seen("pool.json"),)), ERROR, "directory of all volumes"),
    (pool(volumes=(image(record=None, damage="its record is empty"),)), ERROR, "empty"),
    (pool(volumes=(without(image(), "disk.img"),)), ERROR, "image is gone"),
    (pool(volumes=(without(directory(), "data"),)), ERROR, "data is gone"),
    (pool(volumes=(with_file(image(), "disk.img", size=SIZE - 1),)), ERROR, "cut short"),
    (pool(volumes=(with_file(image(), "disk.img", size=2 * SIZE, allocated=2 * SIZE),)), INFO, "harmless"),
    (pool(volumes=(image(signature=None),)), ERROR, "nothing is found on it"),
    (pool(volumes=(image(signature=Signature(type="xfs", uuid=UUID)),)), ERROR, "xfs"),
    (pool(volumes=(image(signature=None, unreadable="blkid failed"),)), ERROR, "blkid failed"),
    (pool(volumes=(image(record=FORMATTING, signature=None),)), INFO, "harmless"),
    (pool(volumes=(directory(limit=LimitSeen(problem="no quota")),)), ERROR, "no quota"),
    (pool(volumes=(directory(limit=LimitSeen(project=7, total=MIB, used=SIZE + 1)),)), WARNING, "limited to 1Mi"),
    (more("notes.txt"), WARNING, "did not make"),
    (more("notes.txt", kind=PoolKind.PATH), INFO, "did not make"),
    (pool(strays=(seen("volumes/.hidden", FileKind.DIRECTORY),)), WARNING, "did not make"),
    (pool(volumes=(replace(image(), files=(*image().files, seen("volumes/data/data"))),)), WARNING, "did not make"),
    (more(".trash-x.1", FileKind.DIRECTORY, busy=True), INFO, "this moment"),
    (more("pool.json.tmp", busy=True), INFO, "this moment"),
    (more("pool.json.tmp", FileKind.DIRECTORY), WARNING, "did not make"),
    (pool(volumes=(image(),), loops=(loop(points=()),)), WARNING, "mounted nowhere"),
    (pool(volumes=(image(),), loops=(loop(points=()),), busy=True), INFO, "mounted nowhere"),
    (pool(volumes=(image(record=BLOCK),), loops=(loop(points=()),)), INFO, "published nowhere"),
    (pool(volumes=(image(),), loops=(loop(1), loop(2))), ERROR, "/dev/loop1 and /dev/loop2"),
    (pool(loops=(loop(**{**GONE, "points": ("/pods/x",)}),)), WARNING, "deleted"),
    (pool(loops=(loop(**GONE, users="it is open in process 5"),)), WARNING, "deleted"),
    (pool(binds=(BindSeen(point="/pods/x", inside="volumes/old/data"),)), WARNING, "no such volume"),
    (pool(binds=(BindSeen(point="/pods/x", inside=".trash-old.1/data"),)), WARNING, "no such volume"),
]


@pytest.mark.parametrize(("there", "severity", "words"), ALONE)
def test_left_alone(there: PoolSeen, severity: Severity, words: str) -> None:
    finding = only(there)
    assert finding.severity is severity
    assert words in finding.found
    assert finding.fix
    assert finding.mend == ()
    assert finding.wrong == (severity is not INFO)


MENDED = [
    (more(".new-x", FileKind.DIRECTORY), RemoveTree(path=f"{ROOT}/.new-x")),
    (more(".trash-x.1", FileKind.DIRECTORY), RemoveTree(path=f"{ROOT}/.trash-x.1")),
    (more(".probe-1", FileKind.DIRECTORY), RemoveTree(path=f"{ROOT}/.probe-1")),
    (more("pool.json.tmp"), RemoveTree(path=f"{ROOT}/pool.json.tmp")),
    (
        pool(volumes=(replace(image(), files=(*image().files, seen("volumes/data/volume.json.tmp"))),)),
        RemoveTree(path=f"{ROOT}/volumes/data/volume.json.tmp"),
    ),
    (
        pool(volumes=(with_file(image(), "disk.img", allocated=SIZE - 4096),)),
        ResizeImage(path=IMAGE, size=SIZE, thick=True),
    ),
    (
        pool(volumes=(directory(limit=LimitSeen(project=0, total=SIZE)),)),
        LimitProject(path=DATA, project=7, size=SIZE),
    ),
    (pool(volumes=(directory(limit=LimitSeen(project=7)),)), LimitProject(path=DATA, project=7, size=SIZE)),
    (
        pool(volumes=(directory(limit=LimitSeen(total=2**64 - 1)),), filesystem="btrfs"),
        LimitSubvolume(path=DATA, size=SIZE),
    ),
    (
        pool(names=(seen("pool.json", owner=5), pool().names[1])),
        TakeOver(path=f"{ROOT}/pool.json", owner=0, mode=0o600),
    ),
    (
        pool(volumes=(with_file(image(), "volume.json", mode=0o644),)),
        TakeOver(path=f"{ROOT}/volumes/data/volume.json", owner=0, mode=0o600),
    ),
    (
        pool(volumes=(with_file(image(record=None, damage="gone"), "data", mode=0o770),)),
        TakeOver(path=f"{ROOT}/volumes/data", owner=0, mode=0o700),
    ),
    (pool(loops=(loop(**GONE),)), Detach(loop=loop().device)),
]


@pytest.mark.parametrize(("there", "operation"), MENDED)
def test_mended(there: PoolSeen, operation: object) -> None:
    (finding,) = [finding for finding in judge([there]) if finding.mend]
    assert [one for one in finding.mend if not isinstance(one, CommitSubvolume)] == [operation]
    assert finding.severity is WARNING
    assert "--repair" in finding.fix


def test_thin_volumes_have_holes() -> None:
    assert judge([pool(volumes=(with_file(image(record=THIN), "disk.img", allocated=0),))]) == []


def test_reading_beside_a_writer() -> None:
    assert judge([pool(volumes=(image(),), loops=(loop(1), loop(2, read_only=True)))]) == []


def test_what_is_in_use_is_not_removed() -> None:
    trash = f"{ROOT}/.trash-old.1"
    used = loop(volume=None, file=f"{trash}/disk.img", points=("/pods/x",))
    found = judge([more(".trash-old.1", FileKind.DIRECTORY, loops=(used,))])
    assert [finding.mend for finding in found] == [(), ()]
    bound = BindSeen(point="/pods/x", inside=".trash-old.1/data")
    found = judge([more(".trash-old.1", FileKind.DIRECTORY, binds=(bound,))])
    assert [finding.mend for finding in found] == [(), ()]


def test_twice() -> None:
    fast, big = pool(volumes=(image(),)), pool(name="big", volumes=(image(),), kind=PoolKind.PATH)
    found = judge([fast, big])
    assert [(one.pool, one.severity, one.mend) for one in found] == [
        (name, ERROR, ()) for name in ("fast", "fast", "big", "big")
    ]
    assert "uuid" in found[0].found
    assert "pool big" in found[0].found
    assert "volume data is in pool big too" in found[1].found
    assert len(judge([fast, replace(big, uuid="v")])) == 2
    assert judge([pool(uuid=""), pool(uuid="", name="big")]) == []


def test_the_worst_first_pool_by_pool() -> None:
    bad = pool(
        name="a", uuid="v", damage="x", strays=(seen("volumes/y"),), volumes=(image(record=FORMATTING, signature=None),)
    )
    found = judge([pool(strays=(seen("volumes/y"),)), bad])
    assert [(one.pool, one.severity) for one in found] == [("fast", WARNING), ("a", ERROR), ("a", WARNING), ("a", INFO)]


@pytest.mark.parametrize(("busy", "severity"), [(True, Severity.INFO), (False, Severity.WARNING)])
def test_an_inline_volume_whose_pod_is_gone(severity: Severity, *, busy: bool) -> None:
    finding = only(pool(volumes=(image(record=record(ephemeral="/pods/1/mount"), pod_gone=True),), busy=busy))
    assert (finding.severity, finding.mend, finding.volume) == (severity, (), "data")
    assert "whose pod is gone" in finding.found
