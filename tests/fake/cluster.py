"""An API server in memory, over HTTP: as much of Kubernetes' behaviour as the driver relies on.

Generations, the status subresource, guarded merge patches, finalizers, label selectors, watches that end and expire,
and the schemas of the chart's custom resources; and what goes wrong: outages, and answers that are lost.
"""

from __future__ import annotations

import contextlib
import copy
import itertools
import json
import socket
import threading
import time
import uuid
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, unquote, urlsplit

from csi_local.kube.credentials import Credentials
from tests.fake.schemas import complaint

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

Object = dict[str, Any]
_PLURALS = ("localvolumes", "localpools", "localsnapshots", "leases", "events", "nodes", "persistentvolumeclaims")
_WITH_STATUS = ("localvolumes", "localpools", "localsnapshots")


class Refused(Exception):
    """An answer that is an error."""

    def __init__(self, status: int, reason: str, message: str) -> None:
        super().__init__(message)
        self.status, self.reason = status, reason


@dataclass(frozen=True, slots=True)
class Change:
    """What happened to an object: as it was and as it is, None where it is not."""

    version: int
    collection: str
    before: Object | None
    after: Object | None


@dataclass(slots=True)
class Store:
    """All objects, and all that happened to them."""

    changed: threading.Condition = field(default_factory=threading.Condition)
    objects: dict[str, dict[str, Object]] = field(default_factory=dict)
    history: list[Change] = field(default_factory=list)
    versions: Iterator[int] = field(default_factory=lambda: itertools.count(1))
    version: int = 0
    oldest: int = 0

    def put(self, collection: str, name: str, after: Object | None) -> Object | None:
        """Replace an object, or remove it; return what is there now."""
        there = self.objects.setdefault(collection, {})
        before = there.get(name)
        self.version = next(self.versions)
        if after is not None:
            after["metadata"]["resourceVersion"] = str(self.version)
            there[name] = after
        else:
            del there[name]
            before = copy.deepcopy(before)
            assert before is not None
            before["metadata"]["resourceVersion"] = str(self.version)
        self.history.append(Change(self.version, collection, before, after))
        self.changed.notify_all()
        return after


