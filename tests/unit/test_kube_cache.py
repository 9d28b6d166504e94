"""The client and the cache against an API server that has bad days."""

from __future__ import annotations

import json
import logging
import socket
import threading
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import pytest

from csi_local.kube.api import Api
from csi_local.kube.cache import Cache
from csi_local.kube.credentials import Credentials
from csi_local.model.errors import AlreadyExists, Conflict, Expired, InvalidArgument, NotFound, Unavailable
from tests.fake.kubernetes import Kubernetes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

THINGS = "/apis/example.io/v1/things"
LEASES = "/apis/coordination.k8s.io/v1/namespaces/here/leases"
SOON_S = 5.0
OK = b"HTTP/1.1 200 OK\r\n\r\n"


@pytest.fixture
def server() -> Iterator[Kubernetes]:
    with Kubernetes() as server:
        yield server


@pytest.fixture
def api(server: Kubernetes) -> Iterator[Api]:
    api = Api(server.credentials)
    yield api
    api.close()


@pytest.fixture
def cache(api: Api) -> Iterator[Cache]:
    cache = Cache(api, THINGS)
    cache.start()
    assert cache.wait_synced(SOON_S)
    yield cache
    end(cache, api)


def end(cache: Cache, api: Api) -> None:
    """Stop a cache, and see that its thread ends."""
    cache.stop()
    api.close()
    cache._thread.join(SOON_S)
    assert cache.check_alive()


def thing(name: str, size: int = 1, **labels: str) -> dict[str, Any]:
    return {"metadata": {"name": name, "labels": labels}, "spec": {"size": size}}


def soon(condition: Callable[[], object]) -> None:
    """Demand that something becomes true."""
    until = time.monotonic() + SOON_S
    while not condition():
        assert time.monotonic() < until, "it did not happen"
        time.sleep(0.005)


def size(cache: Cache, name: str) -> int | None:
    found = cache.get(name)
    return None if found is None else int(found["spec"]["size"])


