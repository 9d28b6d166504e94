"""Requests made from the descriptor of the protocol: right, nearly right, wrong, and no messages at all.

Nothing here lists the RPCs or their fields. What a field of a certain name should hold in a right request is in
`SUITABLE`; a field that is not there is left out of right requests, and filled by its type in wrong ones.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass

from csi_local._proto import csi_pb2 as csi
from tests.client import Capability, capability, topology
from tests.observe import GIB, KIB, MIB

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from random import Random

MARKER = "hunter2-MARKER"
"""In every key and every value of every secret."""
FORGED = "FORGED"
LARGEST = 4 * MIB
"""gRPC itself refuses what is larger."""

ODD_IDS = (
    ".",
    "..",
    "a/b",
    "../x",
    ".new-x",
    ".trash-x",
    ".trash-x.0",
    ".probe-0",
    "lost+found",
    "pool.json",
    "volumes",
)
LENGTHS = (63, 64, 127, 128, 129, 255, 256, 4095, 4096, 4097)
ODD_TEXTS = (
    *ODD_IDS,
    *("x" * length for length in LENGTHS),
    *("\u00e9" * (length // 2) for length in LENGTHS),
    *("\x01" * length for length in LENGTHS),
    "\U0010ffff" * 31,
    "",
    " ",
    "\0",
    "a\0b",
    "tab\there",
    "line\nfeed",
    "carriage\rreturn",
    f"x\n2000-01-01 00:00:00,000 ERROR   {FORGED}",
    "\x1b[31m",
    "\u202e",
    "\u2028",
    "%s%n{}",
    "-rf",
    "--help",
    "$(id)",
    "sha256-" + "0" * 40,
    "0",
    "-1",
    "4294967295",
    "4294967294",
    "True",
)
MOUNT_FLAGS = ("ro", "rw", "noatime", "noexec,nosuid", "bind", "remount", "move", "discard", "commit=5", "commit=x")
ODD_FLAGS = ("data=bogus", "nouuid", "allocsize=1", "stripe=-1", "loop", "_netdev", "context=x", "")
GROUPS = ("", "0", "1234", "4294967294", "4294967295", "-1", "nobody", "12345678901")
PARAMETERS = {
    "backend": ("directory", "loopfile", "tape"),
    "allocation": ("thick", "thin", "fat"),
    "quota": ("hard", "advisory", "soft"),
    "placement": ("spread", "pack", "throw"),
    "media": ("ssd", "hdd", "nvme", "tape"),
    "pool": ("pool-0", "pool-1", "nope", "../pool-0"),
    "encryption": ("none", "luks2"),
    "mkfsOptions": ("-m 1", "-b 3", "-b 65536", "-N 99999999999", "-E x=y", "-O nope", "-i 1", "'", "-F"),
    "csi.storage.k8s.io/fstype": ("ext4", "xfs", "btrfs", "vfat"),
    "csi.storage.k8s.io/pvc/name": ("claim",),
}
NUMBERS = (0, 1, -1, 4096, MIB, -MIB, 64 * MIB, 10 * GIB, 1 << 31, 1 << 40, (1 << 62) + 1, (1 << 63) - 1, -(1 << 63))
ENUMS = (-1, 99, (1 << 31) - 1, -(1 << 31))

_INTEGERS = {
    FieldDescriptor.TYPE_INT64: 64,
    FieldDescriptor.TYPE_SINT64: 64,
    FieldDescriptor.TYPE_SFIXED64: 64,
    FieldDescriptor.TYPE_INT32: 32,
    FieldDescriptor.TYPE_SINT32: 32,
    FieldDescriptor.TYPE_SFIXED32: 32,
}
_NATURALS = {
    FieldDescriptor.TYPE_UINT64: 64,
    FieldDescriptor.TYPE_FIXED64: 64,
    FieldDescriptor.TYPE_UINT32: 32,
    FieldDescriptor.TYPE_FIXED32: 32,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """An RPC: what gRPC calls it, and the classes of its messages."""

    path: str
    request: type[Message]
    response: type[Message]

    @property
    def name(self) -> str:
        """The name without the service's."""
        return self.path.rpartition("/")[2]


