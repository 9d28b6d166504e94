"""How long claims and pods take, and what memory the driver has on a node. Prints a table; writes JSON."""

from __future__ import annotations

import json
import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from tabulate import tabulate

from tests.e2e import install
from tests.e2e.own_pods import driver_pods
from tests.e2e.timeline import Timeline
from tests.e2e.workloads import GRACE_SECONDS, claim_manifest, pod_spec, with_claim

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.e2e.api import Api, Object
    from tests.e2e.cluster import Cluster

CLASSES = ("immediate", "thin-ext4")
"""Bound at once, and when their pod is scheduled: then the scheduler looks once a second whether they are."""
ONE_BY_ONE = 20
AT_ONCE = 100
ROUNDS = 5
SIZE = "16Mi"
CALLERS = 8
SECONDS = 300.0
MIB = 1 << 20


def measure(cluster: Cluster) -> dict[str, float]:
    """Return every number by its name, in seconds, per second and MiB."""
    install.install(cluster, storageClasses=[one for one in install.VALUES["storageClasses"] if one["name"] in CLASSES])
    api, times = cluster.api, Timeline(cluster.api)
    times.watch("PersistentVolumeClaim", "default", _claim_events)
    times.watch("Pod", "default", _pod_events)
    times.watch("PersistentVolume", None, _gone_events)
    numbers = {f"{what} at the start": mib for what, mib in memory(cluster).items()}
    numbers |= one_by_one(api, times)
    numbers |= at_once(api, times)
    return numbers | memory(cluster)


def one_by_one(api: Api, times: Timeline) -> dict[str, float]:
    """One claim after the other; then one claim with its pod after the other."""
    bound, gone = [], []
    for number in range(ONE_BY_ONE):
        name, start = f"alone-{number}", time.monotonic()
        api.create(claim_manifest(name, "immediate", SIZE))
        bound.append(times.wait([name], "bound", SECONDS)[0] - start)
        volumes = volumes_of(api, [name])
        start = time.monotonic()
        api.delete("PersistentVolumeClaim", name)
        gone.append(times.wait(volumes, "gone", SECONDS)[0] - start)
    return {
        "claim to Bound, p50 (s)": statistics.median(bound),
        "claim deleted to volume gone, p50 (s)": statistics.median(gone),
        **{f"claim and pod to Running, {name}, p50 (s)": with_pods(api, times, name) for name in CLASSES},
    }


def with_pods(api: Api, times: Timeline, storage_class: str) -> float:
    """One claim with its pod after the other: the median time until the pod runs, in seconds."""
    running = []
    for number in range(ONE_BY_ONE):
        name, start = f"pod-{storage_class}-{number}", time.monotonic()
        api.create(claim_manifest(name, storage_class, SIZE))
        api.create({"kind": "Pod", "metadata": {"name": name}, "spec": with_claim(pod_spec("echo x > /data/x"), name)})
        running.append(times.wait([name], "running", SECONDS)[0] - start)
        volumes = volumes_of(api, [name])
        api.delete("Pod", name, grace=GRACE_SECONDS)
        api.delete("PersistentVolumeClaim", name)
        times.wait(volumes, "gone", SECONDS)
    return statistics.median(running)


def at_once(api: Api, times: Timeline) -> dict[str, float]:
    """A hundred claims created at once, then deleted at once; the median of a few rounds."""
    created, deleted = [], []
    for number in range(ROUNDS):
        names = [f"many-{number}-{each}" for each in range(AT_ONCE)]
        start = time.monotonic()
        _forked(lambda name: api.create(claim_manifest(name, "immediate", SIZE)), names)
        created.append(AT_ONCE / (max(times.wait(names, "bound", SECONDS)) - start))
        volumes = volumes_of(api, names)
        start = time.monotonic()
        _forked(lambda name: api.delete("PersistentVolumeClaim", name), names)
        deleted.append(AT_ONCE / (max(times.wait(volumes, "gone", SECONDS)) - start))
    return {
        f"{AT_ONCE} claims at once, bound (per s)": statistics.median(created),
        f"{AT_ONCE} claims deleted at once, gone (per s)": statistics.median(deleted),
    }


def volumes_of(api: Api, claims: list[str]) -> list[str]:
    """Return the names of the claims' volumes."""
    wanted = set(claims)
    listed = api.list("PersistentVolumeClaim", "default")
    return [item["spec"]["volumeName"] for item in listed if item["metadata"]["name"] in wanted]


def memory(cluster: Cluster) -> dict[str, float]:
    """Return the resident memory of each container of the driver's pods, the largest of its kind."""
    found: dict[str, float] = {}
    for component in ("node", "controller"):
        for pod in driver_pods(cluster, component):
            node = cluster.node(pod["spec"]["nodeName"])
            for status in pod["status"]["containerStatuses"]:
                listed = node.ctr("task", "ps", status["containerID"].removeprefix("containerd://")).splitlines()[1:]
                texts = [node.path(f"/proc/{line.split()[0]}/status").read_text() for line in listed]
                total = sum(_resident(text) for text in texts) / MIB
                name = f"{component}: memory of {status['name']} (MiB)"
                found[name] = max(total, found.get(name, 0.0))
    return found


def _resident(status: str) -> int:
    line = next(line for line in status.splitlines() if line.startswith("VmRSS:"))
    return int(line.split()[1]) * 1024


def _forked(call: Callable[[str], object], names: list[str]) -> None:
    with ThreadPoolExecutor(CALLERS) as callers:
        list(callers.map(call, names))


def _claim_events(_: str, claim: Object) -> Iterator[str]:
    if claim["status"].get("phase") == "Bound":
        yield "bound"


def _pod_events(_: str, pod: Object) -> Iterator[str]:
    if pod["status"].get("phase") == "Running":
        yield "running"


def _gone_events(change: str, _: Object) -> Iterator[str]:
    if change == "DELETED":
        yield "gone"


def report(cluster: Cluster, output: Path) -> None:
    """Measure, print the table and write the JSON."""
    numbers = measure(cluster)
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(numbers, indent=2) + "\n")
    print(tabulate(numbers.items(), headers=["", ""], floatfmt=".3g"))
    print(f"also in {output}")