@contextmanager
def saying(words: bytes) -> Iterator[Credentials]:
    """A server that answers whatever it is asked with *words*, and then says nothing and goes on listening."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        kept: list[socket.socket] = []

        def serve() -> None:
            with suppress(OSError):  # it ends when the socket is closed
                while True:
                    kept.append(listening.accept()[0])
                    kept[-1].sendall(words)

        threading.Thread(target=serve, daemon=True).start()
        yield Credentials(server=f"http://127.0.0.1:{listening.getsockname()[1]}")
        listening.shutdown(socket.SHUT_RDWR)
    for one in kept:
        one.close()


class SaysTheSame(Api):
    """Each watch has one bookmark, of where it began, and ends."""

    watches = 0

    def watch(self, collection: str, since: str, **_: Any) -> Iterator[tuple[str, dict[str, Any]]]:  # noqa: ANN401, ARG002
        self.watches += 1
        yield "BOOKMARK", {"metadata": {"resourceVersion": since}}


def watched(kind: str, **found: object) -> bytes:
    """A line of a watch."""
    return json.dumps({"type": kind, "object": found}).encode() + b"\n"


class TestApi:
    def test_verbs(self, api: Api) -> None:
        made = api.create(THINGS, thing("a"))
        assert made["metadata"]["generation"] == 1
        assert api.get(THINGS, "a") == made
        changed = api.patch(THINGS, "a", {"spec": {"size": 2}})
        assert (changed["spec"], changed["metadata"]["generation"]) == ({"size": 2}, 2)
        told = api.patch(THINGS, "a", {"status": {"phase": "Ready"}}, status=True)
        assert (told["status"], told["metadata"]["generation"]) == ({"phase": "Ready"}, 2)
        api.delete(THINGS, "a", uid=made["metadata"]["uid"])
        with pytest.raises(NotFound):
            api.get(THINGS, "a")

    def test_namespaced(self, api: Api) -> None:
        api.create(LEASES, thing("one"))
        assert [one["metadata"]["name"] for one in api.list(LEASES)[0]] == ["one"]
        assert api.get(LEASES, "one")["spec"] == {"size": 1}

    def test_refusals(self, api: Api, server: Kubernetes) -> None:
        made = api.create(THINGS, thing("a"))
        with pytest.raises(AlreadyExists):
            api.create(THINGS, thing("a"))
        api.patch(THINGS, "a", {"spec": {"size": 2}})
        version = made["metadata"]["resourceVersion"]
        with pytest.raises(Conflict):
            api.patch(THINGS, "a", {"metadata": {"resourceVersion": version}, "spec": {"size": 3}})
        with pytest.raises(Conflict):
            api.delete(THINGS, "a", version=version)
        with pytest.raises(NotFound):
            api.patch(THINGS, "b", {"spec": {}})
        server.refuse("POST", 422)
        with pytest.raises(InvalidArgument):
            api.create(THINGS, thing("b"))
        for status in (403, 404, 500, 503):  # a 404 that says no reason is not of the object, but of its collection
            server.refuse("GET", status)
            with pytest.raises(Unavailable, match=str(status)):
                api.get(THINGS, "a")

    def test_throttled_requests_are_sent_again(self, api: Api, server: Kubernetes) -> None:
        for pause in ("1e-9", "-1", "", "0", "0", "0"):
            server.refuse("POST", 429, **{"Retry-After": pause})
        began = time.monotonic()
        assert api.create(THINGS, thing("a"))["spec"] == {"size": 1}
        assert time.monotonic() - began >= 0.6, "not at once, whatever the server says: others wait as well"

    def test_a_date_to_try_again_at(self, api: Api, server: Kubernetes) -> None:
        server.refuse("POST", 429, **{"Retry-After": "Wed, 21 Oct 2026 07:28:00 GMT"})
        assert api.create(THINGS, thing("a"))["spec"] == {"size": 1}

    @pytest.mark.parametrize("content", [b"[]", b"null", b"{}", b"<html>", b'{"metadata": {}}', b'{"metadata": null}'])
    def test_what_is_no_list_is_not_taken_for_an_empty_one(self, content: bytes) -> None:
        answer = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(content), content)
        with saying(answer) as credentials:
            api = Api(credentials)
            with pytest.raises(Unavailable):
                api.list(THINGS)
            api.close()

    @pytest.mark.parametrize(
        "line",
        [
            b"garbage\n",
            b"[]\n",
            b"null\n",
            b'{"type": "ADDED"}\n',
            b'{"type": "ADDED", "object": {"metad',
            watched("ADDED", metadata={"name": "odd"}),
            watched("ADDED", metadata={"name": "odd", "resourceVersion": "x"}),
            watched("ERROR", code=500, message="as ordered"),
            watched("ERROR", code="410"),
        ],
    )
    def test_what_is_no_event_ends_a_watch(self, line: bytes) -> None:
        with saying(OK + line) as credentials, pytest.raises(Unavailable):
            next(Api(credentials, silence_s=0.1).watch(THINGS, "1", timeout_s=0))

    def test_an_event_that_says_that_the_version_is_too_old(self) -> None:
        with saying(OK + watched("ERROR", code=410)) as credentials, pytest.raises(Expired):
            next(Api(credentials).watch(THINGS, "1"))

    @pytest.mark.parametrize("words", [b"", OK, OK + b"{"])
    def test_a_server_that_falls_silent_is_given_up(self, words: bytes) -> None:
        with saying(words) as credentials, pytest.raises(Unavailable, match="timed out"):
            next(Api(credentials, silence_s=0.1).watch(THINGS, "1", timeout_s=0))

    def test_kept_connections_may_be_closed(self, api: Api, server: Kubernetes) -> None:
        api.create(THINGS, thing("a"))
        server.cut()
        assert api.get(THINGS, "a")["spec"] == {"size": 1}
        with server.outage(), pytest.raises(Unavailable):
            api.get(THINGS, "a")
        assert api.get(THINGS, "a")["spec"] == {"size": 1}

    def test_a_server_that_has_vanished_is_waited_for_once(self) -> None:
        with saying(b"") as vanished:
            api = Api(vanished, silence_s=0.1)
            for _ in range(3):
                api._idle.append(api._connect())
                api._idle[-1].connect()
            with pytest.raises(Unavailable, match="timed out"):
                api.get(THINGS, "a")
            assert not api._idle

    def test_a_lost_answer_is_found_out(self, api: Api, server: Kubernetes) -> None:
        server.lose_answer("POST")
        with pytest.raises(AlreadyExists):
            api.create(THINGS, thing("a"))
        assert server.get(THINGS, "a")["spec"] == {"size": 1}

    def test_token_is_read_again(self, server: Kubernetes, tmp_path: Any) -> None:  # noqa: ANN401
        file = tmp_path / "token"
        file.write_text("first\n")
        server.token = "first"  # noqa: S105 (made up)
        credentials = type(server.credentials)(server=server.credentials.server, token_file=str(file))
        api = Api(credentials)
        api.create(THINGS, thing("a"))
        server.token = "second"  # noqa: S105
        with pytest.raises(Unavailable):
            api.get(THINGS, "a")
        file.write_text("second\n")
        assert api.get(THINGS, "a")["spec"] == {"size": 1}
        api.close()

    @pytest.mark.parametrize("token", ["hunter2\nhunter2", "hunter2\x00"])
    def test_what_is_no_token_is_not_told(self, server: Kubernetes, tmp_path: Any, token: str) -> None:  # noqa: ANN401
        file = tmp_path / "token"
        file.write_text(token)
        address = server.credentials.server
        for credentials in (
            Credentials(server=address, token=token),
            Credentials(server=address, token_file=str(file)),
        ):
            api = Api(credentials)
            with pytest.raises(Unavailable, match="no header can") as refused:
                api.get(THINGS, "a")
            assert "hunter2" not in str(refused.value)
            api.close()

    @pytest.mark.parametrize(
        "address", ["", "api:6443", "ftp://api", "https://", "https://api:99999", "https://api:x", "https://[api:6443"]
    )
    def test_what_is_no_address_is_refused(self, address: str) -> None:
        with pytest.raises(InvalidArgument, match="https://host:port"):
            Api(Credentials(server=address))

    def test_lists_come_in_pages(self, api: Api, server: Kubernetes) -> None:
        for number in range(1001):
            server.create(THINGS, thing(f"t{number:04}", even="yes" if number % 2 else "no"))
        assert len(api.list(THINGS)[0]) == 1001
        assert len(api.list(THINGS, "even=yes")[0]) == 500
        assert api.list(THINGS, "odd") == ([], api.version(THINGS))

    def test_expired_watch(self, api: Api, server: Kubernetes) -> None:
        server.create(THINGS, thing("a"))
        server.forget_history()
        with pytest.raises(Expired):
            next(api.watch(THINGS, "100"))

    def test_credentials_are_not_shown(self) -> None:
        server = Kubernetes()
        server.token = "secret"  # noqa: S105
        assert "secret" not in repr(server.credentials)


class TestCache:
    def test_follows(self, cache: Cache, server: Kubernetes) -> None:
        server.create(THINGS, thing("a"))
        soon(lambda: size(cache, "a") == 1)
        server.patch(THINGS, "a", {"spec": {"size": 2}})
        soon(lambda: size(cache, "a") == 2)
        server.delete(THINGS, "a")
        soon(lambda: cache.items() == [])

    def test_what_was_there_before(self, api: Api, server: Kubernetes) -> None:
        server.create(THINGS, thing("a", node="x"))
        server.create(THINGS, thing("b", node="y"))
        cache = Cache(api, THINGS, selector="node=x")
        assert cache.check_synced()
        cache.start()
        assert cache.wait_synced(SOON_S)
        assert not cache.check_synced()
        assert [one["metadata"]["name"] for one in cache.items()] == ["a"]
        server.patch(THINGS, "b", {"metadata": {"labels": {"node": "x"}}})
        soon(lambda: size(cache, "b"))
        server.patch(THINGS, "a", {"metadata": {"labels": {"node": "y"}}})
        soon(lambda: size(cache, "a") is None)
        end(cache, api)

    def test_own_writes_are_seen_at_once(self, cache: Cache, api: Api) -> None:
        made = api.create(THINGS, thing("a"))
        cache.observe(made)
        assert size(cache, "a") == 1
        changed = api.patch(THINGS, "a", {"spec": {"size": 2}})
        cache.observe(changed)
        cache.observe(made)
        assert size(cache, "a") == 2

    def test_a_late_answer_brings_nothing_back(self, cache: Cache, api: Api) -> None:
        made = api.create(THINGS, thing("a"))
        soon(lambda: size(cache, "a"))
        api.delete(THINGS, "a")
        soon(lambda: size(cache, "a") is None)
        cache.observe(made)
        assert cache.get("a") is None

    def test_duplicates_and_disorder(self, cache: Cache, server: Kubernetes) -> None:
        told: list[tuple[str, int | None]] = []
        cache.listen(lambda name, _old, new: told.append((name, new["spec"]["size"] if new else None)))
        server.twice = True
        with server._changed:  # so that all comes in one go
            server.create(THINGS, thing("a"))
            for number in range(2, 6):
                server.patch(THINGS, "a", {"spec": {"size": number}})
            server.create(THINGS, thing("b"))
            server.delete(THINGS, "b")
        soon(lambda: ("b", None) in told)
        assert told == [("a", 1), ("a", 2), ("a", 3), ("a", 4), ("a", 5), ("b", 1), ("b", None)]

    def test_outage(self, cache: Cache, server: Kubernetes) -> None:
        server.create(THINGS, thing("gone"))
        soon(lambda: size(cache, "gone"))
        before = cache.connected_since
        with server.outage():
            soon(lambda: cache.connected_since is None)
            server.delete(THINGS, "gone")
            server.create(THINGS, thing("a"))
            assert size(cache, "gone") == 1
        soon(lambda: size(cache, "a") and size(cache, "gone") is None)
        assert (cache.connected_since or 0) > (before or 0)
        assert not [path for _, path in server.requests[3:] if path.startswith(f"{THINGS}?limit=500")], "listed anew"
        assert not cache.check_alive()

    def test_starts_without_a_server(self, server: Kubernetes, api: Api) -> None:
        cache = Cache(api, THINGS)
        with server.outage():
            server.create(THINGS, thing("a"))
            cache.start()
            assert not cache.wait_synced(0.2)
        assert cache.wait_synced(SOON_S)
        assert size(cache, "a") == 1
        end(cache, api)

    def test_history_gone(self, cache: Cache, server: Kubernetes) -> None:
        server.create(THINGS, thing("gone"))
        soon(lambda: size(cache, "gone"))
        with server.outage():
            server.delete(THINGS, "gone")
            server.create(THINGS, thing("a"))
            server.forget_history()
        soon(lambda: size(cache, "a") and size(cache, "gone") is None)

    def test_restored_from_a_backup(self, cache: Cache, server: Kubernetes) -> None:
        server.create(THINGS, thing("a"))
        backup = server.backup()
        server.patch(THINGS, "a", {"spec": {"size": 2}})
        for number in range(9):
            server.create(THINGS, thing(f"later-{number}"))
        soon(lambda: size(cache, "a") == 2 and size(cache, "later-8"))
        server.restore(backup)
        soon(lambda: size(cache, "a") == 1 and len(cache.items()) == 1)
        server.create(THINGS, thing("new"))
        soon(lambda: size(cache, "new"))

    @pytest.mark.parametrize("line", [b"garbage\n", b"", watched("ERROR", code=410, message="too old")])
    def test_watches_that_make_no_sense(
        self, cache: Cache, server: Kubernetes, caplog: pytest.LogCaptureFixture, line: bytes
    ) -> None:
        server.create(THINGS, thing("gone"))
        soon(lambda: size(cache, "gone"))
        server.interject(line, 5)
        server.delete(THINGS, "gone")
        server.create(THINGS, thing("a"))
        soon(lambda: not server._interjected and size(cache, "a") and size(cache, "gone") is None)
        assert not cache.check_alive()
        assert len([one for one in caplog.records if one.levelno >= logging.WARNING]) <= 1
        assert len([path for _, path in server.requests if path.startswith(f"{THINGS}?limit=500")]) > 1, "not listed"

    def test_watches_that_bring_nothing_new_are_not_begun_again_at_once(self, server: Kubernetes) -> None:
        api = SaysTheSame(server.credentials)
        cache = Cache(api, THINGS)
        began = time.monotonic()
        cache.start()
        soon(lambda: api.watches >= 5)
        assert time.monotonic() - began > 0.3
        end(cache, api)

    def test_a_listener_that_fails_keeps_it_from_nobody_and_is_told_again(
        self, cache: Cache, server: Kubernetes, caplog: pytest.LogCaptureFixture
    ) -> None:
        tried: list[tuple[str, bool, int]] = []
        told: list[str] = []

        def fail(name: str, old: dict[str, Any] | None, new: dict[str, Any] | None) -> None:
            tried.append((name, old is None, new["spec"]["size"] if new else 0))
            if len(tried) < 4:
                raise RuntimeError("not foreseen")

        cache.listen(fail)
        cache.listen(lambda name, _old, _new: told.append(name))
        made = server.create(THINGS, thing("a"))
        cache.observe(made)
        assert cache.wait("a", lambda found: found is not None, SOON_S)
        assert told
        soon(lambda: len(tried) >= 4)
        assert set(tried) == {("a", True, 1)}
        server.patch(THINGS, "a", {"spec": {"size": 2}})
        soon(lambda: tried[-1] == ("a", False, 2))
        assert len([one for one in caplog.records if one.levelno >= logging.WARNING]) == 1

    def test_restored_from_a_backup_and_its_history_gone(self, cache: Cache, server: Kubernetes) -> None:
        server.create(THINGS, thing("a"))
        backup = server.backup()
        server.patch(THINGS, "a", {"spec": {"size": 2}})
        soon(lambda: size(cache, "a") == 2)
        server._interjected = [watched("ERROR", code=410)]
        with server._changed:  # so that it is not seen between the two
            server.objects, server._version = backup
            server._history.clear()
        server.cut()
        soon(lambda: size(cache, "a") == 1)

    def test_wait(self, cache: Cache, server: Kubernetes) -> None:
        assert cache.wait("a", lambda found: found is None, 0)
        assert not cache.wait("a", lambda found: found is not None, 0.02)
        server.create(THINGS, thing("a"))
        assert cache.wait("a", lambda found: found is not None and found["spec"]["size"] == 1, SOON_S)
        server.delete(THINGS, "a")
        assert cache.wait("a", lambda found: found is None, SOON_S)
        assert not cache._waiters
