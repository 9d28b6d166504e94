"""The client and the cache against an API server that has bad days."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import pytest

from csi_local.kube.api import Api
from csi_local.kube.cache import Cache
from csi_local.model.errors import AlreadyExists, Conflict, Expired, InvalidArgument, NotFound, Unavailable
from tests.fake.kubernetes import Kubernetes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

THINGS = "/apis/example.io/v1/things"
LEASES = "/apis/coordination.k8s.io/v1/namespaces/here/leases"
SOON_S = 5.0


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
        for status in (403, 500, 503):
            server.refuse("GET", status)
            with pytest.raises(Unavailable, match=str(status)):
                api.get(THINGS, "a")

    def test_throttled_requests_are_sent_again(self, api: Api, server: Kubernetes) -> None:
        server.refuse("POST", 429, **{"Retry-After": "0.01"})
        server.refuse("POST", 429, **{"Retry-After": "0.01"})
        assert api.create(THINGS, thing("a"))["spec"] == {"size": 1}

    def test_kept_connections_may_be_closed(self, api: Api, server: Kubernetes) -> None:
        api.create(THINGS, thing("a"))
        server.cut()
        assert api.get(THINGS, "a")["spec"] == {"size": 1}
        with server.outage(), pytest.raises(Unavailable):
            api.get(THINGS, "a")
        assert api.get(THINGS, "a")["spec"] == {"size": 1}

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

    def test_wait(self, cache: Cache, server: Kubernetes) -> None:
        assert cache.wait("a", lambda found: found is None, 0)
        assert not cache.wait("a", lambda found: found is not None, 0.02)
        server.create(THINGS, thing("a"))
        assert cache.wait("a", lambda found: found is not None and found["spec"]["size"] == 1, SOON_S)
        server.delete(THINGS, "a")
        assert cache.wait("a", lambda found: found is None, SOON_S)
        assert not cache._waiters