class Cluster:
    """The server. What a test asks of it directly is not counted."""

    def __init__(self) -> None:
        self.store = Store()
        self.requests: list[str] = []
        self.bodies: list[bytes] = []
        self.lose: Callable[[str], bool] = lambda _request: False
        """Whether the answer to a request gets lost, though what it asks for is done."""
        self._sockets: set[socket.socket] = set()
        self._port = 0
        self._server: ThreadingHTTPServer | None = None
        self.up()

    @property
    def credentials(self) -> Credentials:
        """How to reach it."""
        return Credentials(server=f"http://127.0.0.1:{self._port}")

    @property
    def kubeconfig(self) -> str:
        """The same as a file."""
        return json.dumps(
            {
                "current-context": "fake",
                "contexts": [{"name": "fake", "context": {"cluster": "fake", "user": "me"}}],
                "clusters": [{"name": "fake", "cluster": {"server": self.credentials.server}}],
                "users": [{"name": "me", "user": {}}],
            }
        )

    # --- as a server

    def up(self) -> None:
        """Serve, on the same port as before."""
        cluster = self

        class Handler(_Handler):
            cluster_of = cluster

        self._server = _Server(("127.0.0.1", self._port), Handler)
        self._port = int(self._server.server_address[1])
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def down(self) -> None:
        """Serve no more, and break every connection."""
        assert self._server is not None
        self._server.shutdown()
        self._server.server_close()
        for one in list(self._sockets):
            break_off(one)
        with self.store.changed:
            self.store.changed.notify_all()

    def expire(self) -> None:
        """Forget the past: a watch that begins there is told to list again."""
        with self.store.changed:
            self.store.oldest = self.store.version

    # --- as a test asks

    def items(self, collection: str) -> list[Object]:
        """All objects of a collection."""
        with self.store.changed:
            return copy.deepcopy(list(self.store.objects.get(collection, {}).values()))

    def get(self, collection: str, name: str) -> Object | None:
        """An object, None where there is none."""
        with self.store.changed:
            return copy.deepcopy(self.store.objects.get(collection, {}).get(name))

    def create(self, collection: str, made: Mapping[str, Any]) -> Object:
        """Make an object."""
        return self.answer("POST", collection, "", "", {}, dict(made))

    def patch(self, collection: str, name: str, patch: Mapping[str, Any], *, status: bool = False) -> Object:
        """Change one."""
        return self.answer("PATCH", collection, name, "status" if status else "", {}, dict(patch))

    def delete(self, collection: str, name: str) -> None:
        """Delete one, as kubectl does."""
        self.answer("DELETE", collection, name, "", {}, None)

    def forget(self, collection: str, name: str) -> None:
        """Lose one, as an etcd does that is restored from a backup."""
        with self.store.changed:
            self.store.put(collection, name, None)

    def until(self, collection: str, name: str, condition: Callable[[Object | None], bool], seconds: float = 20) -> Any:  # noqa: ANN401
        """Wait for an object to be so; return it."""
        deadline = time.monotonic() + seconds
        with self.store.changed:
            while not condition(found := self.store.objects.get(collection, {}).get(name)):
                left = deadline - time.monotonic()
                assert left > 0, f"{name} is still {json.dumps(found, indent=1)}"
                self.store.changed.wait(left)
            return copy.deepcopy(found)

    # --- the verbs

    def answer(
        self, method: str, collection: str, name: str, part: str, query: Mapping[str, str], body: Object | None
    ) -> Object:
        """What a request is answered with.

        Raises:
            Refused: an error.
        """
        with self.store.changed:
            if method == "POST":
                return self._post(collection, body or {})
            if not name:
                found = [one for one in self._there(collection).values() if _chosen(one, query)]
                return {"metadata": {"resourceVersion": str(self.store.version)}, "items": copy.deepcopy(found)}
            there = self._there(collection).get(name)
            if there is None:
                raise Refused(404, "NotFound", f"{collection} {name} not found")
            if method == "PATCH":
                return self._patch(collection, name, part, copy.deepcopy(there), body or {})
            if method == "DELETE":
                return self._delete(collection, name, copy.deepcopy(there), body or {})
            return copy.deepcopy(there)

    def _there(self, collection: str) -> dict[str, Object]:
        return self.store.objects.setdefault(collection, {})

    def _post(self, collection: str, made: Object) -> Object:
        name = made["metadata"]["name"]
        if name in self._there(collection):
            raise Refused(409, "AlreadyExists", f"{name} already exists")
        made = copy.deepcopy(made)
        if collection.endswith(_WITH_STATUS):
            made.pop("status", None)
        made["metadata"] |= {"uid": str(uuid.uuid4()), "generation": 1, "creationTimestamp": _now()}
        self._check(collection, made)
        self.store.put(collection, name, made)
        return copy.deepcopy(made)

    def _patch(self, collection: str, name: str, part: str, now: Object, patch: Object) -> Object:
        version = patch.get("metadata", {}).get("resourceVersion", "")
        if version and version != now["metadata"]["resourceVersion"]:
            raise Refused(409, "Conflict", "the object has been modified")
        before = copy.deepcopy(now)
        if part == "status":
            now["status"] = _merged(now.get("status", {}), patch.get("status", {}))
        else:
            kept = {"status"} if collection.endswith(_WITH_STATUS) else set()
            now = _merged(now, {key: value for key, value in patch.items() if key not in kept})
        if now == before:
            return now
        if now.get("spec") != before.get("spec"):
            now["metadata"]["generation"] += 1
        self._check(collection, now)
        if now["metadata"].get("deletionTimestamp") and not now["metadata"].get("finalizers"):
            self.store.put(collection, name, None)
            return now
        self.store.put(collection, name, now)
        return copy.deepcopy(now)

    def _delete(self, collection: str, name: str, now: Object, body: Object) -> Object:
        wanted = body.get("preconditions", {}).get("uid", "")
        if wanted and wanted != now["metadata"]["uid"]:
            raise Refused(409, "Conflict", "it is another object")
        if not now["metadata"].get("finalizers"):
            self.store.put(collection, name, None)
        elif not now["metadata"].get("deletionTimestamp"):
            now["metadata"] |= {"deletionTimestamp": _now(), "generation": now["metadata"]["generation"] + 1}
            self.store.put(collection, name, now)
        return now

    def _check(self, collection: str, made: Object) -> None:
        if wrong := complaint(collection.rpartition("/")[2], made):
            raise Refused(422, "Invalid", wrong)

    def events(
        self, collection: str, since: int, query: Mapping[str, str], stop: Callable[[], bool]
    ) -> Iterator[Object]:
        """What a watch is told."""
        deadline = time.monotonic() + float(query.get("timeoutSeconds", "300"))
        place = 0
        while True:
            with self.store.changed:
                if since < self.store.oldest:
                    status = {"kind": "Status", "code": 410, "reason": "Expired", "message": "too old"}
                    yield {"type": "ERROR", "object": status}
                    return
                while place == len(self.store.history):
                    if stop() or time.monotonic() >= deadline:
                        return
                    self.store.changed.wait(0.2)
                change = self.store.history[place]
            place += 1
            if change.version > since and change.collection == collection:
                yield from _event(change, query)


