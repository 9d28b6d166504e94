"""A node of a cluster, as a process: a volume's whole life through the API and the kubelet's calls, and bad days."""

from __future__ import annotations

import shutil
import signal
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests import observe
from tests.fake.kubernetes import Kubernetes
from tests.nodes import LEASES, POOLS, VOLUMES, Node
from tests.observe import MIB
from tests.root.test_crash_points import SETTING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = pytest.mark.root

POOL = "image:{root}/pool.img,size=1536Mi,allocation=thin"
DATA = b"precious" * 512
MEMORY = 64 * MIB
SECRET = "correct-horse-battery-staple"  # noqa: S105 (a made-up one)


@pytest.fixture
def api() -> Iterator[Kubernetes]:
    with Kubernetes() as made:
        yield made


@pytest.fixture
def begin(api: Kubernetes) -> Iterator[Callable[..., Node]]:
    made: list[Node] = []

    def start(*pools: str, **options: object) -> Node:
        node = Node(Path(tempfile.mkdtemp(prefix="csi-", dir="/tmp")), *(pools or (POOL,)), api=api, **options)
        made.append(node)
        return node.start()

    yield start
    for node in made:
        node.destroy()


@pytest.fixture
def node(begin: Callable[..., Node]) -> Node:
    return begin()


def test_a_volume_s_life(node: Node) -> None:
    volume = node.provide("data", 64 * MIB, fs="ext4", claim="db")
    target = node.attach(volume)
    observe.put(target, DATA)
    status = node.grow("data", 96 * MIB)
    assert (status["capacityBytes"], status["nodeExpansionRequired"]) == (96 * MIB, True)
    node.detach(volume)
    assert observe.get(node.attach(volume), len(DATA)) == DATA
    node.change("data", state="Absent")
    assert node.answer("data")["error"]["code"] == "FAILED_PRECONDITION"
    node.detach(volume)
    node.remove("data")
    observe.until(lambda: not node.leftovers(), "nothing is left")


def test_what_the_cluster_sees(node: Node) -> None:
    node.api.until(LEASES, "csi-local-node-1", lambda found: found is not None)
    pool = node.api.until(POOLS, "node-1.pool-0", lambda found: found is not None and "status" in found)
    assert pool["status"]["conditions"][0]["status"] == "True"
    room = pool["status"]["roomBytes"]
    node.provide("data", 64 * MIB)
    node.api.until(POOLS, "node-1.pool-0", lambda found: found is not None and found["status"]["volumes"] == 1)
    assert node.api.get(POOLS, "node-1.pool-0")["status"]["roomBytes"] < room


def test_registration_health_and_metrics(node: Node) -> None:
    assert node.page("/healthz") == (200, "ok\n")
    assert node.page("/readyz") == (503, "registration: the kubelet has not called yet\n")
    assert node.register().endpoint == str(node.socket)
    assert node.page("/readyz") == (200, "ok\n")
    volume = node.provide("data", 64 * MIB, claim="db")
    node.attach(volume)
    status, text = node.page("/metrics")
    assert status == 200
    for line in (
        'csi_local_rpc_duration_seconds_count{code="OK",method="NodeStageVolume"} 1.0',
        'csi_local_operation_duration_seconds_count{operation="create",result="OK"} 1.0',
        'csi_local_pool_volumes{pool="pool-0"} 1.0',
        'csi_local_pool_ready{pool="pool-0"} 1.0',
    ):
        assert line in text
    assert node.rss() < MEMORY
    node.stop()
    assert not node.registration.exists()


def test_the_kubelet_s_directory_is_wiped(node: Node) -> None:
    node.register()
    shutil.rmtree(node.kubelet)
    node.socket.unlink()
    observe.until(lambda: node.registration.exists() and node.socket.exists(), "the sockets are back")
    node.register()
    node.connect(node.socket)
    node.attach(node.provide("data", 64 * MIB))


def test_killed_with_a_volume_in_use(node: Node) -> None:
    volume = node.provide("data", 64 * MIB)
    target = node.attach(volume)
    observe.put(target, DATA)
    node.kill()
    node.want("later", 64 * MIB)
    node.start()
    assert node.answer("later")["phase"] == "Ready"
    assert observe.get(target, len(DATA)) == DATA
    node.detach(volume)
    node.remove("data")
    assert node.on_disk() == ["later"]


def test_the_api_is_away(node: Node) -> None:
    volume = node.provide("data", 64 * MIB)
    with node.api.outage():
        observe.put(node.attach(volume), DATA)
        node.want("later", 64 * MIB)
        node.change("data", capacity={"requiredBytes": 96 * MIB, "limitBytes": 0})
        assert node.page("/healthz") == (200, "ok\n")
        node.detach(volume)
    assert node.answer("later")["phase"] == "Ready"
    assert node.answer("data")["capacityBytes"] == 96 * MIB


