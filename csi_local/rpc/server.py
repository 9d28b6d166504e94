"""The gRPC server on its unix socket."""

import logging
import os
import socket
import stat
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import grpc
from google.protobuf.message import Message  # noqa: TC002 (beside its twin)
from google.protobuf.message_factory import GetMessageClass

from csi_local._proto import csi_pb2
from csi_local.model.errors import Busy, InvalidArgument, Unavailable
from csi_local.rpc.boundary import Observe, decoder, guarded, unobserved
from csi_local.rpc.controller import Controller
from csi_local.rpc.group import GroupController
from csi_local.rpc.identity import Identity
from csi_local.rpc.node import Node

_log = logging.getLogger(__name__)

WORKERS = 64
"""Threads at most; each is made when it is first needed. A request that waits for its volume's turn occupies one."""

Service = Identity | Controller | GroupController | Node

_GRACE_S = 6.0
_MAX_SOCKET_PATH = 107
_MADE_AT = ".new/s"
_OPTIONS = (("grpc.so_reuseport", 0),)


def socket_path(endpoint: str) -> str:
    """The path in ``unix:///path`` or ``unix:/path`` (or a bare absolute path).

    Raises:
        InvalidArgument: it is not such an endpoint, or there can be no socket at that path.
    """
    path = endpoint.removeprefix("unix://") if endpoint.startswith("unix://") else endpoint.removeprefix("unix:")
    if not path.startswith("/"):
        raise InvalidArgument(f"endpoint {endpoint!r}: write unix:///absolute/path.sock")
    _check_path(path, f"endpoint {endpoint!r}")
    return path


def _check_path(path: str, what: str) -> None:
    """See that there can be a socket at *path*, and at where it is made; *what* is wrong where not.

    Raises:
        InvalidArgument: it is longer than unix(7) allows, or gRPC cannot say it.
    """
    directory, name = os.path.split(path)
    if not path.isprintable():
        raise InvalidArgument(f"{what}: its path holds characters that cannot be printed")
    if len(os.fsencode(directory)) + 1 + max(len(os.fsencode(name)), len(_MADE_AT)) > _MAX_SOCKET_PATH:
        raise InvalidArgument(f"{what}: a socket's path has at most {_MAX_SOCKET_PATH} bytes")


class Server:
    """Serves what it is given until it is stopped."""

    def __init__(
        self,
        endpoint: str,
        services: Sequence[Service],
        observe: Observe = unobserved,
        *,
        workers: int = WORKERS,
    ) -> None:
        self._path = socket_path(endpoint)
        self._handlers = tuple(_handlers(service, observe) for service in services)
        self._workers = workers
        self._server: grpc.Server | None = None
        self._made = ""

    def start(self) -> None:
        """Take the socket, which only its owner may use (0600), and serve.

        Raises:
            Busy: a living server has it.
            InvalidArgument: something that is no socket is there.
            Unavailable: it cannot be made.
        """
        self._server = listening(self._path, self._handlers, self._workers)
        self._made = made_at(self._path)

    @property
    def problem(self) -> str:
        """Why nobody can reach it any more, or ""."""
        return "" if Path(self._path).exists() else f"the socket {self._path} is gone"

    def renew(self) -> None:
        """Make the socket anew where somebody has removed it, as whoever wipes the kubelet's directory does.

        Raises:
            DriverError: as :meth:`start`.
        """
        if self._server is not None and self.problem:
            _log.warning("%s; it is made anew", self.problem)
            before = self._server
            self.start()
            before.stop(_GRACE_S)

    def stop(self) -> None:
        """Let the requests under way end, refuse new ones, and remove the socket, where it is not another's by then."""
        if self._server is not None:
            self._server.stop(_GRACE_S).wait()
        if self._made == made_at(self._path):
            with suppress(FileNotFoundError):
                Path(self._path).unlink()


def made_at(path: str) -> str:
    """What tells a socket from one that is made at the same place later, perhaps with the same inode; "" for none."""
    try:
        seen = os.lstat(path)
    except OSError:
        return ""
    return f"{seen.st_dev}:{seen.st_ino}:{seen.st_mtime_ns}"


def listening(path: str, handlers: Sequence[grpc.GenericRpcHandler], workers: int) -> grpc.Server:
    """A server on the unix socket *path*, which appears at once, serving, and only for its owner (0600).

    So it is made in a directory that nobody else can enter, and renamed: to do without umask(2), which is the whole
    process's. The name of that directory begins with a dot, which the kubelet's plugin watcher passes over.

    Raises:
        Busy: a living server has it.
        InvalidArgument: something that is no socket is there, or none can be.
        Unavailable: it cannot be made.
    """
    _check_path(path, f"the socket {path!r}")
    _clear(path)
    server = grpc.server(ThreadPoolExecutor(workers, thread_name_prefix="rpc"), options=_OPTIONS)
    server.add_generic_rpc_handlers(tuple(handlers))
    made = Path(path).parent / _MADE_AT
    private = made.parent
    try:
        _make_private(private)
        server.add_insecure_port(f"unix:{made}")
        server.start()
        made.chmod(0o600)
        made.rename(path)
        private.rmdir()
    except (RuntimeError, OSError) as error:
        server.stop(None)
        raise Unavailable(f"the socket {path} cannot be made: {error}") from error
    return server


def _make_private(directory: Path) -> None:
    """Make a directory that only its owner may enter, and those above it that are missing likewise."""
    missing = [one for one in (directory, *directory.parents) if not one.exists()]
    for one in reversed(missing):
        one.mkdir(mode=0o700, exist_ok=True)


def _clear(path: str) -> None:
    """Remove a socket that nobody listens on."""
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    except OSError as error:
        raise Unavailable(f"the socket {path} cannot be made: {error.strerror}") from error
    if not stat.S_ISSOCK(mode):
        raise InvalidArgument(f"{path} exists and is not a socket; it is left alone")
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(2)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            Path(path).unlink()
            return
        except FileNotFoundError:
            return
        except OSError:
            pass
    raise Busy(f"another server listens on {path}")


def _handlers(service: Service, observe: Observe) -> grpc.GenericRpcHandler:
    """Handlers for the RPCs that *service* has; gRPC answers UNIMPLEMENTED for the others."""
    descriptor = csi_pb2.DESCRIPTOR.services_by_name[type(service).__name__]
    handlers: dict[str, grpc.RpcMethodHandler[Message, Message]] = {}
    for method in descriptor.methods:
        handler = getattr(service, method.name, None)
        if handler is not None:
            request: type[Message] = GetMessageClass(method.input_type)
            handlers[method.name] = grpc.unary_unary_rpc_method_handler(
                guarded(method.name, handler, observe),
                request_deserializer=decoder(request),
                response_serializer=lambda message: message.SerializeToString(),
            )
    return grpc.method_handlers_generic_handler(descriptor.full_name, handlers)
