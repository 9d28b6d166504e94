"""What Kubernetes and Prometheus ask over HTTP: /healthz, /readyz and /metrics."""

import logging
import socket
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socketserver import TCPServer
from typing import Any

from csi_local.model.errors import Unavailable

_log = logging.getLogger(__name__)
_CLIENT_S = 5.0
"""Whoever takes longer to say what it wants is not waited for."""
_AT_ONCE = 16

Check = Callable[[], str]
"""Says what is wrong, or "" where nothing is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """An answer: its media type and its text."""

    kind: str
    content: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Pages:
    """What is served.

    Attributes:
        alive: checks of this process alone, by name: where one fails, a restart may help.
        ready: checks of whether it can do its work.
        metrics: the page for Prometheus.
    """

    alive: Mapping[str, Check]
    ready: Mapping[str, Check]
    metrics: Callable[[], Page]


class HttpServer:
    """Serves the pages at an address, until it is stopped."""

    def __init__(self, address: tuple[str, int], pages: Pages) -> None:
        """*address*: a host, where "" is every address of the machine, and a port, where 0 is any that is free."""
        self._address = address
        self._pages = pages
        self._server: _Server | None = None

    def start(self) -> None:
        """Serve from now on.

        Raises:
            Unavailable: somebody else has the address, or it is not this machine's.
        """
        pages = self._pages

        class Handler(_Handler):
            def answer(self) -> tuple[HTTPStatus, Page]:
                """One of the pages."""
                return _answer(pages, self.path)

        family = _Server6 if ":" in self._address[0] else _Server
        try:
            self._server = family(self._address, Handler)
        except OSError as error:
            host, port = self._address
            raise Unavailable(f"http address {host}:{port}: {error.strerror or error}") from error
        threading.Thread(target=self._server.serve_forever, name="http", daemon=True).start()

    @property
    def port(self) -> int:
        """The port that it has."""
        return int(self._server.server_address[1]) if self._server is not None else 0

    def stop(self) -> None:
        """Serve no more."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 32

    def __init__(self, address: tuple[str, int], handler: type[BaseHTTPRequestHandler]) -> None:
        super().__init__(address, handler)
        self._places = threading.BoundedSemaphore(_AT_ONCE)

    def server_bind(self) -> None:
        """As socketserver does it: http.server would look its own name up in the DNS."""
        TCPServer.server_bind(self)
        self.server_name, self.server_port = "", int(self.server_address[1])

    def process_request(self, request: Any, client_address: Any) -> None:  # noqa: ANN401 (socketserver's types)
        """Give a connection a thread, where there are not too many already."""
        if self._places.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:  # noqa: ANN401 (likewise)
        """One connection."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._places.release()

    def handle_error(self, _request: object, client_address: object) -> None:
        """Note what went wrong with one connection; it is seldom our fault."""
        _log.debug("http client %s", client_address, exc_info=True)


class _Server6(_Server):
    address_family = socket.AF_INET6


class _Handler(BaseHTTPRequestHandler):
    timeout = _CLIENT_S
    server_version, sys_version = "csi-local", ""

    def answer(self) -> tuple[HTTPStatus, Page]:
        """What is asked for."""
        raise NotImplementedError

    def do_GET(self) -> None:
        """Serve a page."""
        status, page = self.answer()
        self.send_response(status)
        self.send_header("Content-Type", page.kind)
        self.send_header("Content-Length", str(len(page.content)))
        self.end_headers()
        self.wfile.write(page.content)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 (its name there)
        """Not a line for each probe."""
        _log.debug("http %s", format % args)


def _answer(pages: Pages, path: str) -> tuple[HTTPStatus, Page]:
    path = path.partition("?")[0]
    try:
        if path == "/metrics":
            return HTTPStatus.OK, pages.metrics()
        if path in ("/healthz", "/readyz"):
            return _checked(pages.alive if path == "/healthz" else pages.ready)
    except Exception:  # noqa: BLE001 (whoever asks gets an answer; the log has the rest)
        _log.exception("http %s", path)
        return HTTPStatus.INTERNAL_SERVER_ERROR, _text("it failed in a way that was not foreseen; see the log\n")
    return HTTPStatus.NOT_FOUND, _text("there are /healthz, /readyz and /metrics\n")


def _checked(checks: Mapping[str, Check]) -> tuple[HTTPStatus, Page]:
    wrong = {name: problem for name, check in checks.items() if (problem := check())}
    if wrong:
        text = "".join(f"{name}: {problem}\n" for name, problem in wrong.items())
        return HTTPStatus.SERVICE_UNAVAILABLE, _text(text)
    return HTTPStatus.OK, _text("ok\n")


def _text(text: str) -> Page:
    return Page(kind="text/plain; charset=utf-8", content=text.encode())
