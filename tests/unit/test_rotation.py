"""Another key for an encrypted volume, by hand and on the way; at every instant a key opens it."""

from __future__ import annotations

import errno
import json
from functools import partial
from typing import TYPE_CHECKING

import pytest

from csi_local.engine.keys import NONE_GIVEN
from csi_local.model.errors import Busy, FailedPrecondition, InvalidArgument, SyscallFailed, Unauthenticated
from csi_local.model.secret import Secret
from csi_local.model.snapshot import SnapshotRequest
from csi_local.model.volume import VolumeId
from tests.unit.rig import PATIENCE_S, Rig, key, request
from tests.unit.test_encryption import FS_TYPE, LUKS, SIZE, STAGING, copy, create, stage

if TYPE_CHECKING:
    from collections.abc import Callable

OLD, NEW = "correct horse", "battery staple"
LEAST_MOMENTS = 10


@pytest.fixture
def rig() -> Rig:
    """Start a driver."""
    rig = Rig("loops=image:/pools/loops.img,size=4Gi")
    rig.start()
    rig.host.make_dirs("/keys")
    return rig


def rotate(rig: Rig, old: str, new: str) -> None:
    """Do what ``csi-local rotate-key`` does."""
    with Secret(old.encode()) as before, Secret(new.encode()) as after:
        rig.rotator.rotate("data", before, after)


def keys_of(rig: Rig, name: str = "data") -> list[list[bytes]]:
    """Return the keys that open the volume, and those that would after its header was restored from the copy."""
    layout = rig.pool_of(name).layout
    paths = (layout.image(VolumeId(name)), layout.header_copy(VolumeId(name)))
    there = [rig.host.walk(path, "test").node.luks for path in paths if rig.host.stat(path) is not None]
    return [luks.keys for luks in there if luks is not None]


def both(key: str) -> list[list[bytes]]:
    """Say that one key opens the volume, and its header from the copy."""
    return [[key.encode()], [key.encode()]]


def test_another_key_while_it_is_used(rig: Rig) -> None:
    create(rig)
    with pytest.raises(FailedPrecondition, match="was never staged"):
        rotate(rig, OLD, NEW)
    path = stage(rig, given=key())
    rotate(rig, OLD, NEW)
    assert keys_of(rig) == both(NEW)
    rotate(rig, OLD, NEW)  # again: nothing is left to do
    rig.publisher.unstage("data", path, PATIENCE_S)
    with pytest.raises(Unauthenticated):
        stage(rig, given=key())
    stage(rig, given=key(NEW))


def test_a_key_is_not_given_up_for_none(rig: Rig) -> None:
    create(rig)
    stage(rig, given=key())
    before = keys_of(rig)
    with pytest.raises(InvalidArgument, match="the same"):
        rotate(rig, OLD, OLD)
    with pytest.raises(Unauthenticated, match="neither of the two"):
        rotate(rig, "wrong", NEW)
    assert keys_of(rig) == before


def test_without_room_for_the_copy_of_the_header_it_is_made_later(rig: Rig) -> None:
    create(rig)
    path = stage(rig, given=key())
    rig.host.fail("copy_header", errno.ENOSPC)
    rotate(rig, OLD, NEW)
    assert keys_of(rig) == [[NEW.encode()]]
    rig.publisher.unstage("data", path, PATIENCE_S)
    stage(rig, given=key(NEW))
    assert keys_of(rig) == both(NEW)


def cut_short_everywhere(rig: Rig, act: Callable[[str, str], object], prepare: Callable[[], object]) -> int:
    """Die at each moment of a rotation, look, and do it again; return how many moments there were."""
    old, new, moment = OLD, NEW, 0
    while True:
        prepare()
        moment += 1
        rig.host.die(moment)
        done = rig.acknowledged(partial(act, old, new))
        assert {old.encode(), new.encode()} & set(keys_of(rig)[0])
        act(old, new)
        assert keys_of(rig) == both(new)
        old, new = new, old
        if done:
            return moment


