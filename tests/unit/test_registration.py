"""Registration: a kubelet that calls, refuses, and loses its directory."""

from __future__ import annotations

import shutil
import time
from typing import TYPE_CHECKING

import grpc
import pytest

from csi_local._proto import pluginregistration_pb2 as pb
from csi_local._proto import pluginregistration_pb2_grpc as pb_grpc
from csi_local.model.errors import Busy, InvalidArgument, Unavailable
from csi_local.rpc.registration import Registration, registration_socket
from csi_local.rpc.server import Server
from tests.observe import until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

LOOK_S = 0.02


class Kubelet:
    """Its side: what it asks of a socket in its directory."""

    def __init__(self, folder: Path) -> None:
        self.socket = folder / "plugins_registry" / "csi-local.io-reg.sock"

    def info(self) -> pb.PluginInfo:
        """GetInfo."""
        with grpc.insecure_channel(f"unix:{self.socket}") as channel:
            return pb_grpc.RegistrationStub(channel).GetInfo(pb.InfoRequest(), timeout=10, wait_for_ready=True)

    def tell(self, *, registered: bool, error: str = "") -> None:
        """NotifyRegistrationStatus."""
        status = pb.RegistrationStatus(plugin_registered=registered, error=error)
        with grpc.insecure_channel(f"unix:{self.socket}") as channel:
            pb_grpc.RegistrationStub(channel).NotifyRegistrationStatus(status, timeout=10, wait_for_ready=True)

    def made(self) -> int:
        """When the socket was made; 0 for none. The number of its inode may be used again."""
        try:
            return self.socket.lstat().st_ctime_ns
        except FileNotFoundError:
            return 0


@pytest.fixture
def kubelet(folder: Path) -> Kubelet:
    return Kubelet(folder)


@pytest.fixture
def renewed() -> list[float]:
    return []


@pytest.fixture
def registration(folder: Path, renewed: list[float]) -> Iterator[Registration]:
    made = Registration(
        str(folder), "unix:///plugins/csi.sock", lambda: renewed.append(time.monotonic()), look_s=LOOK_S
    )
    made.start()
    yield made
    made.stop()


def test_the_kubelet_learns_what_and_where(registration: Registration, kubelet: Kubelet) -> None:
    info = kubelet.info()
    assert (info.type, info.name, info.endpoint) == ("CSIPlugin", "csi-local.io", "/plugins/csi.sock")
    assert list(info.supported_versions) == ["1.0.0"]
    assert registration.problem
    kubelet.tell(registered=True)
    assert not registration.problem
    assert not registration.died


def test_only_its_owner_may_use_it(registration: Registration, kubelet: Kubelet) -> None:
    assert registration.problem
    assert kubelet.socket.stat().st_mode & 0o777 == 0o600
    assert [path.name for path in kubelet.socket.parent.iterdir()] == [kubelet.socket.name]


def test_what_was_refused_is_tried_again(registration: Registration, kubelet: Kubelet) -> None:
    before = kubelet.made()
    kubelet.tell(registered=False, error="no\nthanks" + "!" * 1000)
    assert registration.problem.startswith(r"the kubelet refused the registration: no\nthanks!")
    until(lambda: kubelet.made() not in (0, before), "the socket is made anew")
    kubelet.tell(registered=True)
    assert not registration.problem


def test_what_is_refused_for_ever_is_tried_for_ever(registration: Registration, kubelet: Kubelet) -> None:
    registration._failures = 5000
    kubelet.tell(registered=False)
    assert registration._retry_at


def test_a_wiped_directory(registration: Registration, kubelet: Kubelet, folder: Path, renewed: list[float]) -> None:
    kubelet.tell(registered=True)
    shutil.rmtree(folder / "plugins_registry")
    until(kubelet.socket.exists, "the socket is made anew")
    assert registration.problem
    assert renewed
    kubelet.tell(registered=True)
    assert not registration.problem


def test_it_is_gone_with_the_driver(folder: Path, kubelet: Kubelet) -> None:
    made = Registration(str(folder), "unix:///csi.sock", lambda: None, look_s=LOOK_S)
    made.start()
    assert kubelet.info().endpoint == "/csi.sock"
    made.stop()
    assert not kubelet.socket.exists()
    assert made.died


def test_a_dead_driver_s_is_replaced_and_a_living_one_s_is_not(folder: Path, kubelet: Kubelet) -> None:
    first = Registration(str(folder), "unix:///first.sock", lambda: None, look_s=LOOK_S)
    first.start()
    second = Registration(str(folder), "unix:///second.sock", lambda: None, look_s=LOOK_S)
    with pytest.raises(Busy):
        second.start()
    saved = kubelet.socket.with_name("saved")
    kubelet.socket.rename(saved)  # what kill -9 leaves: a socket that nobody listens on
    first.stop()
    saved.rename(kubelet.socket)
    second.start()
    assert kubelet.info().endpoint == "/second.sock"
    second.stop()


def test_a_directory_that_cannot_be_made_yet(folder: Path, kubelet: Kubelet) -> None:
    """The driver begins, says why it is not registered, and is where the directory can be made."""
    kubelet.socket.parent.write_text("in the way")
    made = Registration(str(folder), "unix:///csi.sock", lambda: None, look_s=LOOK_S)
    made.start()
    assert str(kubelet.socket) in made.problem
    assert not made.died
    kubelet.socket.parent.unlink()
    until(kubelet.socket.exists, "the socket is made")
    kubelet.tell(registered=True)
    assert not made.problem
    made.stop()


def test_it_is_tried_less_and_less_often(folder: Path) -> None:
    """However often it fails: each time is put off by more, up to a minute."""
    tried = []

    def fail() -> None:
        tried.append(1)
        raise Unavailable("no room")

    made = Registration(str(folder), "unix:///csi.sock", fail)
    with pytest.raises(Unavailable):
        made._look()
    for _ in range(2000):  # a day and a half of refusals
        made.notify(pb.RegistrationStatus(error="no"), None)
    assert 0 < made._retry_at - time.monotonic() <= 60
    made._look()
    assert tried == [1]


def test_a_kubelet_s_directory_with_too_long_a_name(folder: Path) -> None:
    with pytest.raises(InvalidArgument, match=r"plugins_registry.*at most 107 bytes"):
        Registration(f"{folder}/{'x' * 90}", "unix:///csi.sock", lambda: None).start()


def test_another_s_socket_is_left(folder: Path, kubelet: Kubelet) -> None:
    made = Registration(str(folder), "unix:///csi.sock", lambda: None, look_s=60)
    made.start()
    kubelet.socket.unlink()
    kubelet.socket.write_text("another's")
    made.stop()
    assert kubelet.socket.exists()
    assert registration_socket(str(folder)) == str(kubelet.socket)


def test_an_ending_driver_takes_no_socket_from_the_next(folder: Path) -> None:
    endpoint = f"unix://{folder}/csi.sock"
    ending, new = Server(endpoint, ()), Server(endpoint, ())
    ending.start()
    assert ending._server is not None
    ending._server.stop(None).wait()  # and it waits for its last requests
    new.start()
    ending.stop()
    with pytest.raises(Busy):
        Server(endpoint, ()).start()
    new.stop()
    assert not (folder / "csi.sock").exists()
