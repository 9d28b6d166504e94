"""What many volumes cost: memory, time to be ready, and the calls that might look at all of them."""

from __future__ import annotations

import time
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, NamedTuple, TypedDict

from csi_local._proto import csi_pb2 as csi
from tests.bench import kinds
from tests.bench.calls import NAMES, Calls
from tests.bench.numbers import Summary, median, ratio, summary
from tests.bench.process import Memory, memory, threads
from tests.driver import serving
from tests.observe import GIB, MIB

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from tests.bench.workers import Workers
    from tests.driver import Driver

POOL = 40 * GIB
TINY = MIB
STAGED_SIZE = 16 * MIB
CONCURRENCY = 16
PAGE = 100
SETTLE_S = 1.0
"""After the work, before memory is read."""


class Settings(NamedTuple):
    """How many volumes there are in each stage, how often something is repeated, and how many are staged."""

    counts: tuple[int, ...]
    starts: int
    calls: int
    staged: int


FULL = Settings(counts=(1_000, 10_000), starts=7, calls=200, staged=100)
QUICK = Settings(counts=(300, 1_000), starts=3, calls=30, staged=20)


class Ready(TypedDict):
    """Seconds from starting the process to Probe's answer that it is ready."""

    median: float
    all: list[float]


class Costs(TypedDict):
    """A call's latency with that many volumes and with none, and the medians' ratio."""

    there: Summary
    empty: Summary
    ratio: float


class Stage(TypedDict):
    """With that many volumes. Memory of the process that made them, and of one started afterwards."""

    volumes: int
    created_per_second: float
    memory_made: Memory
    memory_started: Memory
    ready: Ready
    calls: dict[str, Costs]


class Staged(TypedDict):
    """With that many volumes staged and published: memory, and the calls of another raw block volume's life."""

    volumes: int
    memory: Memory
    calls: dict[str, Costs]


class Results(TypedDict):
    """From none, through each stage; and with some staged."""

    idle: Memory
    idle_threads: int
    ready: Ready
    stages: list[Stage]
    staged: Staged


def measure(workers: Workers, settings: Settings) -> Results:
    """Measure two drivers side by side: one gets the volumes, the other stays empty to compare with."""
    with ExitStack() as stack:
        empty = stack.enter_context(serving(kinds.pool("xfs", POOL, "thin")))
        full = stack.enter_context(serving(kinds.pool("xfs", POOL, "thin")))
        time.sleep(SETTLE_S)
        idle, idle_threads = memory(full.process.pid), threads(full.process.pid)
        ready = _ready(full, settings.starts)
        stages = []
        for count in settings.counts:
            print(f"  {count} volumes", flush=True)
            stages.append(_stage(workers, full, empty, count, settings))
    staged = _staged(settings)
    return Results(
        idle=idle,
        idle_threads=idle_threads,
        ready=ready,
        stages=stages,
        staged=staged,
    )


def _stage(workers: Workers, full: Driver, empty: Driver, count: int, settings: Settings) -> Stage:
    before = len(full.volumes())
    seconds = workers.create(
        kinds.THIN_BLOCK, TINY, full.root, prefix=f"p{count}-", count=count - before, concurrency=CONCURRENCY
    )
    made = _settled_memory(full)
    ready = _ready(full, settings.starts)
    started = _settled_memory(full)
    return Stage(
        volumes=count,
        created_per_second=round((count - before) / seconds, 1),
        memory_made=made,
        memory_started=started,
        ready=ready,
        calls=_costs(full, empty, settings.calls),
    )


def _settled_memory(driver: Driver) -> Memory:
    time.sleep(SETTLE_S)
    return memory(driver.process.pid)


def _ready(driver: Driver, times: int) -> Ready:
    seconds = []
    for _ in range(times):
        driver.stop()
        began = time.monotonic()
        driver.start()
        seconds.append(round(time.monotonic() - began, 3))
    return Ready(median=median(seconds), all=seconds)


def _staged(settings: Settings) -> Staged:
    """Another volume's life before and after many are staged: loop devices are the machine's, not one driver's."""
    print(f"  {settings.staged} staged", flush=True)
    kind = kinds.THIN_EXT4
    with serving(kinds.pool("xfs", POOL, "thin")) as driver:
        before = _lives(driver, settings.calls, "before")
        for number in range(settings.staged):
            driver.attach(driver.create(f"staged-{number}", STAGED_SIZE, params=kind.parameters, fs=kind.fs))
        then = _settled_memory(driver)
        after = _lives(driver, settings.calls, "after")
    return Staged(
        volumes=settings.staged, memory=then, calls={name: _costs_of(after[name], before[name]) for name in NAMES}
    )


def _lives(driver: Driver, count: int, prefix: str) -> dict[str, list[float]]:
    """Each step of *count* volumes' lives, one after the other."""
    samples: dict[str, list[float]] = {name: [] for name in NAMES}
    with Calls(driver.root) as calls:
        for number in range(count):
            for name, step in calls.steps(kinds.THIN_BLOCK, TINY, f"{prefix}-{number}"):
                with _timed() as took:
                    step()
                samples[name] += took
    return samples


# Calls on the two drivers in turn


def _costs(full: Driver, empty: Driver, times: int) -> dict[str, Costs]:
    with Calls(full.root) as there, Calls(empty.root) as none:
        return {
            "CreateVolume": _compare(_creation(there), _creation(none), times),
            "GetCapacity": _compare(_capacity(there), _capacity(none), times),
            f"ListVolumes, {PAGE}": _compare(_listing(there, PAGE), _listing(none, PAGE), times),
            "ListVolumes, all": _compare(_listing(there, 0), _listing(none, 0), max(3, times // 20)),
        }


def _compare(there: Callable[[int], float], empty: Callable[[int], float], times: int) -> Costs:
    """One call on each in turn, so that what else the machine does meets both alike."""
    pairs = [(there(number), empty(number)) for number in range(times)]
    return _costs_of([pair[0] for pair in pairs], [pair[1] for pair in pairs])


def _costs_of(there: Sequence[float], empty: Sequence[float]) -> Costs:
    with_volumes, without = summary(there), summary(empty)
    return Costs(there=with_volumes, empty=without, ratio=ratio(with_volumes["p50"], without["p50"]))


def _creation(calls: Calls) -> Callable[[int], float]:
    def create(number: int) -> float:
        request = kinds.THIN_BLOCK.request(f"one-{number}", TINY)
        with _timed() as took:
            volume = calls.create(request)
        calls.delete(volume)
        return took[0]

    return create


def _capacity(calls: Calls) -> Callable[[int], float]:
    request = csi.GetCapacityRequest(
        parameters=kinds.THIN_BLOCK.parameters, volume_capabilities=[kinds.THIN_BLOCK.capability]
    )

    def ask(_number: int) -> float:
        with _timed() as took:
            calls.controller.GetCapacity(request)
        return took[0]

    return ask


def _listing(calls: Calls, page: int) -> Callable[[int], float]:
    request = csi.ListVolumesRequest(max_entries=page)

    def ask(_number: int) -> float:
        with _timed() as took:
            calls.controller.ListVolumes(request)
        return took[0]

    return ask


@contextmanager
def _timed() -> Iterator[list[float]]:
    took: list[float] = []
    began = time.perf_counter()
    yield took
    took.append(time.perf_counter() - began)
