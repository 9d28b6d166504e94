"""The gRPC server on its unix socket."""

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
from csi_local.rpc.boundary import decoder, guarded
from csi_local.rpc.controller import Controller
from csi_local.rpc.group import GroupController
from csi_local.rpc.identity import Identity
from csi_local.rpc.node import Node

WORKERS = 64
"""Threads at most; each is made when it is first needed. A request that waits for its volume's turn occupies one."""

Service = Identity | Controller | GroupController | Node

_GRACE_S = 8.0
_MAX_SOCKET_PATH = 107
_OPTIONS = (("grpc.so_reuseport", 0),)


def socket_path(endpoint: str) -> str:
    """The path in ``unix:///path`` or ``unix:/path`` (or a bare absolute path).

    Raises:
        InvalidArgument: it is not such an endpoint, or the path is longer than unix(7) allows.
    """
    path = endpoint.removeprefix("unix://") if endpoint.startswith("unix://") else endpoint.removeprefix("unix:")
    if not path.startswith("/"):
        raise InvalidArgument(f"endpoint {endpoint!r}: write unix:///absolute/path.sock")
    if len(os.fsencode(path)) > _MAX_SOCKET_PATH:
        raise InvalidArgument(f"endpoint {endpoint!r}: a socket's path has at most {_MAX_SOCKET_PATH} bytes")
    return path


class Server:
    """Serves what it is given until it is stopped."""

    def __init__(self, endpoint: str, services: Sequence[Service]) -> None:
        self._path = socket_path(endpoint)
        self._server = grpc.server(ThreadPoolExecutor(WORKERS, thread_name_prefix="rpc"), options=_OPTIONS)
        self._server.add_generic_rpc_handlers(tuple(_handlers(service) for service in services))

    def start(self) -> None:
        """Take the socket, which only its owner may use (0600), and serve.

        Raises:
            Busy: a living server has it.
            InvalidArgument: something that is no socket is there.
            Unavailable: it cannot be made.
        """
        _clear(self._path)
        Path(self._path).parent.mkdir(parents=True, exist_ok=True)
        before = os.umask(0o177)
        try:
            self._server.add_insecure_port(f"unix:{self._path}")
        except RuntimeError as error:
            raise Unavailable(f"the socket {self._path} cannot be made; the log has the reason") from error
        finally:
            os.umask(before)
        self._server.start()

    def stop(self) -> None:
        """Let the requests under way end, refuse new ones, and remove the socket."""
        self._server.stop(_GRACE_S).wait()
        with suppress(FileNotFoundError):
            Path(self._path).unlink()


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


def _handlers(service: Service) -> grpc.GenericRpcHandler:
    """Handlers for the RPCs that *service* has; gRPC answers UNIMPLEMENTED for the others."""
    descriptor = csi_pb2.DESCRIPTOR.services_by_name[type(service).__name__]
    handlers: dict[str, grpc.RpcMethodHandler[Message, Message]] = {}
    for method in descriptor.methods:
        handler = getattr(service, method.name, None)
        if handler is not None:
            request: type[Message] = GetMessageClass(method.input_type)
            handlers[method.name] = grpc.unary_unary_rpc_method_handler(
                guarded(method.name, handler),
                request_deserializer=decoder(request),
                response_serializer=lambda message: message.SerializeToString(),
            )
    return grpc.method_handlers_generic_handler(descriptor.full_name, handlers)
