"""What Kubernetes and Prometheus ask over HTTP: /healthz, /readyz and /metrics."""

import logging
import socket
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socketserver import TCPServer
from typing import Any

from csi_local.model.errors import Unavailable

_log = logging.getLogger(__name__)
_CLIENT_S = 5.0
"""Whoever takes longer to say what it wants, all of it, is not waited for."""
_ANSWER_S = 3.0
"""Less than the probes of Kubernetes wait: a disk that hangs is said to, and not the process that looks at it."""
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


Answer = tuple[HTTPStatus, Page]


def _text(text: str) -> Page:
    return Page(kind="text/plain; charset=utf-8", content=text.encode())


_NO_SUCH_PAGE = HTTPStatus.NOT_FOUND, _text("there are /healthz, /readyz and /metrics\n")
_FAILED = (
    HTTPStatus.INTERNAL_SERVER_ERROR,
    _text("it failed in a way that was not foreseen; see the log\n"),
)


@dataclass(slots=True, kw_only=True)
class _Making:
    """A page that is being made."""

    began: float = field(default_factory=time.monotonic)
    done: threading.Event = field(default_factory=threading.Event)
    answer: Answer = _FAILED


class HttpServer:
    """Serves the pages at an address, until it is stopped."""

    def __init__(
        self, address: tuple[str, int], pages: Pages, *, client_s: float = _CLIENT_S, answer_s: float = _ANSWER_S
    ) -> None:
        """*address*: a host, where "" is every address of the machine, and a port, where 0 is any that is free.

        A client has *client_s* seconds to say what it wants, and an answer comes within *answer_s*.
        """
        self._address = address
        self._client_s = client_s
        self._pages = {
            "/metrics": _Maker(lambda: (HTTPStatus.OK, pages.metrics()), answer_s),
            "/healthz": _Maker(lambda: _checked(pages.alive), answer_s),
            "/readyz": _Maker(lambda: _checked(pages.ready), answer_s),
        }
        self._server: _Server | None = None

    def start(self) -> None:
        """Serve from now on.

        Raises:
            Unavailable: somebody else has the address, or it is not this machine's.
        """
        pages, client_s = self._pages, self._client_s

        class Handler(_Handler):
            timeout = client_s

            def answer(self) -> Answer:
                """One of the pages."""
                maker = pages.get(self.path.partition("?")[0])
                return maker.answer() if maker else _NO_SUCH_PAGE

        family = _Server6 if ":" in self._address[0] else _Server
        try:
            self._server = family(self._address, Handler, client_s)
        except (OSError, TypeError) as error:  # the latter: a host's name that cannot be written
            host, port = self._address
            raise Unavailable(f"http address {host}:{port}: {getattr(error, 'strerror', '') or error}") from error
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


class _Maker:
    """Makes a page; one at a time, so that a disk that hangs holds one thread, however often somebody asks."""

    def __init__(self, make: Callable[[], Answer], within_s: float) -> None:
        self._make = make
        self._within_s = within_s
        self._guard = threading.Lock()
        self._under_way: _Making | None = None

    def answer(self) -> Answer:
        """The page as it is now; or, where it is not made in time, that it is not."""
        with self._guard:
            making = self._under_way
            if making is None or making.done.is_set():
                making = self._under_way = _Making()
                threading.Thread(target=self._run, args=(making,), name="http-page", daemon=True).start()
        if making.done.wait(self._within_s):
            return making.answer
        waited = time.monotonic() - making.began
        return HTTPStatus.SERVICE_UNAVAILABLE, _text(f"no answer for {waited:.0f} s; does a disk hang?\n")

    def _run(self, making: _Making) -> None:
        try:
            making.answer = self._make()
        except Exception:  # noqa: BLE001 (whoever asks gets an answer; the log has the rest)
            _log.exception("http")
        making.done.set()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 32

    def __init__(self, address: tuple[str, int], handler: type[BaseHTTPRequestHandler], client_s: float) -> None:
        self._client_s = client_s
        self._guard = threading.Lock()
        self._silent: dict[socket.socket, float] = {}
        self._places = threading.BoundedSemaphore(_AT_ONCE)
        super().__init__(address, handler)

    def server_bind(self) -> None:
        """As socketserver does it: http.server would look its own name up in the DNS."""
        TCPServer.server_bind(self)
        self.server_name, self.server_port = "", int(self.server_address[1])

    def process_request(self, request: Any, client_address: Any) -> None:  # noqa: ANN401 (socketserver's types)
        """Give a connection a thread; where there are many already, in place of the one that was silent for longest."""
        if not self._places.acquire(blocking=False) and not (self._cut_oldest() and self._places.acquire(timeout=1)):
            self.shutdown_request(request)
            return
        with self._guard:
            self._silent[request] = time.monotonic()
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:  # noqa: ANN401 (likewise)
        """One connection."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._places.release()

    def heard(self, request: socket.socket) -> None:
        """It has said what it wants."""
        with self._guard:
            self._silent.pop(request, None)

    def shutdown_request(self, request: Any) -> None:  # noqa: ANN401 (likewise)
        """It is closed now, and nobody's to cut."""
        self.heard(request)
        super().shutdown_request(request)

    def service_actions(self) -> None:
        """Cut those whose time is over; a byte now and then does not prolong it."""
        oldest = time.monotonic() - self._client_s
        with self._guard:
            for request in [one for one, since in self._silent.items() if since < oldest]:
                self._cut(request)

    def _cut_oldest(self) -> bool:
        with self._guard:
            if self._silent:
                self._cut(next(iter(self._silent)))
                return True
        return False

    def _cut(self, request: socket.socket) -> None:
        """End a connection that another thread reads from: it then reads the end."""
        del self._silent[request]
        with suppress(OSError):
            request.shutdown(socket.SHUT_RDWR)

    def handle_error(self, _request: object, client_address: object) -> None:
        """Note what went wrong with one connection; it is seldom our fault."""
        _log.debug("http client %s", client_address, exc_info=True)


class _Server6(_Server):
    address_family = socket.AF_INET6


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    server_version, sys_version = "csi-local", ""

    def answer(self) -> Answer:
        """What is asked for."""
        raise NotImplementedError

    def do_GET(self) -> None:
        """Serve a page."""
        self.server.heard(self.connection)
        status, page = self.answer()
        self.send_response(status)
        self.send_header("Content-Type", page.kind)
        self.send_header("Content-Length", str(len(page.content)))
        self.end_headers()
        self.wfile.write(page.content)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 (its name there)
        """Not a line for each probe."""
        _log.debug("http %s", format % args)


def _checked(checks: Mapping[str, Check]) -> Answer:
    wrong = {name: problem for name, check in checks.items() if (problem := check())}
    if wrong:
        text = "".join(f"{name}: {problem}\n" for name, problem in wrong.items())
        return HTTPStatus.SERVICE_UNAVAILABLE, _text(text)
    return HTTPStatus.OK, _text("ok\n")
