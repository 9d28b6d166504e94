"""The border between gRPC and the driver: every RPC passes here, in and out.

In: undecodable bytes and fields over the specification's size limits are refused. Out: errors become status codes,
by walking up their class tree; what was not foreseen becomes INTERNAL with none of its text. Each RPC leaves one
line in the log, and fields that the protocol marks as secret are in none of them.
"""

import logging
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NoReturn, Protocol

import grpc
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import DecodeError, Message

from csi_local._proto import csi_pb2
from csi_local.model import errors
from csi_local.model.parameters import TOKENS
from csi_local.model.text import on_one_line

_log = logging.getLogger(__name__)

CODES: dict[type[Exception], grpc.StatusCode] = {
    errors.DriverError: grpc.StatusCode.INTERNAL,
    errors.InvalidArgument: grpc.StatusCode.INVALID_ARGUMENT,
    errors.NotFound: grpc.StatusCode.NOT_FOUND,
    errors.AlreadyExists: grpc.StatusCode.ALREADY_EXISTS,
    errors.OutOfRange: grpc.StatusCode.OUT_OF_RANGE,
    errors.ResourceExhausted: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.FailedPrecondition: grpc.StatusCode.FAILED_PRECONDITION,
    errors.Unauthenticated: grpc.StatusCode.UNAUTHENTICATED,
    errors.Busy: grpc.StatusCode.ABORTED,
    errors.Unsupported: grpc.StatusCode.UNIMPLEMENTED,
    errors.Unavailable: grpc.StatusCode.UNAVAILABLE,
    errors.HostError: grpc.StatusCode.INTERNAL,
    NotImplementedError: grpc.StatusCode.UNIMPLEMENTED,
}

_MAX_MESSAGE = 2000
"""Bytes of an error's message: gRPC sends three for each that is not ASCII, and clients take 8 KiB of headers."""
MAX_STRING, MAX_MAP, MAX_PATH = 128, 4096, 4095
"""Bytes (CSI specification, "Size Limits"; paths as long as the system allows)."""
_PATHS = frozenset({"staging_target_path", "target_path", "volume_path"})
_WHOLE = frozenset({"mount_flags"})
"""Lists that have a limit as a whole, a map's; of every other each item has a string's, however many there are."""
_QUIET = frozenset({"Probe", "GetPluginInfo", "GetPluginCapabilities", "NodeGetVolumeStats", "GetCapacity"})


class Context(Protocol):
    """What is used of gRPC's context."""

    def time_remaining(self) -> float | None:
        """Seconds until the client gives up, or None."""

    def abort(self, code: grpc.StatusCode, details: str) -> NoReturn:
        """End the RPC with a status."""


Handler = Callable[[Any, Context], Message]
Observe = Callable[[str, str, float], None]
"""Told of every RPC that has ended: method, name of the status code, seconds."""


def unobserved(_method: str, _code: str, _seconds: float) -> None:
    """Tell nobody."""


def code_of(error: Exception) -> grpc.StatusCode:
    """The status code of an error: that of the nearest of its classes that has one."""
    for kind in errors.kind_of(error).__mro__:
        if kind in CODES:
            return CODES[kind]
    return grpc.StatusCode.INTERNAL


class Undecodable(Message):
    """Stands for a request whose bytes are not a message."""


def decoder(message: type[Message]) -> Callable[[bytes], Message]:
    """Bytes → message, or :class:`Undecodable` (gRPC itself would answer INTERNAL)."""

    def decode(data: bytes) -> Message:
        try:
            return message.FromString(data)
        except DecodeError:
            return Undecodable()

    return decode


