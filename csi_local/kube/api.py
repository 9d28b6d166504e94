"""The Kubernetes API over HTTP: a few verbs on collections of objects, which are plain dictionaries.

A collection is a path such as ``/apis/csi-local.io/v1alpha1/localvolumes``. Connections are kept alive and few: a
TLS handshake costs both sides more than a request does. Why the standard library: docs/decisions/0006.
"""

import http.client
import json
import logging
import socket
import ssl
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

from csi_local import __version__
from csi_local.kube.credentials import Credentials
from csi_local.kube.retry import spread
from csi_local.model.errors import (
    AlreadyExists,
    Conflict,
    DriverError,
    Expired,
    InvalidArgument,
    NotFound,
    Unavailable,
)

_log = logging.getLogger(__name__)

Object = dict[str, Any]
"""An object of the API, as its JSON has it."""

REQUEST_S = 10.0
WATCH_S = 300
"""A watch is ended by the server after this, and begun again where it stopped: so that servers share the load."""
_PAGE = 500
_TOKEN_S = 60.0
"""How long a token that was read is used; the kubelet replaces them long before they expire."""
_RETRY_S = 0.2
_SHOWN = 100
"""Characters of what nobody understands."""
_LONGEST_LINE = 16 << 20
"""Bytes of one event; an object has 3 MiB at most (etcd's ``--max-request-bytes``, and what the API server adds)."""
_LOST = (http.client.RemoteDisconnected, ConnectionResetError, BrokenPipeError, ssl.SSLEOFError)
"""How a kept-alive connection shows that the server has closed it meanwhile."""