def methods() -> list[Method]:
    """Return every RPC of the protocol that takes one message and answers with one."""
    return [
        Method(
            path=f"/{service.full_name}/{method.name}",
            request=GetMessageClass(method.input_type),
            response=GetMessageClass(method.output_type),
        )
        for service in csi.DESCRIPTOR.services_by_name.values()
        for method in service.methods
        if not (method.client_streaming or method.server_streaming)
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """A volume, and paths for it, that right requests are about."""

    id: str
    name: str
    staging: str
    target: str
    size: int
    capability: Capability = field(default_factory=capability)
    parameters: Mapping[str, str] = field(default_factory=dict)
    context: Mapping[str, str] = field(default_factory=dict)


SUITABLE: dict[str, Callable[[Subject], object]] = {
    "volume_id": lambda s: s.id,
    "name": lambda s: s.name,
    "staging_target_path": lambda s: s.staging,
    "target_path": lambda s: s.target,
    "volume_path": lambda s: s.target,
    "volume_capability": lambda s: s.capability,
    "volume_capabilities": lambda s: [s.capability],
    "capacity_range": lambda s: csi.CapacityRange(required_bytes=s.size),
    "parameters": lambda s: s.parameters,
    "volume_context": lambda s: s.context,
    "accessible_topology": lambda _: topology("node-1")[0],
}
"""By a field's name."""


class Mint:
    """Makes requests. What it makes depends on its `random` alone."""

    def __init__(self, random: Random, paths: Sequence[str], refused: Sequence[str], ids: Sequence[str]) -> None:
        self._random = random
        self._paths = paths
        self._refused = refused
        self._ids = ids

    def request(self, method: Method, subject: Subject, spite: float) -> Message:
        """Make a request in which each field is wrong with the probability `spite`."""
        message = method.request()
        self._fill(message, subject, spite)
        return message

    def _fill(self, message: Message, subject: Subject, spite: float) -> None:
        for one in fields(message):
            if is_secret(one):
                _give_entries(message, one, self._secrets(spite))
            elif self._random.random() < spite:
                self._spoil(message, one, subject)
            elif one.name in SUITABLE:
                _give(message, one, SUITABLE[one.name](subject))

    def _secrets(self, spite: float) -> Mapping[str, str]:
        length = self._random.choice((16, 3000, 5000, MIB)) if self._random.random() < spite / 4 else 16
        return {f"{MARKER}-key": f"{MARKER}-{'v' * length}", f"{MARKER}\n": MARKER}

    # One field

    def _spoil(self, message: Message, one: FieldDescriptor, subject: Subject) -> None:
        if is_map(one):
            _give_entries(message, one, self._entries())
        elif one.is_repeated:
            self._spoil_list(message, one, subject)
        elif one.type == FieldDescriptor.TYPE_MESSAGE:
            inner = getattr(message, one.name)
            if self._random.random() < 0.3:
                _give(message, one, _suitable(one, subject))
            inner.SetInParent()
            self._fill(inner, subject, self._random.choice((0.2, 0.6, 1.0)))
        else:
            setattr(message, one.name, self._value(one))

    def _spoil_list(self, message: Message, one: FieldDescriptor, subject: Subject) -> None:
        found = getattr(message, one.name)
        if one.type != FieldDescriptor.TYPE_MESSAGE:
            found.extend(self._value(one) for _ in range(self._random.choice((0, 1, 2, 50))))
            return
        suitable = _suitable(one, subject)
        if isinstance(suitable, list):
            found.extend(suitable * self._random.choice((0, 1, 2, 20)))
        for _ in range(self._random.choice((0, 1, 2))):
            self._fill(found.add(), subject, self._random.choice((0.2, 0.6, 1.0)))

    def _value(self, one: FieldDescriptor) -> Any:  # noqa: ANN401
        if one.type == FieldDescriptor.TYPE_STRING:
            return self._text(one.name)
        if one.type == FieldDescriptor.TYPE_BYTES:
            return self._random.randbytes(self._random.choice((0, 1, 300, 5000)))
        if one.type == FieldDescriptor.TYPE_BOOL:
            return self._random.random() < 0.5
        if one.type == FieldDescriptor.TYPE_ENUM and one.enum_type is not None:
            return self._random.choice((*ENUMS, *(value.number for value in one.enum_type.values)))
        if one.type in _INTEGERS:
            limit = 1 << (_INTEGERS[one.type] - 1)
            return max(-limit, min(limit - 1, self._number()))
        if one.type in _NATURALS:
            return abs(self._number()) % (1 << _NATURALS[one.type])
        return self._random.choice((0.0, -1.0, 1e300, float("inf"), float("nan")))

    def _number(self) -> int:
        return self._random.choice(NUMBERS) + self._random.choice((0, 0, 1, -1))

    def _text(self, name: str) -> str:
        """Return a text for a field of that name."""
        choose = self._random.choice
        lot = self._random.random()
        if lot < 0.02:
            return "x" * choose((64 * KIB, MIB, MIB, LARGEST))
        if name.endswith("path"):
            return choose((choose(self._paths), choose(self._refused), choose(ODD_TEXTS)))
        if lot < 0.3:
            return choose(ODD_TEXTS)
        if name == "mount_flags":
            return choose((*MOUNT_FLAGS, *ODD_FLAGS))
        if name == "volume_mount_group":
            return choose(GROUPS)
        if name == "fs_type":
            return choose(("", "ext4", "xfs", "btrfs", "vfat", "ext4 "))
        if name == "name":
            return choose(ODD_TEXTS)
        return choose((choose(self._ids), choose(ODD_IDS), choose(self._paths)))

    def _entries(self) -> dict[str, str]:
        choose = self._random.choice
        if self._random.random() < 0.2:
            key = choose(ODD_TEXTS)
            return {key: choose(ODD_TEXTS)}
        keys = self._random.sample(sorted(PARAMETERS), self._random.randrange(1, 4))
        return {key: choose(PARAMETERS[key]) for key in keys}

    # No messages at all

    def spoil_bytes(self, message: Message) -> bytes:
        """Return bytes that are no message, or are another one than `message`. No secret is in them."""
        bare = type(message)()
        bare.CopyFrom(message)
        for one in fields(bare):
            if is_secret(one):
                bare.ClearField(one.name)
        data = bare.SerializeToString()
        below, choose = self._random.randrange, self._random.choice
        match below(8):
            case 0:
                return self._random.randbytes(choose((1, 2, 10, 100, 5000)))
            case 1:
                return data[: below(len(data) + 1)]
            case 2:
                return self._flipped(data, (0x80, 0xC0, 0xFF, 0xED))
            case 3:
                return self._flipped(data, range(256))
            case 4:
                return data + data
            case 5:  # a field from the future
                return data + b"\xfa\x3e\x05world" + data[: below(4)]
            case 6:  # groups in groups, deeper than anybody goes
                return b"\x0b" * choose((1, 99, 101, 50_000)) + data
            case _:
                return data + self._random.randbytes(choose((1, 3, LARGEST if below(10) == 0 else 9)))

    def _flipped(self, data: bytes, values: Sequence[int]) -> bytes:
        changed = bytearray(data)
        for _ in range(self._random.randrange(1, 4) if changed else 0):
            changed[self._random.randrange(len(changed))] = self._random.choice(values)
        return bytes(changed)


def fields(message: Message | type[Message]) -> list[FieldDescriptor]:
    """Return the fields of a message."""
    return [one for one in message.DESCRIPTOR.fields if isinstance(one, FieldDescriptor)]


def _suitable(one: FieldDescriptor, subject: Subject) -> object:
    return SUITABLE[one.name](subject) if one.name in SUITABLE else None


def is_secret(one: FieldDescriptor) -> bool:
    """Say whether the protocol marks a field as secret."""
    return bool(one.GetOptions().Extensions[csi.csi_secret])


def is_map(one: FieldDescriptor) -> bool:
    """Say whether a field is a map."""
    return one.message_type is not None and bool(one.message_type.GetOptions().map_entry)


def _give(message: Message, one: FieldDescriptor, value: object) -> None:
    """Let a field have `value`, if it is of such a type."""
    place = getattr(message, one.name)
    if is_map(one):
        if isinstance(value, dict):
            _give_entries(message, one, value)
    elif one.is_repeated:
        if isinstance(value, list):
            place.extend(value)
    elif isinstance(value, Message):
        if one.message_type is value.DESCRIPTOR:
            place.CopyFrom(value)
    elif isinstance(value, type(place)):
        setattr(message, one.name, value)


def _give_entries(message: Message, one: FieldDescriptor, entries: Mapping[str, str]) -> None:
    """Put entries into a map of texts; a map of something else, and what is no map, stays as it is."""
    if one.message_type is None or not is_map(one):
        if one.type == FieldDescriptor.TYPE_STRING and not one.is_repeated:
            setattr(message, one.name, MARKER)
        return
    if all(part.type == FieldDescriptor.TYPE_STRING for part in one.message_type.fields):
        getattr(message, one.name).update(entries)


def decoded(method: Method, data: bytes) -> Message | None:
    """Return the request that these bytes are, or None if they are none."""
    try:
        return method.request.FromString(data)
    except DecodeError:
        return None


def texts(message: Message) -> Iterator[str]:
    """Yield every text in a message, and in those in it."""
    for _, value in message.ListFields():
        yield from _texts_in(value)


def _texts_in(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Message):
        yield from texts(value)
    elif hasattr(value, "items"):
        for pair in value.items():
            for part in pair:
                yield from _texts_in(part)
    elif hasattr(value, "__iter__") and not isinstance(value, bytes):
        for part in value:
            yield from _texts_in(part)


def describe(method: Method, data: bytes) -> str:
    """Return a request as people can read it, with long values cut."""
    message = decoded(method, data)
    words = data[:200].hex(" ") if message is None else " ".join(str(message).split())
    more = f"… ({len(data)} bytes)" if len(words) > 1500 else ""
    return f"{method.path} {{{words[:1500]}{more}}}"