def test_a_key_opens_it_wherever_rotation_is_cut_short(rig: Rig) -> None:
    create(rig)
    stage(rig, given=key())
    assert cut_short_everywhere(rig, partial(rotate, rig), lambda: None) > LEAST_MOMENTS


# --- on the way: a request has both keys


def test_the_next_staging_changes_the_key(rig: Rig) -> None:
    create(rig)
    path = stage(rig, given=key(OLD, previous="none yet"))
    rig.host.replace_file(f"{path}/marker", b"data")
    rig.publisher.unstage("data", path, PATIENCE_S)
    with pytest.raises(Unauthenticated):
        stage(rig, given=key(NEW, previous="wrong"))
    assert keys_of(rig) == both(OLD)
    assert rig.host.read_file(f"{stage(rig, given=key(NEW, previous=OLD))}/marker") == b"data"
    assert keys_of(rig) == both(NEW)


@pytest.mark.parametrize("previous", [OLD, "wrong", "", "\n"])
def test_a_previous_key_that_is_none_does_no_harm(rig: Rig, previous: str) -> None:
    create(rig)
    rig.publisher.unstage("data", stage(rig, given=key()), PATIENCE_S)
    before = rig.host.counts["add_key"], rig.host.counts["copy_header"]
    stage(rig, given=key(OLD, previous=previous))
    assert keys_of(rig) == both(OLD)
    assert (rig.host.counts["add_key"], rig.host.counts["copy_header"]) == before


def test_staging_ends_a_rotation_wherever_it_was_cut_short(rig: Rig) -> None:
    create(rig)
    rig.publisher.unstage("data", stage(rig, given=key()), PATIENCE_S)
    moments = cut_short_everywhere(
        rig,
        lambda old, new: stage(rig, given=key(new, previous=old)),
        lambda: rig.publisher.unstage("data", f"{STAGING}-data", PATIENCE_S),
    )
    assert moments > 2 * LEAST_MOMENTS


def test_growing_in_use_changes_it_first(rig: Rig) -> None:
    create(rig)
    path = stage(rig, given=key())
    larger = request("data", 2 * SIZE, {}).capacity
    rig.sizes.expand("data", larger, None, PATIENCE_S)
    with pytest.raises(Unauthenticated):
        rig.sizes.expand_on_node("data", path, larger, None, PATIENCE_S, key(NEW))
    rig.sizes.expand_on_node("data", path, larger, None, PATIENCE_S, key(NEW, previous=OLD))
    assert keys_of(rig) == both(NEW)


def test_what_is_made_from_a_snapshot_follows(rig: Rig) -> None:
    create(rig)
    stage(rig, given=key())
    rig.snapshots.create(SnapshotRequest(name="daily", source="data"), PATIENCE_S)
    rotate(rig, OLD, NEW)
    copy(rig, "restored", "daily", LUKS)
    stage(rig, "restored", key(NEW, previous=OLD))
    assert keys_of(rig, "restored") == both(NEW)


def test_a_lost_header_stays_lost(rig: Rig) -> None:
    create(rig)
    rig.publisher.unstage("data", stage(rig, given=key()), PATIENCE_S)
    rig.host.walk(rig.pool_of("data").layout.image(VolumeId("data")), "test").node.luks = None
    with pytest.raises(FailedPrecondition, match="nothing is found on it now"):
        stage(rig, given=key(NEW, previous=OLD))


# --- when it is asked for


