"""Encrypted volumes over a machine in memory: one header, made once, and opened by its key alone."""

from __future__ import annotations

import errno
import json
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import pytest

from csi_local.engine.check import Checker, find
from csi_local.engine.keys import MAX_KEY, NONE_GIVEN
from csi_local.model.errors import (
    AlreadyExists,
    DriverError,
    FailedPrecondition,
    InvalidArgument,
    ResourceExhausted,
    SyscallFailed,
    Unauthenticated,
    Unavailable,
)
from csi_local.model.quantity import MIB
from csi_local.model.snapshot import ContentSource, GroupRequest, SnapshotRequest, SourceKind
from csi_local.model.volume import (
    HEADER,
    Cipher,
    FormatState,
    VolumeId,
    VolumeRecord,
)
from tests.unit.rig import PATIENCE_S, RUN_DIR, Rig, capability, key, request

if TYPE_CHECKING:
    from collections.abc import Callable

    from csi_local.engine.keys import GivenKeys

FS_TYPE = "csi.storage.k8s.io/fstype"
LUKS = {"encryption": "luks2", FS_TYPE: "ext4"}
SIZE = 64 * MIB
STAGING = "/kubelet/staging"


@pytest.fixture
def rig() -> Rig:
    """Start a driver."""
    rig = Rig("loops=image:/pools/loops.img,size=4Gi")
    rig.start()
    rig.host.make_dirs("/keys")
    return rig


def create(rig: Rig, name: str = "data", parameters: dict[str, str] | None = None, **options: bool) -> VolumeRecord:
    """Make a volume."""
    view = rig.volumes.create(request(name, SIZE, parameters or LUKS, **options), PATIENCE_S)
    assert view.record is not None
    return view.record


def stage(rig: Rig, name: str = "data", given: GivenKeys = NONE_GIVEN) -> str:
    """Stage it, and return where."""
    path = f"{STAGING}-{name}"
    rig.host.make_dirs(path)
    rig.publisher.stage(name, path, capability(), PATIENCE_S, given)
    return path


def test_the_user_gets_what_was_asked_for(rig: Rig) -> None:
    record = create(rig)
    image = rig.host.stat(rig.pool_of("data").layout.image(record.id))
    assert image is not None
    assert (record.size, image.size, image.allocated) == (SIZE, SIZE + HEADER, SIZE + HEADER)
    path = stage(rig, given=key())
    assert rig.host.walk(path, "test").mount.filesystem.grown == SIZE


@pytest.mark.parametrize("given", [None, "", "\n", "x" * (MAX_KEY + 1)])
def test_no_key_nothing_done(rig: Rig, given: str | None) -> None:
    before = create(rig)
    with pytest.raises(Unauthenticated):
        stage(rig, given=NONE_GIVEN if given is None else key(given))
    assert rig.volumes.get("data").record == before
    assert len(rig.host.attached) == 1
    assert rig.host.stat(f"{STAGING}-data") is not None


def test_the_wrong_key(rig: Rig) -> None:
    create(rig)
    path = stage(rig, given=key())
    rig.host.replace_file(f"{path}/marker", b"data")
    rig.publisher.unstage("data", path, PATIENCE_S)
    before = rig.volumes.get("data").record
    with pytest.raises(Unauthenticated, match="not its key; nothing has been changed"):
        stage(rig, given=key("wrong"))
    assert (rig.volumes.get("data").record, rig.host.mapped, len(rig.host.attached)) == (before, {}, 1)
    assert rig.host.read_file(f"{stage(rig, given=key())}/marker") == b"data"


@pytest.mark.parametrize("kind", ["filesystem", "block"])
def test_an_opening_that_was_cut_short(rig: Rig, kind: str) -> None:
    """A cryptsetup that is killed leaves a device with its name, and nothing behind it."""
    block = kind == "block"
    create(rig, block=block)
    how, path = capability(block=block), f"{STAGING}-data"
    rig.host.make_dirs(path)
    rig.publisher.stage("data", path, how, PATIENCE_S, key())
    for again in ("stage", "publish", "unstage"):
        rig.publisher.unstage("data", path, PATIENCE_S)
        rig.host.fail("open_encrypted.end", errno.EINTR)
        with pytest.raises(SyscallFailed):
            rig.publisher.stage("data", path, how, PATIENCE_S, key())
        assert [one.live for one in rig.host.mapped.values()] == [False]
        if again == "stage":
            rig.publisher.stage("data", path, how, PATIENCE_S, key())
        if again == "publish":
            rig.publisher.publish("data", (path, "/kubelet/target"), how, PATIENCE_S, key(), read_only=False)
            rig.publisher.unpublish("data", "/kubelet/target", PATIENCE_S)
        assert [one.live for one in rig.host.mapped.values()] == [again != "unstage"]
    rig.publisher.unstage("data", path, PATIENCE_S)
    assert (rig.host.mapped, len(rig.host.attached)) == ({}, 1)
    rig.volumes.delete("data", PATIENCE_S)


