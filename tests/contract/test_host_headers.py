"""What the driver may rely on, asked of every host: headers of encrypted images, and their keys.

For this cryptsetup needs no dm-crypt; what does is in `test_host_crypt.py`.
"""

from __future__ import annotations

import errno
import uuid
from typing import TYPE_CHECKING

import pytest

from csi_local.host.crypt import WRONG_KEY
from csi_local.model.errors import CommandFailed
from csi_local.model.quantity import MIB, Bytes
from csi_local.model.secret import Secret
from csi_local.model.volume import HEADER, Encryption
from tests.contract.asking import attach, fails, format_it

if TYPE_CHECKING:
    from tests.contract.conftest import Machine

SIZE = 32 * MIB
KEY, OTHER = b"correct horse", b"battery staple\n"


def formatted(machine: Machine, name: str = "image") -> tuple[Encryption, str]:
    """Return how an image is encrypted with the key, and its path."""
    how, image = Encryption(kdf_memory=Bytes(8 * MIB), uuid=str(uuid.uuid4())), machine.image(name, SIZE + HEADER)
    with attach(machine, image) as loop:
        machine.host.format_encrypted(loop.path, how, Secret(KEY))
    return how, image


def uuid_of(machine: Machine, image: str) -> str | None:
    """Return the UUID of the header that an image has."""
    signature = machine.host.probe(image)
    return None if signature is None else f"{signature.type} {signature.uuid}"


class TestFormat:
    def test_what_is_seen(self, machine: Machine) -> None:
        how, image = formatted(machine)
        assert uuid_of(machine, image) == f"crypto_LUKS {how.uuid}"
        assert machine.host.opens(image, Secret(KEY))

    def test_again_with_the_same_uuid(self, machine: Machine) -> None:
        """What a driver does that died after it."""
        how, image = formatted(machine)
        with attach(machine, image) as loop:
            machine.host.format_encrypted(loop.path, how, Secret(OTHER))
        assert uuid_of(machine, image) == f"crypto_LUKS {how.uuid}"
        assert [machine.host.opens(image, Secret(one)) for one in (KEY, OTHER)] == [False, True]

    def test_too_small(self, machine: Machine) -> None:
        how = Encryption(uuid=str(uuid.uuid4()))
        with attach(machine, machine.image("small", 8 * MIB)) as loop, pytest.raises(CommandFailed):
            machine.host.format_encrypted(loop.path, how, Secret(KEY))


class TestErase:
    def test_no_key_opens_it_any_more(self, machine: Machine) -> None:
        _, image = formatted(machine)
        for _ in range(2):
            machine.host.erase_header(image)
            assert uuid_of(machine, image) is None
            with pytest.raises(CommandFailed):
                machine.host.opens(image, Secret(KEY))

    def test_a_copy_is_another(self, machine: Machine) -> None:
        how, image = formatted(machine)
        machine.host.clone_image(image, f"{machine.root}/copy")
        machine.host.erase_header(f"{machine.root}/copy")
        assert uuid_of(machine, f"{machine.root}/copy") is None
        assert uuid_of(machine, image) == f"crypto_LUKS {how.uuid}"
        assert machine.host.opens(image, Secret(KEY))

    def test_what_is_not_encrypted_is_left(self, machine: Machine) -> None:
        plain = machine.image("plain", SIZE)
        with attach(machine, plain) as loop:
            format_it(machine, loop.path)
        before = uuid_of(machine, plain)
        machine.host.erase_header(plain)
        assert before is not None
        assert uuid_of(machine, plain) == before
        with fails(errno.ENOENT):
            machine.host.erase_header(f"{machine.root}/none")


class TestHeaders:
    def test_a_copy_brings_it_back(self, machine: Machine) -> None:
        _, image = formatted(machine)
        copy = f"{machine.root}/copy"
        for _ in range(2):
            machine.host.copy_header(image, copy)
        machine.host.erase_header(image)
        machine.host.restore_header(copy, image)
        assert machine.host.opens(image, Secret(KEY))
        assert machine.host.opens(copy, Secret(KEY))
        info = machine.host.stat(copy)
        assert info is not None
        assert info.mode == 0o600

    def test_without_one(self, machine: Machine) -> None:
        plain, copy = machine.image("plain", SIZE), f"{machine.root}/copy"
        with fails(errno.EINVAL):
            machine.host.copy_header(plain, copy)
        assert machine.host.stat(copy) is None
        with fails(errno.EINVAL):
            machine.host.restore_header(plain, plain)


class TestKeys:
    def test_another_one(self, machine: Machine) -> None:
        how, image = formatted(machine)
        assert [machine.host.opens(image, Secret(one)) for one in (KEY, OTHER)] == [True, False]
        machine.host.add_key(image, how, Secret(KEY), Secret(OTHER))
        assert [machine.host.opens(image, Secret(one)) for one in (KEY, OTHER)] == [True, True]
        machine.host.remove_key(image, Secret(KEY))
        assert [machine.host.opens(image, Secret(one)) for one in (KEY, OTHER)] == [False, True]

    def test_the_wrong_one(self, machine: Machine) -> None:
        how, image = formatted(machine)
        with pytest.raises(CommandFailed) as caught:
            machine.host.add_key(image, how, Secret(OTHER), Secret(OTHER))
        assert caught.value.status == WRONG_KEY
        with pytest.raises(CommandFailed) as caught:
            machine.host.remove_key(image, Secret(OTHER))
        assert caught.value.status == WRONG_KEY
        assert machine.host.opens(image, Secret(KEY))