def _event(change: Change, query: Mapping[str, str]) -> Iterator[Object]:
    """A change, as somebody sees it who has chosen some objects."""
    before = change.before is not None and _chosen(change.before, query)
    after = change.after is not None and _chosen(change.after, query)
    if after:
        yield {"type": "MODIFIED" if before else "ADDED", "object": change.after}
    elif before:
        gone = copy.deepcopy(change.after or change.before)
        yield {"type": "DELETED", "object": gone}


def _chosen(one: Object, query: Mapping[str, str]) -> bool:
    wanted = dict(part.split("=", 1) for part in query.get("labelSelector", "").split(",") if part)
    labels = one["metadata"].get("labels", {})
    return all(labels.get(key) == value for key, value in wanted.items())


def _merged(now: Any, patch: Any) -> Any:  # noqa: ANN401 (JSON)
    """RFC 7386."""
    if not isinstance(patch, dict):
        return patch
    result = dict(now) if isinstance(now, dict) else {}
    for key, value in patch.items():
        if value is None:
            result.pop(key, None)
        else:
            result[key] = _merged(result.get(key), value)
    return result


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def break_off(one: socket.socket) -> None:
    """Break a connection."""
    with contextlib.suppress(OSError):
        one.shutdown(socket.SHUT_RDWR)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    allow_reuse_address = True
    request_queue_size = 128

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing: connections break here on purpose."""


class _Handler(BaseHTTPRequestHandler):
    cluster_of: Cluster
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def setup(self) -> None:
        """Know the connection, so that it can be broken."""
        super().setup()
        self.cluster_of._sockets.add(self.connection)
        self._server_of = self.cluster_of._server

    def finish(self) -> None:
        """Forget it."""
        self.cluster_of._sockets.discard(self.connection)
        super().finish()

    def _serve(self) -> None:
        parts = urlsplit(self.path)
        query = dict(parse_qsl(parts.query))
        words = unquote(parts.path).strip("/").split("/")
        place = next(index for index, word in enumerate(words) if word in _PLURALS)
        collection, rest = "/" + "/".join(words[: place + 1]), [*words[place + 1 :], "", ""]
        data = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if query.get("watch"):
            self._watch(collection, query)
            return
        request = f"{self.command} {parts.path}"
        self.cluster_of.requests.append(request)
        self.cluster_of.bodies.append(data)
        try:
            body = json.loads(data) if data else None
            answer, status = self.cluster_of.answer(self.command, collection, rest[0], rest[1], query, body), 200
        except Refused as error:
            status = error.status
            answer = {"kind": "Status", "code": status, "reason": error.reason, "message": str(error)}
        if self.cluster_of.lose(request):
            break_off(self.connection)
            self.close_connection = True
            return
        content = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_POST = do_PATCH = do_DELETE = _serve  # noqa: N815 (the names that http.server looks for)

    def _watch(self, collection: str, query: Mapping[str, str]) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        cluster = self.cluster_of
        for event in cluster.events(
            collection, int(query["resourceVersion"]), query, lambda: cluster._server is not self._server_of
        ):
            line = json.dumps(event).encode() + b"\n"
            self.wfile.write(f"{len(line):x}\r\n".encode() + line + b"\r\n")
            self.wfile.flush()
        self.wfile.write(b"0\r\n\r\n")

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 (its name there)
        """Say nothing."""