def test_what_is_refused_later_leaves_nothing_open(rig: Rig) -> None:
    create(rig)
    path = stage(rig, given=key())
    rig.publisher.unstage("data", path, PATIENCE_S)
    image = rig.host.walk(rig.pool_of("data").layout.image(VolumeId("data")), "test").node
    assert image.luks is not None
    image.luks.inside.held = None
    with pytest.raises(FailedPrecondition, match="nothing is found on it now"):
        stage(rig, given=key())
    assert not rig.host.mapped


def test_growing_takes_the_key(rig: Rig) -> None:
    create(rig)
    path = stage(rig, given=key())
    larger = request("data", 2 * SIZE, {}).capacity
    rig.sizes.expand("data", larger, None, PATIENCE_S)
    for wrong in (NONE_GIVEN, key("wrong")):
        with pytest.raises(Unauthenticated):
            rig.sizes.expand_on_node("data", path, larger, None, PATIENCE_S, wrong)
        assert rig.host.walk(path, "test").mount.filesystem.grown == SIZE
    rig.sizes.expand_on_node("data", path, larger, None, PATIENCE_S, key())
    assert rig.host.walk(path, "test").mount.filesystem.grown == 2 * SIZE
    rig.sizes.expand_on_node("data", path, larger, None, PATIENCE_S)  # again, when nothing is left to do


@pytest.mark.parametrize("filesystem", ["ext4", "btrfs"])
def test_staging_that_was_cut_short_grows_it_all_the_same(rig: Rig, filesystem: str) -> None:
    """It may be open by then, and mounted nowhere."""
    size = 4 * SIZE
    rig.volumes.create(request("data", size, {**LUKS, FS_TYPE: filesystem}), PATIENCE_S)
    path, done, number = stage(rig, given=key()), False, 0
    while not done:
        rig.publisher.unstage("data", path, PATIENCE_S)
        size, number = size + SIZE, number + 1
        rig.sizes.expand("data", request("data", size, {}).capacity, None, PATIENCE_S)
        rig.die_at_point(number)
        done = rig.acknowledged(lambda: stage(rig, given=key()))
        rig.calm()
        stage(rig, given=key())
        assert rig.host.walk(path, "test").mount.filesystem.grown == size, f"point {number}"
    assert number > 5


def test_a_node_without_dm_crypt(rig: Rig) -> None:
    create(rig)
    rig.host.no_encryption = "the kernel has no dm-crypt"
    rig.crash()
    with pytest.raises(ResourceExhausted, match="cannot encrypt: the kernel has no dm-crypt"):
        create(rig, "other")
    with pytest.raises(FailedPrecondition, match="the kernel has no dm-crypt"):
        stage(rig, given=key())
    assert rig.volumes.capacity(request("", 0, LUKS)).available == 0


def test_a_directory_cannot_be_encrypted(rig: Rig) -> None:
    with pytest.raises(InvalidArgument, match="use backend: loopfile"):
        create(rig, parameters={"backend": "directory", "encryption": "luks2"})