def test_as_whoever_has_the_keys_says(rig: Rig) -> None:
    create(rig)
    rig.rotator.settle("data", key(NEW), PATIENCE_S)  # it gets that one when it is first staged
    stage(rig, given=key())
    with pytest.raises(Unauthenticated, match="nobody has the one before it"):
        rig.rotator.settle("data", key(NEW), PATIENCE_S)
    with pytest.raises(Unauthenticated, match="neither of the two"):
        rig.rotator.settle("data", key(NEW, previous="wrong"), PATIENCE_S)
    with pytest.raises(Unauthenticated, match="'encryptionKey'"):
        rig.rotator.settle("data", NONE_GIVEN, PATIENCE_S)
    assert keys_of(rig) == both(OLD)
    for _ in range(2):
        rig.rotator.settle("data", key(NEW, previous=OLD), PATIENCE_S)
        assert keys_of(rig) == both(NEW)
    rig.rotator.settle("data", key(NEW), PATIENCE_S)


def test_half_a_rotation_is_not_told_to_be_whole(rig: Rig) -> None:
    """Whoever takes the old key out of the Secret too early would never hear that it still opens the volume."""
    create(rig)
    stage(rig, given=key())
    rig.host.fail("remove_key", errno.EIO)
    with pytest.raises(SyscallFailed):
        rig.rotator.settle("data", key(NEW, previous=OLD), PATIENCE_S)
    with pytest.raises(Unauthenticated, match="cut short, so that the key before it still opens it"):
        rig.rotator.settle("data", key(NEW), PATIENCE_S)
    rig.rotator.settle("data", key(NEW, previous=OLD), PATIENCE_S)
    rig.rotator.settle("data", key(NEW), PATIENCE_S)
    assert keys_of(rig) == both(NEW)


def test_not_while_it_is_copied() -> None:
    rig = Rig("loops=image:/pools/loops.img,size=4Gi,fs=ext4")
    rig.start()
    create(rig)
    rig.publisher.unstage("data", stage(rig, given=key()), PATIENCE_S)
    rig.in_background = True
    wanted = SnapshotRequest(name="daily", source="data")
    assert not rig.snapshots.create(wanted, PATIENCE_S).ready
    with pytest.raises(Busy, match="is being copied"):
        rig.rotator.settle("data", key(NEW, previous=OLD), PATIENCE_S)
    assert keys_of(rig) == both(OLD)
    rig.spawned.pop()()
    assert rig.snapshots.create(wanted, PATIENCE_S).ready
    rig.rotator.settle("data", key(NEW, previous=OLD), PATIENCE_S)
    assert keys_of(rig) == both(NEW)


def test_a_volume_that_is_not_encrypted(rig: Rig) -> None:
    create(rig, parameters={FS_TYPE: "ext4"})
    with pytest.raises(FailedPrecondition, match="is not encrypted"):
        rig.rotator.settle("data", key(), PATIENCE_S)


def test_a_file_and_the_one_before_it(rig: Rig) -> None:
    create(rig, parameters={**LUKS, "keyProvider": "file", "keyName": "fast"})
    rig.host.replace_file("/keys/fast", f"{OLD}\n".encode())
    path = stage(rig)
    rig.host.replace_file("/keys/fast.previous", f"{OLD}\n".encode())
    rig.host.replace_file("/keys/fast", f"{NEW}\n".encode())
    rig.publisher.unstage("data", path, PATIENCE_S)
    stage(rig)
    assert keys_of(rig) == both(NEW)


def test_a_program_is_asked_for_the_one_before_it_only_when_it_is_wanted(rig: Rig) -> None:
    asked: list[str] = []
    answers = {"open": OLD, "rotate": OLD, "previous": ""}

    def answer(question: bytes) -> tuple[int, bytes, str]:
        asked.append(json.loads(question)["action"])
        found = answers[asked[-1]]
        return (0, found.encode(), "") if found else (2, b"", "there is none")

    rig.host.key_programs["/key-program"] = answer
    create(rig, parameters={**LUKS, "keyProvider": "exec"})
    stage(rig)
    rig.rotator.settle("data", NONE_GIVEN, PATIENCE_S)
    answers |= {"rotate": NEW, "previous": OLD}
    rig.rotator.settle("data", NONE_GIVEN, PATIENCE_S)
    assert keys_of(rig) == both(NEW)
    assert asked == ["open", "rotate", "previous", "rotate", "previous"]
