"""The StorageClass parameters of encryption: bounded, so that no class can weaken a volume or take a node's memory."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from csi_local.model.errors import InvalidArgument
from csi_local.model.pool import one_of
from csi_local.model.quantity import GIB, MIB, Bytes, format_bytes, parse_bytes
from csi_local.model.volume import Cipher, Encryption, KeyProvider

NAMES = (
    "cipher",
    "encryption",
    "encryptionDiscard",
    "encryptionSectorSize",
    "kdfMemory",
    "kdfPasses",
    "keyName",
    "keyProvider",
    "keySize",
)
"""Every parameter of encryption."""

LUKS2 = "luks2"
_CHOICES = ("none", LUKS2)
_KEY_SIZES = {Cipher.AES_XTS: ("512", "256"), Cipher.ADIANTUM: ("256",)}
_SECTOR_SIZES = ("4096", "512")
_KEY_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_KDF_MEMORY = (Bytes(8 * MIB), Bytes(GIB))
_KDF_PASSES = (4, 100)
"""argon2id has at least four in LUKS2 (cryptsetup-luksFormat(8))."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KeySources:
    """What this node's configuration says of keys.

    Attributes:
        directory: where ``keyProvider: file`` finds them, each under its ``keyName``.
        program: what ``keyProvider: exec`` asks; "" for none.
    """

    directory: str = ""
    program: str = ""


def parse_encryption(given: Mapping[str, str]) -> Encryption | None:
    """What a class says of encryption; None where its volumes are not encrypted.

    Raises:
        InvalidArgument: a value does not exist, is out of bounds, or makes no sense without the others.
    """
    kind = _choice(given, "encryption", _CHOICES)
    if kind != LUKS2:
        if vain := sorted(set(given) & set(NAMES) - {"encryption"}):
            raise InvalidArgument(f"{vain[0]} makes no sense without encryption: {LUKS2}")
        return None
    cipher = one_of(Cipher, given.get("cipher", Cipher.AES_XTS), "cipher")
    provider = one_of(KeyProvider, given.get("keyProvider", KeyProvider.SECRET), "keyProvider")
    return Encryption(
        cipher=cipher,
        key_bits=int(_choice(given, "keySize", _KEY_SIZES[cipher])),
        sector_size=int(_choice(given, "encryptionSectorSize", _SECTOR_SIZES)),
        kdf_memory=_kdf_memory(given.get("kdfMemory", "32Mi")),
        kdf_passes=_kdf_passes(given.get("kdfPasses", "4")),
        discard=_choice(given, "encryptionDiscard", ("no", "yes")) == "yes",
        provider=provider,
        key_name=_key_name(given.get("keyName", ""), provider),
    )


def _choice(given: Mapping[str, str], name: str, allowed: tuple[str, ...]) -> str:
    """The value of a parameter; the first of those allowed where it is not given."""
    value = given.get(name, allowed[0])
    if value not in allowed:
        raise InvalidArgument(f"{name} {value!r} does not exist; there are {', '.join(allowed)}")
    return value


def _kdf_memory(text: str) -> Bytes:
    memory, (least, most) = parse_bytes(text), _KDF_MEMORY
    if not least <= memory <= most:
        raise InvalidArgument(f"kdfMemory {text} must be between {format_bytes(least)} and {format_bytes(most)}")
    return memory


def _kdf_passes(text: str) -> int:
    least, most = _KDF_PASSES
    if not re.fullmatch(r"[0-9]{1,3}", text) or not least <= int(text) <= most:
        raise InvalidArgument(f"kdfPasses {text!r} must be a number from {least} to {most}")
    return int(text)


def _key_name(text: str, provider: KeyProvider) -> str:
    if text and not _KEY_NAME.fullmatch(text):
        raise InvalidArgument(f"keyName {text!r} must be at most 63 letters, digits, '-', '_' and '.'")
    if not text and provider is KeyProvider.FILE:
        raise InvalidArgument("keyProvider: file needs a keyName, the name of the key's file on the nodes")
    return text