class Api:
    """An API server. May be used by any number of threads."""

    def __init__(self, credentials: Credentials, connections: int = 8, *, silence_s: float = REQUEST_S) -> None:
        """At most *connections* requests are under way at once; watches have connections of their own.

        A server is given up that says nothing for *silence_s* seconds when it should.
        """
        scheme, self._host, self._port, self._prefix = _address(credentials.server)
        self._credentials = credentials
        self._tls = _context(credentials) if scheme == "https" else None
        self._slots = threading.BoundedSemaphore(connections)
        self._idle: deque[http.client.HTTPConnection] = deque()
        self._watched: set[socket.socket] = set()
        self._closed = False
        self._silence_s = silence_s
        self._token, self._token_until = credentials.token, 0.0

    def close(self) -> None:
        """Let all connections go; watches end, and nothing is asked any more."""
        self._closed = True
        for sock in list(self._watched):
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        self._drop_idle()

    def get(self, collection: str, name: str) -> Object:
        """One object.

        Raises:
            NotFound: there is none.
            Unavailable: the API cannot be reached, or refuses; likewise in all methods below.
        """
        return self._json("GET", f"{collection}/{quote(name)}")

    def list(
        self, collection: str, selector: str = "", keep: Callable[[Object], Object] = dict
    ) -> tuple[list[Object], str]:
        """All objects that a label selector chooses, as much of each as *keep* leaves; and the list's version."""
        items: list[Object] = []
        query = {"limit": str(_PAGE)} | ({"labelSelector": selector} if selector else {})
        while True:
            page = self._json("GET", f"{collection}?{urlencode(query)}")
            version = self._version(page)
            items += map(keep, page.get("items") or [])
            if not (more := page["metadata"].get("continue", "")):
                return items, version
            query["continue"] = more

    def version(self, collection: str) -> str:
        """The resource version that a list would have now."""
        return self._version(self._json("GET", f"{collection}?limit=1"))

    def create(self, collection: str, made: Object) -> Object:
        """Make an object; return it as it is now.

        Raises:
            AlreadyExists: there is one with that name; it may be this very one, if an answer was lost.
            InvalidArgument: its schema forbids it.
        """
        return self._json("POST", collection, made)

    def patch(self, collection: str, name: str, patch: Mapping[str, Any], *, status: bool = False) -> Object:
        """Change an object, or its status, by a merge patch (RFC 7386); return it as it is now.

        A patch that carries ``metadata.resourceVersion`` changes that version only.

        Raises:
            NotFound: there is none.
            Conflict: it has another version by now.
            InvalidArgument: its schema forbids it.
        """
        return self._json("PATCH", f"{collection}/{quote(name)}{'/status' if status else ''}", patch)

    def delete(self, collection: str, name: str, *, uid: str = "", version: str = "") -> None:
        """Delete an object, or only the one with that uid and resource version.

        Raises:
            NotFound: there is none.
            Conflict: it is another one by now.
        """
        wanted = {key: value for key, value in (("uid", uid), ("resourceVersion", version)) if value}
        self._json("DELETE", f"{collection}/{quote(name)}", {"preconditions": wanted} if wanted else None)

    def watch(
        self, collection: str, since: str, *, selector: str = "", timeout_s: int = WATCH_S
    ) -> Iterator[tuple[str, Object]]:
        """What happens in a collection after the resource version *since*: ADDED, MODIFIED, DELETED, BOOKMARK.

        It ends when the server ends it, which has to be within *timeout_s* seconds of its last word.

        Raises:
            Expired: that version is too old; list again.
            Unavailable: also where the server says what cannot be understood, or ends amid a word.
        """
        query = {"watch": "1", "allowWatchBookmarks": "true", "resourceVersion": since, "timeoutSeconds": timeout_s}
        if selector:
            query["labelSelector"] = selector
        connection = self._connect()
        sock = None
        try:
            connection.connect()
            self._watched.add(sock := connection.sock)
            if self._closed:  # by somebody who could not see this connection yet
                return
            response = self._exchange(connection, "GET", f"{collection}?{urlencode(query)}", None)
            sock.settimeout(timeout_s + self._silence_s)
            if response.status != http.client.OK:
                raise _error(response.status, response.read())
            for line in _lines(response):
                yield _event(line)
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise self._unreachable(error) from error
        finally:
            self._watched.discard(sock)
            connection.close()

    # --- requests

    def _json(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Object:
        data = json.dumps(body, separators=(",", ":")).encode() if body is not None else None
        status, content, retry_s = self._request(method, path, data)
        if status == http.client.UNAUTHORIZED:
            self._token_until = 0.0  # it may have been replaced
            status, content, retry_s = self._request(method, path, data)
        deadline = time.monotonic() + REQUEST_S
        while status == http.client.TOO_MANY_REQUESTS and time.monotonic() + retry_s < deadline:
            time.sleep(spread(retry_s))
            status, content, retry_s = self._request(method, path, data)
        if status >= http.client.BAD_REQUEST:
            raise _error(status, content)
        try:
            return _object(json.loads(content))
        except ValueError as error:
            raise self._unreachable(error) from error

    def _version(self, page: Object) -> str:
        """A list's resource version; without one it is no list, whatever it is, and least of all an empty one."""
        try:
            return str(int(_object(page.get("metadata")).get("resourceVersion", "")))
        except ValueError as error:
            raise self._unreachable(error) from error

    def _request(self, method: str, path: str, data: bytes | None) -> tuple[int, bytes, float]:
        """One request: its status, its content, and after how many seconds to try again if at all.

        A kept connection that turns out to be closed is replaced and the request sent again: each of ours may
        arrive twice, since it names what it makes, or says what is to be.
        """
        try:
            with self._connection() as connection:
                try:
                    response = self._exchange(connection, method, path, data)
                except _LOST:
                    connection.close()
                    response = self._exchange(connection, method, path, data)
                content = response.read()
        except (OSError, http.client.HTTPException, ValueError) as error:  # the last: a token that is none
            self._drop_idle()  # where the server has vanished, each of them would be waited for in vain
            raise self._unreachable(error) from error
        return response.status, content, _pause(response.headers.get("Retry-After", ""))

    def _exchange(
        self, connection: http.client.HTTPConnection, method: str, path: str, data: bytes | None
    ) -> http.client.HTTPResponse:
        headers = {"Accept": "application/json", "User-Agent": f"csi-local/{__version__}"}
        if token := self._bearer():
            headers["Authorization"] = f"Bearer {token}"
        if data is not None:
            headers["Content-Type"] = "application/merge-patch+json" if method == "PATCH" else "application/json"
        connection.request(method, self._prefix + path, body=data, headers=headers)
        return connection.getresponse()

    def _bearer(self) -> str:
        path = self._credentials.token_file
        if path and time.monotonic() >= self._token_until:
            self._token = Path(path).read_text(encoding="ascii").strip()
            self._token_until = time.monotonic() + _TOKEN_S
        if not self._token.isprintable():
            raise ValueError("the token holds what no header can")  # none of it: http.client would quote it all
        return self._token

    @contextmanager
    def _connection(self) -> Iterator[http.client.HTTPConnection]:
        """A connection for oneself; it is kept for the next unless this fails."""
        with self._slots:
            try:
                connection = self._idle.pop()
            except IndexError:
                connection = self._connect()
            try:
                yield connection
            except BaseException:
                connection.close()
                raise
            if self._closed:
                connection.close()
            else:
                self._idle.append(connection)

    def _drop_idle(self) -> None:
        with suppress(IndexError):
            while True:
                self._idle.pop().close()

    def _connect(self) -> http.client.HTTPConnection:
        if self._closed:
            raise Unavailable("the driver is stopping")
        if self._tls is None:
            return _Plain(self._host, self._port, timeout=self._silence_s)
        return _Secure(self._host, self._port, self._silence_s, self._tls, self._credentials.server_name or self._host)

    def _unreachable(self, error: Exception) -> DriverError:
        if isinstance(error, ssl.SSLCertVerificationError):
            with suppress(OSError, ssl.SSLError):
                self._tls = _context(self._credentials)  # the authority may have been replaced
        return Unavailable(f"the Kubernetes API at {self._credentials.server} does not answer: {error}")


def _address(server: str) -> tuple[str, str, int, str]:
    """Scheme, host, port and path of an API server.

    Raises:
        InvalidArgument: it is no such address.
    """
    with suppress(ValueError):  # no port, or brackets around nothing
        parts = urlsplit(server)
        if parts.scheme in ("http", "https") and parts.hostname:
            port = parts.port or (443 if parts.scheme == "https" else 80)
            return parts.scheme, parts.hostname, port, parts.path.rstrip("/")
    raise InvalidArgument(f"the API server's address {server!r} is not https://host:port")


class _Plain(http.client.HTTPConnection):
    def connect(self) -> None:
        """Connect, and notice within half a minute when the other side vanishes."""
        super().connect()
        _keep_alive(self.sock)


class _Secure(http.client.HTTPSConnection):
    def __init__(self, host: str, port: int, timeout_s: float, tls: ssl.SSLContext, name: str) -> None:
        super().__init__(host, port, timeout=timeout_s, context=tls)
        self._tls, self._name = tls, name

    def connect(self) -> None:
        """Connect with TLS to a server that goes by *name*; likewise."""
        http.client.HTTPConnection.connect(self)
        _keep_alive(self.sock)
        self.sock = self._tls.wrap_socket(self.sock, server_hostname=self._name)


def _keep_alive(sock: socket.socket) -> None:
    """Have the kernel probe a silent connection (tcp(7)): a watch may be silent for minutes."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in ((socket.TCP_KEEPIDLE, 10), (socket.TCP_KEEPINTVL, 5), (socket.TCP_KEEPCNT, 3)):
        sock.setsockopt(socket.IPPROTO_TCP, option, value)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 25_000)


def _lines(response: http.client.HTTPResponse) -> Iterator[bytes]:
    rest = b""
    while data := response.read1(1 << 16):
        *lines, rest = (rest + data).split(b"\n")
        if len(rest) > _LONGEST_LINE:
            raise ValueError("an event without an end")
        yield from lines
    if rest:
        raise ValueError(f"an event that was cut short: {rest[:_SHOWN]!r}")


def _event(line: bytes) -> tuple[str, Object]:
    """A line of a watch: what happened, and to what.

    Raises:
        DriverError: the server says why it cannot go on.
        ValueError: it is none.
    """
    event = _object(json.loads(line))
    kind, found = event.get("type"), _object(event.get("object"))
    if kind == "ERROR":
        code = found.get("code")
        raise _error(code if isinstance(code, int) else http.client.INTERNAL_SERVER_ERROR, line, found)
    metadata = _object(found.get("metadata"))
    if not isinstance(kind, str) or not (kind == "BOOKMARK" or metadata.get("name")):
        raise ValueError(f"no event: {line[:_SHOWN]!r}")
    int(metadata.get("resourceVersion", ""))
    return kind, found


def _object(value: Any) -> Object:  # noqa: ANN401 (JSON)
    """What should be an object.

    Raises:
        ValueError: it is none.
    """
    if not isinstance(value, dict):
        raise ValueError(f"{str(value)[:_SHOWN]!r} instead of an object")  # noqa: TRY004 (it came over the wire)
    return value


def _pause(retry_after: str) -> float:
    """Seconds until one may ask again, some even where "now" is said.

    A date (RFC 9110, 10.2.3), which our clock may not know, is as good as none.
    """
    try:
        return max(_RETRY_S, float(retry_after))
    except ValueError:
        return _RETRY_S


def _context(credentials: Credentials) -> ssl.SSLContext:
    """How to speak TLS with that server.

    Raises:
        InvalidArgument: a certificate is missing or is none.
    """
    try:
        context = ssl.create_default_context(cafile=credentials.ca_file or None, cadata=credentials.ca or None)
        # On from Python 3.13, and more than clusters' authorities keep to: many lack RFC 5280's key usage extension.
        context.verify_flags &= ~ssl.VERIFY_X509_STRICT
        if credentials.insecure:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        if credentials.cert_file:
            context.load_cert_chain(credentials.cert_file, credentials.key_file)
        elif credentials.cert:
            with tempfile.NamedTemporaryFile("w") as file:  # 0600; ssl takes files only
                file.write(f"{credentials.cert}\n{credentials.key}\n")
                file.flush()
                context.load_cert_chain(file.name)
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        raise InvalidArgument(f"the certificates for {credentials.server} cannot be used: {error}") from None
    return context


def _error(status: int, content: bytes, told: Mapping[str, Any] | None = None) -> DriverError:
    """An answer's status as an error of ours (Kubernetes API conventions, "Response Status Kind")."""
    if told is None:
        try:
            told = json.loads(content)
        except ValueError:
            told = {}
    told = told if isinstance(told, dict) else {}
    message = str(told.get("message") or f"HTTP {status}")
    match status:
        case http.client.NOT_FOUND if told.get("reason") == "NotFound":
            return NotFound(message)
        case http.client.NOT_FOUND:  # also what another server says, or one that has lost a CustomResourceDefinition
            return Unavailable("the Kubernetes API answers 404, and not of the object: it does not know such objects")
        case http.client.CONFLICT:
            return AlreadyExists(message) if told.get("reason") == "AlreadyExists" else Conflict(message)
        case http.client.GONE:
            return Expired(message)
        case http.client.BAD_REQUEST | http.client.UNPROCESSABLE_ENTITY:
            return InvalidArgument(f"the Kubernetes API refuses it: {message}")
        case _:
            return Unavailable(f"the Kubernetes API answers {status}: {message}")
