"""What the driver may rely on, asked of every host: encrypted devices. Real ones are for `make test-kernel`."""

from __future__ import annotations

import errno
import uuid
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from csi_local.host.crypt import WRONG_KEY
from csi_local.model.errors import CommandFailed
from csi_local.model.quantity import MIB, Bytes
from csi_local.model.secret import Secret
from csi_local.model.volume import HEADER, Cipher, Encryption, Filesystem
from tests.contract.asking import NONE, attach, fails, format_it
from tests.contract.conftest import machine_with

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from csi_local.model.observed import LoopDevice, MappedDevice
    from tests.contract.conftest import Machine

SIZE = 32 * MIB
QUICK = Encryption(kdf_memory=Bytes(8 * MIB))
KEY, OTHER = b"correct horse", b"battery staple\n"


@pytest.fixture(
    scope="module",
    params=[pytest.param(False, id="fake-xfs"), pytest.param(True, id="linux-xfs", marks=pytest.mark.uml)],
)
def scratch(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """Give a machine with dm-crypt."""
    folder: Path | None = tmp_path_factory.mktemp("host") if request.param else None
    with machine_with(Filesystem.XFS, folder) as made:
        yield made


def encryption(**how: object) -> Encryption:
    """Return one that is quick, with a header of its own."""
    values = {"kdf_memory": QUICK.kdf_memory, "uuid": str(uuid.uuid4()), **how}
    return Encryption(**values)  # type: ignore[arg-type]


@contextmanager
def formatted(machine: Machine, how: Encryption, *, name: str = "image") -> Iterator[LoopDevice]:
    """Attach an image that is encrypted with the key."""
    with attach(machine, machine.image(name, SIZE + HEADER)) as loop:
        machine.host.format_encrypted(loop.path, how, Secret(KEY))
        yield loop


@contextmanager
def opened(machine: Machine, how: Encryption | None = None, *, discard: bool = False) -> Iterator[MappedDevice]:
    """Open one."""
    how = how or encryption()
    with formatted(machine, how) as loop:
        device = machine.host.open_encrypted(loop.path, name_of(how), Secret(KEY), discard=discard)
        try:
            yield device
        finally:
            machine.host.close_encrypted(device)


def name_of(how: Encryption) -> str:
    """Return a name for a device, which all drivers of a kernel share."""
    return f"csi-local-test-{how.uuid}"


class TestFormat:
    @pytest.mark.parametrize(
        "how",
        [{"key_bits": 256, "sector_size": 512}, {"cipher": Cipher.ADIANTUM, "key_bits": 256}],
        ids=["aes-128", "adiantum"],
    )
    def test_every_way(self, machine: Machine, how: dict[str, object]) -> None:
        chosen = encryption(**how)
        with opened(machine, chosen) as device:
            assert machine.host.device_size(device.path) == SIZE
            signature = machine.host.probe(f"{machine.root}/image")
            assert signature is not None
            assert (signature.type, signature.uuid) == ("crypto_LUKS", chosen.uuid)

    def test_again_with_the_same_uuid(self, machine: Machine) -> None:
        """What a driver does that died after it."""
        how = encryption()
        with formatted(machine, how) as loop:
            machine.host.format_encrypted(loop.path, how, Secret(OTHER))
            device = machine.host.open_encrypted(loop.path, name_of(how), Secret(OTHER), discard=False)
            machine.host.close_encrypted(device)

    def test_too_small(self, machine: Machine) -> None:
        with attach(machine, machine.image("small", 8 * MIB)) as loop, pytest.raises(CommandFailed):
            machine.host.format_encrypted(loop.path, encryption(), Secret(KEY))


class TestOpen:
    def test_what_is_seen(self, machine: Machine) -> None:
        how = encryption()
        with formatted(machine, how) as loop:
            device = machine.host.open_encrypted(loop.path, name_of(how), Secret(KEY), discard=False)
            assert device.name == name_of(how)
            assert device.uuid == f"CRYPT-LUKS2-{how.uuid.replace('-', '')}-{device.name}"
            assert (device.below, device.read_only) == ((loop.device,), False)
            there = machine.host.stat(device.path)
            assert there is not None
            assert there.special == device.device
            assert machine.host.mapped_over(loop.device) == [device]
            assert device in machine.host.all_mapped()
            machine.host.close_encrypted(device)
            assert machine.host.mapped_over(loop.device) == []
            assert device not in machine.host.all_mapped()
            machine.host.close_encrypted(device)

    def test_the_loop_device_stays_as_long(self, machine: Machine) -> None:
        how = encryption()
        with formatted(machine, how) as loop:
            device = machine.host.open_encrypted(loop.path, name_of(how), Secret(KEY), discard=False)
        assert machine.host.loops(f"{machine.root}/image") == [loop]
        machine.host.close_encrypted(device)
        assert machine.host.loops(f"{machine.root}/image") == []

    def test_the_wrong_key(self, machine: Machine) -> None:
        how = encryption()
        with formatted(machine, how) as loop:
            for wrong in (OTHER, KEY + b"\n"):
                with pytest.raises(CommandFailed) as caught:
                    machine.host.open_encrypted(loop.path, name_of(how), Secret(wrong), discard=False)
                assert caught.value.status == WRONG_KEY
                assert wrong.decode() not in str(caught.value)
            assert machine.host.mapped_over(loop.device) == []

    def test_what_is_not_encrypted(self, machine: Machine) -> None:
        with attach(machine, machine.image("plain", SIZE)) as loop:
            with pytest.raises(CommandFailed) as caught:
                machine.host.open_encrypted(loop.path, "csi-local-test-plain", Secret(KEY), discard=False)
            assert caught.value.status != WRONG_KEY

    def test_twice(self, machine: Machine) -> None:
        how = encryption()
        with opened(machine, how) as device, attach(machine, f"{machine.root}/image") as loop:
            for name in (device.name, "csi-local-test-second"):
                with fails(errno.EBUSY):
                    machine.host.open_encrypted(loop.path, name, Secret(KEY), discard=False)

    def test_two_copies_at_once(self, machine: Machine) -> None:
        """A clone keeps its header, UUID and all."""
        how = encryption()
        with opened(machine, how) as first:
            machine.host.clone_image(f"{machine.root}/image", f"{machine.root}/copy")
            with attach(machine, f"{machine.root}/copy") as loop:
                second = machine.host.open_encrypted(loop.path, "csi-local-test-copy", Secret(KEY), discard=False)
                assert second.device != first.device
                machine.host.close_encrypted(second)

    def test_in_use_it_is_busy(self, machine: Machine) -> None:
        point = machine.folder("point", outside=True)
        with opened(machine) as device:
            format_it(machine, device.path, zeroed=False)
            machine.host.mount(device.path, point, "ext4", NONE, ())
            with fails(errno.EBUSY):
                machine.host.close_encrypted(device)
            assert machine.host.device_at(point) == device.device
            (mount,) = machine.host.mounts(device.path)
            assert (mount.source, mount.point) == (device.path, point)
            machine.host.unmount(point)

    def test_a_read_only_loop_device_over_it(self, machine: Machine) -> None:
        with opened(machine) as device:
            with machine.host.attach(device.path, sector_size=0, keep=True, read_only=True) as reader:
                assert machine.host.loops(device.path) == [reader]
                assert machine.host.device_size(reader.path) == SIZE
            with fails(errno.EBUSY):
                machine.host.close_encrypted(device)
            machine.host.detach(reader)
            assert machine.host.loops(device.path) == []


class TestResize:
    def test_with_the_key_and_without(self, machine: Machine) -> None:
        with opened(machine) as device, attach(machine, f"{machine.root}/image") as loop:
            machine.host.resize_image(f"{machine.root}/image", Bytes(2 * SIZE + HEADER), thick=False)
            machine.host.refresh(loop)
            with pytest.raises(CommandFailed) as caught:
                machine.host.resize_encrypted(device, Secret(OTHER))
            assert caught.value.status == WRONG_KEY
            assert machine.host.device_size(device.path) == SIZE
            assert machine.host.resize_encrypted(device, Secret(KEY)) == 2 * SIZE
            assert machine.host.device_size(device.path) == 2 * SIZE


class TestErase:
    def test_no_key_opens_it_any_more(self, machine: Machine) -> None:
        how = encryption()
        with formatted(machine, how) as loop:
            machine.host.erase_header(f"{machine.root}/image")
            with pytest.raises(CommandFailed):
                machine.host.open_encrypted(loop.path, name_of(how), Secret(KEY), discard=False)
        assert machine.host.probe(f"{machine.root}/image") is None
        machine.host.erase_header(f"{machine.root}/image")

    def test_a_copy_is_another(self, machine: Machine) -> None:
        how = encryption()
        with formatted(machine, how):
            machine.host.clone_image(f"{machine.root}/image", f"{machine.root}/copy")
            machine.host.erase_header(f"{machine.root}/copy")
            assert machine.host.probe(f"{machine.root}/copy") is None
            signature = machine.host.probe(f"{machine.root}/image")
            assert signature is not None
            assert signature.uuid == how.uuid

    def test_what_is_not_encrypted_is_left(self, machine: Machine) -> None:
        with attach(machine, machine.image("plain", SIZE)) as loop:
            format_it(machine, loop.path)
        machine.host.erase_header(f"{machine.root}/plain")
        signature = machine.host.probe(f"{machine.root}/plain")
        assert signature is not None
        assert signature.type == "ext4"
        with fails(errno.ENOENT):
            machine.host.erase_header(f"{machine.root}/none")


def test_this_machine_says_that_it_can(machine: Machine) -> None:
    able = machine.host.abilities(machine.root)
    assert (able.encryption, able.encryption_reason) == (True, "")
