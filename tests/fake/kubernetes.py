"""A Kubernetes API on loopback: real HTTP over a dictionary, with the semantics that our client relies on.

Resource versions, generations, the schemas of our custom resources, the status subresource, finalizers, merge patches
with preconditions, label selectors, watches with bookmarks, 409 and 410. And, on demand, what a real one does only on a
bad day: outages, answers that are lost after the work is done, history that is gone, events that come twice or in
another order, data from a backup.
"""

from __future__ import annotations

import copy
import json
import socket
import threading
import time
import uuid
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import parse_qs, unquote, urlsplit

from csi_local.kube.credentials import Credentials
from tests.fake.schemas import complaint

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

Object = dict[str, Any]
Event = tuple[int, str, str, Object, Object | None]  # version, collection, type, object, the object before


class Refused(Exception):
    """An answer that is no success."""

    def __init__(self, status: int, reason: str, message: str = "") -> None:
        super().__init__(message or reason)
        self.status, self.reason = status, reason


class Kubernetes:
    """The API server. ``with Kubernetes() as api: Api(api.credentials)``."""

    def __init__(self) -> None:
        self.objects: dict[str, dict[str, Object]] = {}
        self.requests: list[tuple[str, str]] = []
        self.token = ""
        """Demanded of every request, where it is not empty."""
        self.twice = False
        """Whether each event of a watch comes two times, the second time after the next one."""
        self._version = 100
        self._oldest = 0
        self._history: list[Event] = []
        self._changed = threading.Condition()
        self._lost: list[str] = []
        self._refuse: list[tuple[str, int, dict[str, str]]] = []
        self._interjected: list[bytes] = []
        self._connections: set[socket.socket] = set()
        self._port = 0
        self._server: _Server | None = None

    def __enter__(self) -> Self:
        self.up()
        return self

    def __exit__(self, *_: object) -> None:
        self.down()

    @property
    def credentials(self) -> Credentials:
        """How to reach it."""
        return Credentials(server=f"http://127.0.0.1:{self._port}", token=self.token)

    @property
    def kubeconfig(self) -> str:
        """The same as the content of a file."""
        return json.dumps(
            {
                "current-context": "test",
                "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
                "clusters": [{"name": "test", "cluster": {"server": self.credentials.server}}],
                "users": [{"name": "test", "user": {"token": self.token} if self.token else {}}],
            }
        )

    # --- bad days

    def up(self) -> None:
        """Serve, where it served before."""
        self._server = _Server(("127.0.0.1", self._port), self)
        self._port = self._server.server_port
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def down(self) -> None:
        """Be gone as a process that is killed: connections too."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None
        self.cut()

    def cut(self) -> None:
        """Break every connection there is."""
        with self._changed:
            for connection in self._connections:
                with suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
            self._changed.notify_all()

    @contextmanager
    def outage(self) -> Iterator[None]:
        """Be gone for the block."""
        self.down()
        yield
        self.up()

    def lose_answer(self, method: str) -> None:
        """Do what the next *method* asks for, and break the connection instead of answering."""
        self._lost.append(method)

    def refuse(self, method: str, status: int, **headers: str) -> None:
        """Answer the next *method* with *status*."""
        self._refuse.append((method, status, headers))

    def interject(self, line: bytes, times: int = 1) -> None:
        """Begin the next so many watches with *line*, and end them there where it has no end; break those there are."""
        with self._changed:
            self._interjected += [line] * times
        self.cut()

    def forget_history(self) -> None:
        """Compact: watches from any version before now are 410 Gone; break those there are."""
        with self._changed:
            self._version += 1
            self._oldest = self._version
        self.cut()

    def backup(self) -> tuple[dict[str, dict[str, Object]], int]:
        """Its data, for :meth:`restore`."""
        return copy.deepcopy(self.objects), self._version

    def restore(self, backup: tuple[dict[str, dict[str, Object]], int]) -> None:
        """Have the data of then, and the versions of then."""
        self.down()
        self.objects, self._version = copy.deepcopy(backup[0]), backup[1]
        self._history.clear()
        self._oldest = 0
        self.up()

    # --- verbs, for tests as well

    def get(self, collection: str, name: str) -> Object:
        """One object."""
        with self._changed:
            try:
                return copy.deepcopy(self.objects[collection][name])
            except KeyError:
                raise Refused(404, "NotFound") from None

    def all(self, collection: str, selector: str = "") -> list[Object]:
        """Those that a selector chooses."""
        with self._changed:
            return [copy.deepcopy(one) for one in self.objects.get(collection, {}).values() if _chosen(one, selector)]

    def create(self, collection: str, made: Object) -> Object:
        """POST."""
        made = copy.deepcopy(made)
        with self._changed:
            name = made["metadata"]["name"]
            if name in self.objects.setdefault(collection, {}):
                raise Refused(409, "AlreadyExists")
            if "/leases" not in collection and "/events" not in collection:
                made.pop("status", None)
            made["metadata"] |= {
                "uid": str(uuid.uuid4()),
                "generation": 1,
                "creationTimestamp": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            }
            return self._store(collection, "ADDED", made, None)

    def patch(self, collection: str, name: str, patch: Object, *, status: bool = False) -> Object:
        """PATCH, of the object or of its status."""
        patch = copy.deepcopy(patch)
        with self._changed:
            before = self.get(collection, name)
            wanted = patch.get("metadata", {}).pop("resourceVersion", None)
            if wanted not in (None, before["metadata"]["resourceVersion"]):
                raise Refused(409, "Conflict")
            if status:
                patch = {"status": patch.get("status", {})}
            else:
                patch.pop("status", None)
            after = _merged(before, patch)
            if after == before:
                return before
            if after.get("spec") != before.get("spec"):
                after["metadata"]["generation"] += 1
            if after["metadata"].get("deletionTimestamp") and not after["metadata"].get("finalizers"):
                return self._remove(collection, after, before)
            return self._store(collection, "MODIFIED", after, before)

    def delete(self, collection: str, name: str, *, uid: str = "", version: str = "") -> Object:
        """DELETE; what has finalizers is only marked."""
        with self._changed:
            before = self.get(collection, name)
            if uid not in ("", before["metadata"]["uid"]) or version not in ("", before["metadata"]["resourceVersion"]):
                raise Refused(409, "Conflict")
            if not before["metadata"].get("finalizers"):
                return self._remove(collection, copy.deepcopy(before), before)
            if before["metadata"].get("deletionTimestamp"):
                return before
            after = copy.deepcopy(before)
            after["metadata"]["deletionTimestamp"] = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
            after["metadata"]["generation"] += 1
            return self._store(collection, "MODIFIED", after, before)

    def lose(self, collection: str, name: str) -> None:
        """Have an object no longer, finalizers or not: what somebody does who edits, or restores, etcd."""
        with self._changed:
            before = self.get(collection, name)
            self._remove(collection, copy.deepcopy(before), before)

    def until(self, collection: str, name: str, condition: Callable[[Object | None], bool], seconds: float = 20) -> Any:  # noqa: ANN401 (an object, where the condition wants one)
        """Wait for an object to be so, None where there is none; return it."""
        deadline = time.monotonic() + seconds
        with self._changed:
            while not condition(found := self.objects.get(collection, {}).get(name)):
                left = deadline - time.monotonic()
                assert left > 0, f"{name} is still {json.dumps(found, indent=1)}"
                self._changed.wait(left)
            return copy.deepcopy(found)

    def _store(self, collection: str, kind: str, after: Object, before: Object | None) -> Object:
        if wrong := complaint(collection.rpartition("/")[2], after):
            raise Refused(422, "Invalid", wrong)
        self._version += 1
        after["metadata"]["resourceVersion"] = str(self._version)
        self.objects[collection][after["metadata"]["name"]] = after
        self._tell(collection, kind, after, before)
        return copy.deepcopy(after)

    def _remove(self, collection: str, after: Object, before: Object) -> Object:
        self._version += 1
        after["metadata"]["resourceVersion"] = str(self._version)
        del self.objects[collection][after["metadata"]["name"]]
        self._tell(collection, "DELETED", after, before)
        return copy.deepcopy(after)

    def _tell(self, collection: str, kind: str, after: Object, before: Object | None) -> None:
        self._history.append((self._version, collection, kind, copy.deepcopy(after), before))
        self._changed.notify_all()

    def page(self, collection: str, selector: str, limit: int, after: str) -> Object:
        """A list, or a part of it."""
        with self._changed:
            chosen = sorted(self.all(collection, selector), key=lambda one: str(one["metadata"]["name"]))
            rest = [one for one in chosen if one["metadata"]["name"] > after]
            items = rest[:limit] if limit else rest
            metadata = {"resourceVersion": str(self._version)}
            if len(items) < len(rest):
                metadata["continue"] = items[-1]["metadata"]["name"]
            return {"kind": "List", "metadata": metadata, "items": items}

    def events(self, collection: str, since: int, selector: str, until: float) -> Iterator[tuple[str, Object]]:
        """What a watch tells, until then; nothing for a moment is a bookmark."""
        with self._changed:
            if since < self._oldest:
                raise Refused(410, "Expired")
            position = next((i for i, one in enumerate(self._history) if one[0] > since), len(self._history))
        while time.monotonic() < until and self._server is not None:
            with self._changed:
                self._changed.wait_for(lambda: len(self._history) > position, 0.1)  # noqa: B023 (called at once)
                fresh, position = self._history[position:], len(self._history)
                version = self._version
            told = [shown for event in fresh if event[1] == collection and (shown := _shown(event, selector))]
            yield from _doubled(told) if self.twice else told
            if not fresh:
                yield "BOOKMARK", {"metadata": {"resourceVersion": str(version)}}

    # --- used by the handler

    def mishap(self, method: str) -> tuple[int, dict[str, str]] | None:
        """The refusal that was ordered for this request, if any."""
        for index, (which, status, headers) in enumerate(self._refuse):
            if which == method:
                del self._refuse[index]
                return status, headers
        return None

    def is_lost(self, method: str) -> bool:
        """Whether this answer is to be lost."""
        if method in self._lost:
            self._lost.remove(method)
            return True
        return False

    def interjected(self) -> bytes | None:
        """What this watch is to begin with, if anything was ordered."""
        with self._changed:
            return self._interjected.pop(0) if self._interjected else None

    def connected(self, connection: socket.socket, *, there: bool) -> None:
        """Keep account of the connections."""
        with self._changed:
            (self._connections.add if there else self._connections.discard)(connection)


def _merged(before: Any, patch: Any) -> Any:  # noqa: ANN401 (JSON)
    """RFC 7386."""
    if not isinstance(patch, dict):
        return patch
    after = dict(before) if isinstance(before, dict) else {}
    for key, value in patch.items():
        if value is None:
            after.pop(key, None)
        else:
            after[key] = _merged(after.get(key), value)
    return after


def _chosen(found: Object | None, selector: str) -> bool:
    if found is None:
        return False
    labels = found["metadata"].get("labels", {})
    for term in filter(None, selector.split(",")):
        key, equals, value = term.partition("=")
        if key not in labels or (equals and labels[key] != value):
            return False
    return True


def _shown(event: Event, selector: str) -> tuple[str, Object] | None:
    """An event as a watch with that selector sees it: what leaves the selection is DELETED, what enters is ADDED."""
    _, _, kind, after, before = event
    was, now = _chosen(before, selector), _chosen(after, selector) and kind != "DELETED"
    if now:
        return ("MODIFIED" if was else "ADDED"), after
    return ("DELETED", after) if was else None


def _doubled(told: list[tuple[str, Object]]) -> Iterator[tuple[str, Object]]:
    for index, event in enumerate(told):
        yield event
        if index:
            yield told[index - 1]
    yield from told[-1:]


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 128

    def __init__(self, address: tuple[str, int], api: Kubernetes) -> None:
        super().__init__(address, _Handler)
        self.api = api

    def handle_error(self, *_: object) -> None:
        """Say nothing: connections are broken on purpose."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1
    server: _Server

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def setup(self) -> None:
        super().setup()
        self.api = self.server.api
        self.api.connected(self.connection, there=True)

    def finish(self) -> None:
        self.api.connected(self.connection, there=False)
        super().finish()

    def do_GET(self) -> None:
        collection, name, _, query = self._parsed()
        if query.get("watch"):
            self._answer(lambda: self._watch(collection, query))
        elif name:
            self._answer(lambda: self.api.get(collection, name))
        else:
            limit, after = int(query.get("limit", 0)), query.get("continue", "")
            self._answer(lambda: self.api.page(collection, query.get("labelSelector", ""), limit, after))

    def do_POST(self) -> None:
        collection, body = self._parsed()[0], self._body()
        self._answer(lambda: self.api.create(collection, body))

    def do_PATCH(self) -> None:
        (collection, name, sub, _), body = self._parsed(), self._body()
        if self.headers["Content-Type"] != "application/merge-patch+json":
            self._send(415, {"message": "unsupported"})
            return
        self._answer(lambda: self.api.patch(collection, name, body, status=sub == "status"))

    def do_DELETE(self) -> None:
        (collection, name, _, _), body = self._parsed(), self._body()
        wanted = body.get("preconditions", {})
        uid, version = wanted.get("uid", ""), wanted.get("resourceVersion", "")
        self._answer(lambda: self.api.delete(collection, name, uid=uid, version=version))

    def _parsed(self) -> tuple[str, str, str, dict[str, str]]:
        """Collection, name, subresource and query."""
        parts = urlsplit(self.path)
        words = parts.path.strip("/").split("/")
        size = 3 if words[0] == "apis" else 2
        size += 3 if words[size] == "namespaces" and len(words) > size + 2 else 1
        name, sub = [*map(unquote, words[size:]), "", ""][:2]
        query = {key: values[0] for key, values in parse_qs(parts.query).items()}
        return "/" + "/".join(words[:size]), name, sub, query

    def _body(self) -> Object:
        data = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        return dict(json.loads(data)) if data else {}

    def _answer(self, act: Callable[[], Object | None]) -> None:
        self.api.requests.append((self.command, self.path))
        if mishap := self.api.mishap(self.command):
            self._send(mishap[0], {"message": "as ordered"}, mishap[1])
            return
        if self.api.token and self.headers["Authorization"] != f"Bearer {self.api.token}":
            self._send(401, {"message": "Unauthorized"})
            return
        try:
            answer, status = act(), 201 if self.command == "POST" else 200
        except Refused as refused:
            answer = {"kind": "Status", "message": f"as a real one says: {refused}", "reason": refused.reason}
            status = refused.status
        if answer is None:
            return
        if self.api.is_lost(self.command):
            self.close_connection = True
            return
        self._send(status, answer)

    def _send(self, status: int, answer: Object, headers: dict[str, str] | None = None) -> None:
        data = json.dumps(answer).encode()
        self.send_response(status)
        for key, value in {"Content-Type": "application/json", "Content-Length": len(data), **(headers or {})}.items():
            self.send_header(key, str(value))
        self.end_headers()
        self.wfile.write(data)
        self.wfile.flush()

    def _chunk(self, data: bytes) -> None:
        if data:
            self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
            self.wfile.flush()

    def _watch(self, collection: str, query: dict[str, str]) -> None:
        until = time.monotonic() + int(query.get("timeoutSeconds", 300))
        events = self.api.events(collection, int(query["resourceVersion"]), query.get("labelSelector", ""), until)
        first = next(events, None)  # refuses before anything is said
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        self.wfile.flush()
        if (odd := self.api.interjected()) is not None:
            self._chunk(odd)
            first = first if odd.endswith(b"\n") else None
        while first is not None:
            self._chunk(json.dumps({"type": first[0], "object": first[1]}).encode() + b"\n")
            first = next(events, None)
        self.wfile.write(b"0\r\n\r\n")
        self.wfile.flush()