@pytest.mark.parametrize("block", [False, True])
def test_pods_go_though_their_disk_is_gone(rig: Rig, *, block: bool) -> None:
    """As far as the kernel's tables tell: neither mount nor open device keeps the disk from coming back."""
    name, path = "data", f"{STAGING}-data"
    create(rig, name, {"encryption": "luks2"} if block else None, block=block)
    rig.host.make_dirs(path)
    wanted = capability(block=block)
    rig.publisher.stage(name, path, wanted, PATIENCE_S, key())
    rig.publisher.publish(name, (path, "/kubelet/target"), wanted, PATIENCE_S, read_only=False)
    (pool,) = rig.pools.all()
    rig.pools._open.clear()
    rig.pools._missing[pool.spec.name] = "its disk is gone"
    rig.publisher.unpublish(name, "/kubelet/target", PATIENCE_S)
    rig.publisher.unstage(name, path, PATIENCE_S)
    assert rig.host.stat("/kubelet/target") is None
    assert not [mount for mount in rig.host.mounts("/dev/dm-") if mount.point.startswith("/kubelet")]
    assert bool(rig.host.mapped) == block, (
        "as a loop device, that of raw block stays until it is unstaged with its disk"
    )


def test_a_full_pool_has_no_room_for_a_copy_of_the_header(rig: Rig) -> None:
    create(rig)
    rig.host.fail("copy_header", errno.ENOSPC)
    path = stage(rig, given=key())
    assert rig.host.stat(rig.pool_of("data").layout.header_copy(VolumeId("data"))) is None
    rig.publisher.unstage("data", path, PATIENCE_S)
    stage(rig, given=key())
    assert rig.host.stat(rig.pool_of("data").layout.header_copy(VolumeId("data"))) is not None


# --- copies


def copy(rig: Rig, name: str, source: str, parameters: dict[str, str]) -> VolumeRecord:
    """Make a volume from a snapshot."""
    asked = request(name, SIZE, parameters)
    asked = replace(asked, source=ContentSource(kind=SourceKind.SNAPSHOT, id=source))
    record = rig.volumes.create(asked, PATIENCE_S).record
    assert record is not None
    return record


def test_a_copy_has_the_key_of_its_source(rig: Rig) -> None:
    create(rig)
    path = stage(rig, given=key())
    rig.host.replace_file(f"{path}/marker", b"data")
    rig.snapshots.create(SnapshotRequest(name="daily", source="data"), PATIENCE_S)
    copied = copy(rig, "restored", "daily", {**LUKS, "keyProvider": "exec"})
    assert copied.encryption is not None
    assert (copied.encryption.state, copied.encryption.provider) == (FormatState.FORMATTED, "exec")
    rig.host.key_programs["/key-program"] = lambda _question: (0, b"wrong\n", "")
    with pytest.raises(Unauthenticated):
        stage(rig, "restored")
    rig.host.key_programs["/key-program"] = lambda _question: (0, b"correct horse\n", "")
    assert rig.host.read_file(f"{stage(rig, 'restored')}/marker") == b"data"
    assert len(rig.host.mapped) == 2


def test_neither_becomes_the_other(rig: Rig) -> None:
    create(rig)
    create(rig, "plain", {FS_TYPE: "ext4"})
    for name in ("data", "plain"):
        rig.snapshots.create(SnapshotRequest(name=f"of-{name}", source=name), PATIENCE_S)
    with pytest.raises(InvalidArgument, match="the source is encrypted"):
        copy(rig, "a", "of-data", {FS_TYPE: "ext4"})
    with pytest.raises(InvalidArgument, match="the source is not encrypted"):
        copy(rig, "b", "of-plain", LUKS)
    with pytest.raises(InvalidArgument, match="the source is encrypted with cipher"):
        copy(rig, "c", "of-data", {**LUKS, "cipher": Cipher.ADIANTUM})


def test_another_encryption_is_another_volume(rig: Rig) -> None:
    create(rig)
    with pytest.raises(AlreadyExists):
        create(rig, parameters={**LUKS, "encryptionDiscard": "yes"})


# --- the end


def headers(rig: Rig) -> int:
    """Count the headers there are anywhere in the pool, copies too."""
    (pool,) = rig.pools.all()
    root = rig.host.walk(pool.root, "test").node
    return sum(node.luks is not None for node in root.below())


def test_every_header_is_erased(rig: Rig) -> None:
    for name in ("data", "logs"):
        create(rig, name)
        rig.publisher.unstage(name, stage(rig, name, key()), PATIENCE_S)
    rig.snapshots.create(SnapshotRequest(name="daily", source="data"), PATIENCE_S)
    rig.groups.create(GroupRequest(name="both", sources=("data", "logs")), PATIENCE_S)
    assert headers(rig) == 7
    ends: list[tuple[int, Callable[[], None]]] = [
        (5, partial(rig.volumes.delete, "data", PATIENCE_S)),
        (4, partial(rig.snapshots.delete, "daily", PATIENCE_S)),
        (2, partial(rig.groups.delete, "both", (), PATIENCE_S)),
        (0, partial(rig.volumes.delete, "logs", PATIENCE_S)),
    ]
    for left, end in ends:
        end()
        assert headers(rig) == left, "it is erased before the answer, not when its blocks are freed"
    rig.sweeper.drain()


