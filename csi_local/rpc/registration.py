"""Telling the kubelet of this driver, without a sidecar (pluginregistration.v1).

The kubelet watches a directory. It calls whoever makes a socket there: what are you, and where; and then tells how
it went. A registration that failed is tried again by taking the socket away and making it anew, at longer and longer
intervals; one whose directory was wiped, with the kubelet's, is made anew too.
"""

import logging
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import grpc

from csi_local._proto import pluginregistration_pb2 as pb
from csi_local.model.errors import DriverError, Unavailable
from csi_local.model.text import on_one_line
from csi_local.rpc.identity import DRIVER_NAME
from csi_local.rpc.server import listening, made_at, socket_path

_log = logging.getLogger(__name__)
_VERSIONS = ("1.0.0",)
"""Of CSI, as the kubelet wants them: ``validateVersions`` in pkg/volume/csi/csi_plugin.go."""
_LOOK_S = 2.0
_FIRST_RETRY_S, _LAST_RETRY_S, _DOUBLINGS = 1.0, 60.0, 6
_WORKERS = 1
_SERVICE = "pluginregistration.Registration"


def registration_socket(kubelet_dir: str) -> str:
    """Where the kubelet looks for the socket of this driver."""
    return f"{kubelet_dir}/plugins_registry/{DRIVER_NAME}-reg.sock"


class Registration:
    """Keeps the driver registered with the kubelet for as long as it runs.

    Attributes:
        problem: why it is not registered (yet), or "".
    """

    def __init__(self, kubelet_dir: str, endpoint: str, renew: Callable[[], None], *, look_s: float = _LOOK_S) -> None:
        """*renew* makes the driver's own socket anew where it was wiped; it is asked whenever the directory is."""
        self.problem = "the kubelet has not called yet"
        self._path = registration_socket(kubelet_dir)
        self._endpoint = socket_path(endpoint)
        self._renew = renew
        self._look_s = look_s
        self._server: grpc.Server | None = None
        self._made = ""
        self._failures = 0
        self._retry_at = 0.0
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="registration", daemon=True)

    def start(self) -> None:
        """Make the socket, or go on trying to where its directory cannot be written yet, and look after it from now on.

        Raises:
            Busy: another driver of this name has it.
            InvalidArgument: its path is too long, or something else is there.
        """
        try:
            self._expose()
        except Unavailable as error:
            self._put_off(f"the socket for the kubelet: {error}")
        self._thread.start()

    def stop(self) -> None:
        """Take the socket away, upon which the kubelet forgets the driver."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(timeout=self._look_s + 1)
        self._withdraw()

    @property
    def died(self) -> str:
        """Why nobody looks after it any more, or ""."""
        return "" if self._thread.is_alive() else "its thread has ended"

    # --- what the kubelet calls

    def get_info(self, _request: pb.InfoRequest, _context: object) -> pb.PluginInfo:
        """What this is, and where it serves CSI."""
        return pb.PluginInfo(
            type="CSIPlugin", name=DRIVER_NAME, endpoint=self._endpoint, supported_versions=list(_VERSIONS)
        )

    def notify(self, status: pb.RegistrationStatus, _context: object) -> pb.RegistrationStatusResponse:
        """How it went."""
        if status.plugin_registered:
            self._failures = 0
            self.problem = ""
            _log.info("registered with the kubelet as %s at %s", DRIVER_NAME, self._endpoint)
            return pb.RegistrationStatusResponse()
        self._put_off(f"the kubelet refused the registration: {on_one_line(status.error)[:500]}")
        return pb.RegistrationStatusResponse()

    def _put_off(self, problem: str) -> None:
        """Try again later, and later each time."""
        pause = min(_LAST_RETRY_S, _FIRST_RETRY_S * 2 ** min(self._failures, _DOUBLINGS))
        self._failures += 1
        self.problem = problem
        self._retry_at = time.monotonic() + pause
        _log.error("%s; the socket is made anew in %d s", problem, pause)

    # --- the socket

    def _expose(self) -> None:
        methods: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
            "GetInfo": grpc.unary_unary_rpc_method_handler(
                self.get_info,
                request_deserializer=pb.InfoRequest.FromString,
                response_serializer=pb.PluginInfo.SerializeToString,
            ),
            "NotifyRegistrationStatus": grpc.unary_unary_rpc_method_handler(
                self.notify,
                request_deserializer=pb.RegistrationStatus.FromString,
                response_serializer=pb.RegistrationStatusResponse.SerializeToString,
            ),
        }
        self._server = listening(self._path, [grpc.method_handlers_generic_handler(_SERVICE, methods)], _WORKERS)
        self._made = made_at(self._path)

    def _withdraw(self) -> None:
        if self._server is not None:
            self._server.stop(None).wait()  # while it goes it removes what is at the path that it was bound to
            self._server = None
        if self._is_ours():
            with suppress(OSError):
                Path(self._path).unlink()

    def _is_ours(self) -> bool:
        return made_at(self._path) == self._made != ""

    def _run(self) -> None:
        while not self._stopping.wait(self._look_s):
            try:
                self._look()
            except DriverError as error:
                self._put_off(f"the socket for the kubelet: {error}")
            except Exception:  # noqa: BLE001 (the thread must live; the log has it)
                _log.exception("looking after the registration")
                self._put_off("looking after the registration failed; see the log")

    def _look(self) -> None:
        put_off = self._retry_at
        if time.monotonic() < put_off:
            return
        self._renew()
        if not put_off and self._is_ours():
            return
        if not put_off:
            _log.warning("the socket %s is gone; it is made anew", self._path)
        self._withdraw()
        self.problem, self._retry_at = "the kubelet has not called since its directory was wiped", 0.0
        self._expose()