def guarded(method: str, handler: Handler, observe: Observe = unobserved) -> Callable[[Message, Context], Message]:
    """*handler* behind the border."""

    def serve(request: Message, context: Context) -> Message:  # noqa: RET503 (abort does not return)
        began = time.perf_counter()
        try:
            check_limits(request)
            _log.debug("%s %s", method, _Shown(request))
            response = handler(request, context)
        except Exception as error:  # noqa: BLE001 (this is where they all end)
            code, text = _answer(method, error)
        else:
            seconds = time.perf_counter() - began
            observe(method, grpc.StatusCode.OK.name, seconds)
            level = logging.DEBUG if method in _QUIET else logging.INFO
            _log.log(level, "%s %s OK %.1f ms", method, _subject(request), seconds * 1000)
            return response
        observe(method, code.name, time.perf_counter() - began)
        text = _short(text, _MAX_MESSAGE)
        _log.warning("%s %s %s: %s", method, _subject(request), code.name, on_one_line(text))
        context.abort(code, text)

    return serve


def _answer(method: str, error: Exception) -> tuple[grpc.StatusCode, str]:
    code = code_of(error)
    if isinstance(error, errors.DriverError):
        return code, str(error)
    if isinstance(error, NotImplementedError):
        return code, f"{method} is not implemented"
    _log.error("%s failed in a way that was not foreseen", method, exc_info=error)
    return code, f"{method} failed in a way that was not foreseen; the driver's log has the details"


def patience(context: Context) -> float:
    """How many seconds a caller can wait for its turn: somewhat less than until its deadline."""
    remaining = context.time_remaining()
    return 30.0 if remaining is None else min(30.0, remaining * 0.9)


# --- size limits


def check_limits(message: Message) -> None:
    """See that a message is one, and that no field is larger than the specification allows.

    Raises:
        InvalidArgument: it is not; the message names the field.
    """
    if isinstance(message, Undecodable):
        raise errors.InvalidArgument("the request cannot be decoded")
    for field, value in message.ListFields():
        if field.type == FieldDescriptor.TYPE_STRING:
            _check_string(field.name, value)
        elif field.type == FieldDescriptor.TYPE_MESSAGE:
            if isinstance(value, Message):
                check_limits(value)
            elif isinstance(value, Mapping):
                _check_size(field.name, (text for pair in value.items() for text in pair), MAX_MAP)
            else:
                for item in value:
                    check_limits(item)


def _check_string(name: str, value: str | Iterable[str]) -> None:
    if name in _WHOLE:
        _check_size(name, value, MAX_MAP)
        return
    for text in (value,) if isinstance(value, str) else value:
        _check_size(name, (text,), MAX_PATH if name in _PATHS else MAX_STRING)


def _check_size(name: str, texts: Iterable[str], limit: int) -> None:
    if sum(len(text.encode()) for text in texts) > limit:
        raise errors.InvalidArgument(f"{name} is longer than {limit} bytes")


# --- logging without secrets


def secret_fields(message: Message) -> list[str]:
    """Names of a message's fields that the protocol marks with ``csi_secret``."""
    fields = message.DESCRIPTOR.fields
    return [field.name for field in fields if field.GetOptions().Extensions[csi_pb2.csi_secret]]


class _Shown:
    """A request as the log shows it, put together only if a log wants it."""

    def __init__(self, request: Message) -> None:
        self._request = request

    def __str__(self) -> str:
        copy = type(self._request)()
        copy.CopyFrom(self._request)
        hidden = [name for name in secret_fields(copy) if len(getattr(copy, name))]
        for name in hidden:
            copy.ClearField(name)
        context = getattr(copy, "volume_context", {})
        if TOKENS in context:
            context[TOKENS] = "***"
        return " ".join([" ".join(str(copy).split()), *(f"{name}: ***" for name in hidden)])


def _subject(request: Message) -> str:
    subject = str(getattr(request, "volume_id", "") or getattr(request, "name", ""))
    return on_one_line(_short(subject, MAX_STRING)) or "-"


def _short(text: str, size: int) -> str:
    """*text*, cut to at most *size* bytes where it has more."""
    data = text.encode()
    return text if len(data) <= size else data[:size].decode(errors="ignore") + "…"