def test_what_was_cut_short_is_erased_before_it_is_removed(rig: Rig) -> None:
    create(rig)
    rig.publisher.unstage("data", stage(rig, given=key()), PATIENCE_S)
    rig.die_at_point(2)
    assert not rig.acknowledged(lambda: rig.volumes.delete("data", PATIENCE_S))
    assert headers(rig) == 2
    before = rig.host.counts["erase_header"]
    rig.sweeper.drain()
    assert (headers(rig), rig.host.counts["erase_header"]) == (0, before + 2)


# --- a lost header


def test_a_lost_header_comes_back(rig: Rig) -> None:
    create(rig)
    path = stage(rig, given=key())
    rig.host.replace_file(f"{path}/marker", b"data")
    rig.publisher.unstage("data", path, PATIENCE_S)
    layout = rig.pool_of("data").layout
    rig.host.walk(layout.image(VolumeId("data")), "test").node.luks = None
    with pytest.raises(FailedPrecondition, match="nothing is found on it now"):
        stage(rig, given=key())
    rig.pools.close()
    with ExitStack() as held:
        (spec,) = rig.specs
        place = find(rig.host, spec, RUN_DIR, held, to_mend=True)
        checker = Checker(rig.host, [place], 0)
        (finding,) = [one for one in checker.check().findings if one.wrong]
        assert "puts back the copy of its header" in finding.fix
        report = checker.repair()
        assert [one.found for one in report.mended] == [finding.found]
        assert not [one for one in report.findings if one.wrong]
    rig.crash()
    assert rig.host.read_file(f"{stage(rig, given=key())}/marker") == b"data"


# --- who has the key


def test_a_file(rig: Rig) -> None:
    create(rig, parameters={**LUKS, "keyProvider": "file", "keyName": "fast.key"})
    with pytest.raises(Unauthenticated, match=r"/keys/fast\.key"):
        stage(rig)
    rig.host.replace_file("/keys/fast.key", b"correct horse\n")
    rig.publisher.unstage("data", stage(rig), PATIENCE_S)
    rig.host.make_link("/keys/2.key", "/keys/fast.key")  # as in a mounted Secret
    create(rig, "linked", {**LUKS, "keyProvider": "file", "keyName": "2.key"})
    stage(rig, "linked")


def test_a_program(rig: Rig) -> None:
    asked: list[bytes] = []

    def answer(question: bytes) -> tuple[int, bytes, str]:
        asked.append(question)
        return 0, b"correct horse\n", ""

    create(rig, parameters={**LUKS, "keyProvider": "exec", "keyName": "team-a"})
    with pytest.raises(Unavailable, match="gives no answer"):
        stage(rig)
    rig.host.key_programs["/key-program"] = answer
    path = stage(rig)
    larger = request("data", 2 * SIZE, {}).capacity
    rig.sizes.expand("data", larger, None, PATIENCE_S)
    rig.sizes.expand_on_node("data", path, larger, None, PATIENCE_S)
    expected = {"version": 1, "volume": "data", "name": "data", "keyName": "team-a", "labels": {}}
    assert [json.loads(one) for one in asked] == [{**expected, "action": action} for action in ("open", "grow")]


@pytest.mark.parametrize(
    ("status", "kind", "says"),
    [
        (2, Unauthenticated, "no key for it: denied"),
        (1, Unavailable, "status 1: denied"),
        (0, Unauthenticated, "empty"),
    ],
)
def test_a_program_that_gives_none(rig: Rig, status: int, kind: type[DriverError], says: str) -> None:
    create(rig, parameters={**LUKS, "keyProvider": "exec"})
    rig.host.key_programs["/key-program"] = lambda _question: (status, b"" if not status else b"hunter2", "denied")
    with pytest.raises(kind, match=says) as caught:
        stage(rig)
    assert "hunter2" not in str(caught.value)