def test_it_starts_without_the_api(node: Node) -> None:
    volume = node.provide("data", 64 * MIB)
    target = node.attach(volume)
    with node.api.outage():
        node.restart()
        node.unpublish(volume)
        assert not target.exists()
        node.unstage(volume)
    node.remove("data")


def test_a_restored_api_gets_its_volumes_back(node: Node) -> None:
    node.provide("data", 64 * MIB, claim="db")
    node.stop()
    node.api.lose(VOLUMES, "data")
    node.start()
    status = node.answer("data")
    assert (status["volumeId"], status["capacityBytes"]) == ("data", 64 * MIB)


def test_a_pool_that_is_missing_is_told_of_and_the_other_serves(begin: Callable[..., Node]) -> None:
    node = begin("gone=device:/dev/disk/by-id/none", f"there={POOL}")
    gone = node.api.until(POOLS, "node-1.gone", lambda found: found is not None and "status" in found)
    (ready,) = gone["status"]["conditions"]
    assert (ready["type"], ready["status"]) == ("Ready", "False")
    observe.until(lambda: ("Node", "PoolNotReady") in node.events(), "it is told of")
    node.register()
    assert node.page("/readyz") == (200, "ok\n")
    assert node.provide("data", 64 * MIB).id == "data"


def test_secrets_are_nowhere(begin: Callable[..., Node]) -> None:
    node = begin(args=["--log-level", "debug", "--log-format", "json"])
    node.api.token = "bearer-" + SECRET
    (node.root / "kubeconfig").write_text(node.api.kubeconfig)
    node.restart()
    volume = node.provide("data", 64 * MIB)
    node.stage(volume, secrets={"key": SECRET})
    node.publish(volume, secrets={"key": SECRET})
    node.detach(volume)
    node.remove("data")
    assert "NodeStageVolume" in node.output()
    for place in (node.output(), node.everything_written(), Path(f"/proc/{node.process.pid}/cmdline").read_text()):
        assert SECRET not in place


def test_every_point_is_survived(node: Node, folder: Path) -> None:
    """It is killed between any two steps of the engine and of the agent; the next process completes what was wanted."""
    trace = folder / "trace"
    restart(node, f"trace:{trace}")
    found: dict[str, list[str]] = {}
    before = 0
    for step in (create, grow, remove):
        step(node, "traced")
        observe.until(lambda: trace.read_text().endswith(":answered\n"), "the last point is passed")
        lines = trace.read_text().splitlines()
        found[step.__name__] = list(dict.fromkeys(lines[before:]))
        before = len(lines)
    assert {"agent-create:done", "agent-create:answered"} <= set(found["create"])
    assert {"agent-expand:done", "agent-expand:answered"} <= set(found["grow"])
    assert {"agent-delete:done", "agent-delete:released", "agent-delete:answered"} <= set(found["remove"])
    for number in range(max(map(len, found.values()))):
        for step in (create, grow, remove):
            points = found[step.__name__]
            setting = f"kill:{points[number]}" if number < len(points) else ""
            restart(node, setting)
            step(node, f"volume-{number}", dies=bool(setting))
        observe.until(lambda: not node.leftovers(), "nothing is left")


def restart(node: Node, setting: str) -> None:
    """Do away with the process, and start one with that setting."""
    if node.running:
        node.kill()
    node.env = {**node.env, SETTING: setting}
    node.start()


def survive(node: Node, *, dies: bool) -> None:
    """Where it is to die, see that it does, and start another."""
    if dies:
        observe.until(lambda: not node.running, "it dies")
        assert node.process.wait() == -signal.SIGKILL
        restart(node, "")


def create(node: Node, name: str, *, dies: bool = False) -> None:
    """Want a volume."""
    node.want(name, 32 * MIB, fs="ext4")
    survive(node, dies=dies)
    assert node.answer(name)["capacityBytes"] == 32 * MIB
    assert node.on_disk() == [name]


def grow(node: Node, name: str, *, dies: bool = False) -> None:
    """Want it larger."""
    node.change(name, capacity={"requiredBytes": 48 * MIB, "limitBytes": 0})
    survive(node, dies=dies)
    assert node.answer(name)["capacityBytes"] == 48 * MIB


def remove(node: Node, name: str, *, dies: bool = False) -> None:
    """Want it no more."""
    node.change(name, state="Absent")
    survive(node, dies=dies)
    node.wait_gone(name)
    assert node.on_disk() == []
