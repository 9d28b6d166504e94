"""/healthz, /readyz and /metrics."""

from __future__ import annotations

import http.client
import socket
import threading
from typing import TYPE_CHECKING

import pytest

from csi_local.model.errors import Unavailable
from csi_local.rpc.http import HttpServer, Page, Pages
from tests.observe import until

if TYPE_CHECKING:
    from collections.abc import Iterator

LOCAL = "127.0.0.1"


class Health:
    """What the checks say."""

    def __init__(self) -> None:
        self.loop = self.pools = ""

    def fail(self) -> Page:
        """Fail, as nobody foresaw."""
        raise RuntimeError("secret")

    def pages(self) -> Pages:
        """Return what is to be served."""
        return Pages(
            alive={"loop": lambda: self.loop},
            ready={"loop": lambda: self.loop, "pools": lambda: self.pools},
            metrics=lambda: Page(kind="text/plain", content=b"x 1\n"),
        )


@pytest.fixture
def health() -> Health:
    return Health()


@pytest.fixture
def server(health: Health) -> Iterator[HttpServer]:
    made = HttpServer((LOCAL, 0), health.pages())
    made.start()
    yield made
    made.stop()


def get(server: HttpServer, path: str, method: str = "GET") -> tuple[int, str]:
    """Ask for a page."""
    connection = http.client.HTTPConnection(LOCAL, server.port, timeout=10)
    try:
        connection.request(method, path)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    finally:
        connection.close()


def test_all_is_well(server: HttpServer) -> None:
    assert get(server, "/healthz") == (200, "ok\n")
    assert get(server, "/readyz?verbose") == (200, "ok\n")
    assert get(server, "/metrics") == (200, "x 1\n")
    assert get(server, "/")[0] == 404
    assert get(server, "/healthz", "POST")[0] == 501


def test_what_is_wrong_is_said(server: HttpServer, health: Health) -> None:
    health.pools = "fast: its disk is missing"
    assert get(server, "/healthz") == (200, "ok\n")
    assert get(server, "/readyz") == (503, "pools: fast: its disk is missing\n")
    health.loop = "it has not looked for 900 s"
    assert get(server, "/healthz") == (503, "loop: it has not looked for 900 s\n")


def test_an_unforeseen_error_is_not_shown() -> None:
    health = Health()
    server = HttpServer((LOCAL, 0), Pages(alive={}, ready={}, metrics=health.fail))
    server.start()
    status, text = get(server, "/metrics")
    server.stop()
    assert (status, "secret" in text) == (500, False)


def test_silent_clients_keep_nobody_else_out(server: HttpServer) -> None:
    """Those that were silent for longest are cut, and whoever says what it wants is served."""
    silent = [socket.create_connection((LOCAL, server.port)) for _ in range(40)]
    assert get(server, "/healthz") == (200, "ok\n")
    for one in silent[:20]:
        one.settimeout(10)
        assert one.recv(1) == b""
    for one in silent:
        one.close()


def test_a_byte_now_and_then_is_not_enough(health: Health) -> None:
    server = HttpServer((LOCAL, 0), health.pages(), client_s=0.3)
    server.start()
    with socket.create_connection((LOCAL, server.port)) as slow:
        slow.settimeout(0.05)
        until(lambda: cut(slow), "it is cut, though it goes on")
    server.stop()


def cut(slow: socket.socket) -> bool:
    """Send one byte more, and say whether the server has ended the connection."""
    try:
        slow.sendall(b"G")
        return slow.recv(1) == b""
    except TimeoutError:
        return False
    except OSError:
        return True


def test_a_disk_that_hangs(health: Health) -> None:
    """It holds one thread, however often the page is asked for, and no other page."""
    free, asked = threading.Event(), []

    def hang() -> str:
        asked.append(1)
        free.wait(30)
        return ""

    pages = Pages(alive=health.pages().alive, ready={"pools": hang}, metrics=health.pages().metrics)
    server = HttpServer((LOCAL, 0), pages, answer_s=0.05)
    server.start()
    for _ in range(20):
        status, text = get(server, "/readyz")
        assert (status, text.startswith("no answer for")) == (503, True)
    assert get(server, "/healthz") == (200, "ok\n")
    assert get(server, "/metrics") == (200, "x 1\n")
    assert asked == [1]
    free.set()
    until(lambda: get(server, "/readyz")[0] == 200, "it answers again")
    server.stop()


def test_an_address_that_is_taken(server: HttpServer, health: Health) -> None:
    with pytest.raises(Unavailable, match=f"{LOCAL}:{server.port}"):
        HttpServer((LOCAL, server.port), health.pages()).start()


def test_an_address_that_cannot_be_said(health: Health) -> None:
    with pytest.raises(Unavailable, match="http address"):
        HttpServer(("\udcff", 1), health.pages()).start()
