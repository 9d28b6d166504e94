"""Encrypted devices, in memory. What is inside one is a filesystem of its own, held behind the header."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

from csi_local.host.crypt import WRONG_KEY
from csi_local.model.errors import CommandFailed
from csi_local.model.observed import FileKind
from csi_local.model.quantity import Bytes
from csi_local.model.secret import Secret
from csi_local.model.volume import HEADER
from tests.fake.blocks import FakeBlocks
from tests.fake.calls import call
from tests.fake.kernel import MAPPER_MAJOR, Mapped
from tests.fake.tree import FakeLuks, Node, failed

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from csi_local.model.observed import MappedDevice
    from csi_local.model.volume import Encryption


class FakeCrypt(FakeBlocks):
    """Implements `host.api.Crypt`.

    Attributes:
        no_encryption: why this machine cannot encrypt, or "".
        key_programs: what each of an administrator's programs does.
    """

    no_encryption: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.key_programs: dict[str, Callable[[bytes], tuple[int, bytes, str]]] = {}

    @call
    def format_encrypted(self, device: str, encryption: Encryption, key: Secret) -> None:
        """See `Crypt.format_encrypted`."""
        loop = self._attached(device, f"luksFormat {device}")
        node = loop.image.node
        if loop.size <= HEADER:
            raise CommandFailed(f"luksFormat {device}: the device is too small", 1)
        inside = Node(FileKind.OTHER, node.number, node.filesystem, 0o600, parent=node)
        node.luks = FakeLuks(encryption.uuid, [key.reveal()], inside, whole=False)
        node.held = None
        self.step("format_encrypted.end")
        node.luks.whole = True

    @call
    def open_encrypted(self, device: str, name: str, key: Secret, *, discard: bool) -> MappedDevice:
        """See `Crypt.open_encrypted`."""
        loop = self._attached(device, f"open {device}")
        luks = loop.image.node.luks
        if luks is None or not luks.whole:
            raise CommandFailed(f"open {device}: it is not a valid LUKS device", 1)
        if any(one.name == name or one.below.image.node is loop.image.node for one in self.mapped.values()):
            raise failed(f"open {device}", errno.EBUSY)
        if key.reveal() not in luks.keys:
            raise CommandFailed(f"open {device}: no key available with this passphrase", WRONG_KEY)
        number = next(n for n in range(len(self.mapped) + 1) if n not in self.mapped)
        self.make_node(f"dm-{number}", os.makedev(MAPPER_MAJOR, number))
        luks.discard = discard
        mapped = self.mapped[number] = Mapped(number, name, luks, loop, loop.size - HEADER, live=False)
        self.step("open_encrypted.end")
        mapped.live = True
        luks.inside.size = mapped.size
        return mapped.shown()

    @call
    def close_encrypted(self, device: MappedDevice) -> None:
        """See `Crypt.close_encrypted`."""
        mapped = self.mapped.get(os.minor(device.device))
        if mapped is None or mapped.shown() != device:
            return
        readers = [loop for loop in self.attached.values() if loop.image.node.special == mapped.device]
        if mapped in self.carriers.values() or readers:
            raise failed(f"close {device.name}", errno.EBUSY)
        del self.mapped[mapped.number]
        self.release_loops()

    @call
    def resize_encrypted(self, device: MappedDevice, key: Secret) -> Bytes:
        """See `Crypt.resize_encrypted`."""
        mapped = self.mapped[os.minor(device.device)]
        if key.reveal() not in mapped.luks.keys:
            raise CommandFailed(f"resize {device.name}: no key available with this passphrase", WRONG_KEY)
        mapped.size = mapped.luks.inside.size = mapped.below.size - HEADER
        return Bytes(mapped.size)

    @call
    def erase_header(self, path: str, *, encrypted: bool = False) -> None:  # noqa: ARG002 (a header is whole here)
        """See `Crypt.erase_header`."""
        place = self.walk(path, f"open {path}")
        self._check_file(place, path, write=True)
        if place.node.luks is not None:
            place.node.luks.keys.clear()
            self.step("erase_header.slots")
            place.node.luks = None

    @call
    def copy_header(self, source: str, target: str) -> None:
        """See `Crypt.copy_header`."""
        luks = self.walk(source, f"open {source}").node.luks
        if luks is None:
            raise failed(f"copy the header of {source}", errno.EINVAL)
        self.replace_file(target, b"header")
        self.walk(target, f"open {target}").node.luks = FakeLuks(luks.uuid, list(luks.keys), luks.inside)

    @call
    def restore_header(self, source: str, target: str) -> None:
        """See `Crypt.restore_header`."""
        luks, node = self.walk(source, f"open {source}").node.luks, self.walk(target, f"open {target}").node
        if luks is None:
            raise failed(f"restore the header of {target}", errno.EINVAL)
        node.luks = FakeLuks(luks.uuid, list(luks.keys), luks.inside)

    def _header(self, path: str) -> FakeLuks:
        luks = self.walk(path, f"open {path}").node.luks
        if luks is None or not luks.whole:
            raise CommandFailed(f"open {path}: it is not a valid LUKS device", 1)
        return luks

    @call
    def opens(self, path: str, key: Secret) -> bool:
        """See `Crypt.opens`."""
        return key.reveal() in self._header(path).keys

    @call
    def add_key(self, path: str, encryption: Encryption, key: Secret, new: Secret) -> None:
        """See `Crypt.add_key`."""
        if key.reveal() not in self._header(path).keys:
            raise CommandFailed(f"luksAddKey {path}: no key available with this passphrase", WRONG_KEY)
        assert encryption.kdf_memory
        self._header(path).keys.append(new.reveal())

    @call
    def remove_key(self, path: str, key: Secret) -> None:
        """See `Crypt.remove_key`."""
        if key.reveal() not in self._header(path).keys:
            raise CommandFailed(f"luksRemoveKey {path}: no key available with this passphrase", WRONG_KEY)
        self._header(path).keys.remove(key.reveal())

    @call
    def all_mapped(self) -> Sequence[MappedDevice]:
        """See `Crypt.all_mapped`."""
        return [mapped.shown() for mapped in self.mapped.values()]

    @call
    def mapped_over(self, device: int) -> Sequence[MappedDevice]:
        """See `Crypt.mapped_over`."""
        return [mapped.shown() for mapped in self.mapped.values() if mapped.below.device == device]

    @call
    def ask_for_key(self, program: str, question: bytes) -> tuple[int, Secret, str]:
        """See `Crypt.ask_for_key`."""
        if program not in self.key_programs:
            raise CommandFailed(f"{program} is not there")
        status, answer, complaint = self.key_programs[program](question)
        return status, Secret(answer), complaint
