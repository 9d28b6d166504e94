"""Lifecycles per second and the latency of each call, by the driver and, in the same run, by programs."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple, TypedDict

from tests.bench import kinds
from tests.bench.calls import NAMES
from tests.bench.numbers import Summary, median, ratio, summary
from tests.bench.process import Memory, cpu_seconds, memory
from tests.bench.workers import Outcome
from tests.driver import serving
from tests.observe import GIB, take_down

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.bench.kinds import Kind
    from tests.bench.workers import Workers
    from tests.driver import Driver

CONCURRENCY = (1, 16)
VOLUME = GIB
POOL = 60 * GIB
"""Sparse. Ample, so that no create waits for the space of what was deleted just before."""


class Settings(NamedTuple):
    """Rounds, in each of which driver and programs take turns, and the seconds of a turn."""

    rounds: int
    seconds: float


FULL, QUICK = Settings(rounds=5, seconds=2.0), Settings(rounds=1, seconds=1.0)


class Rate(TypedDict):
    """One kind at one concurrency. `ratio` is the median of the rounds' ratios of driver to programs.

    CPU milliseconds are per lifecycle: the driver's with the programs it runs, and the measuring client's.
    """

    driver: float
    programs: float
    ratio: float
    driver_cpu_ms: float
    client_cpu_ms: float
    rounds: list[tuple[float, float]]
    failures: list[str]
    calls: dict[str, Summary]
    program_calls: dict[str, Summary]


class Results(TypedDict):
    """By kind and concurrency; and the driver's memory after all of a pool's kinds."""

    rates: dict[str, dict[int, Rate]]
    memory: dict[str, Memory]


def measure(workers: Workers, settings: Settings, only: tuple[str, ...] = ()) -> Results:
    """Measure each kind (or *only* some)."""
    results = Results(rates={}, memory={})
    for pool_fs in dict.fromkeys(kind.pool_fs for kind in kinds.KINDS):
        chosen = [kind for kind in kinds.KINDS if kind.pool_fs == pool_fs and (not only or kind.name in only)]
        if not chosen:
            continue
        with serving(kinds.pool(pool_fs, POOL, "thin")) as driver:
            for kind in chosen:
                results["rates"][kind.name] = {
                    at_once: _rate(driver, _Run(workers, kind, at_once, settings.seconds), settings.rounds)
                    for at_once in CONCURRENCY
                }
            results["memory"][f"{pool_fs} pool"] = memory(driver.process.pid)
    return results


class _Run(NamedTuple):
    """What stays the same in the turns of one row."""

    workers: Workers
    kind: Kind
    concurrency: int
    seconds: float

    def turn(self, place: Path, into: Outcome, *, by_driver: bool) -> float:
        """One side's turn, added to *into*; return its lifecycles per second."""
        outcome, seconds = self.workers.run(
            self.kind, VOLUME, place, concurrency=self.concurrency, seconds=self.seconds, by_driver=by_driver
        )
        into.add(outcome)
        return outcome.cycles / seconds


def _rate(driver: Driver, run: _Run, rounds: int) -> Rate:
    """Let driver and programs take turns."""
    ours, theirs, speeds, cpu = Outcome(), Outcome(), list[tuple[float, float]](), 0.0
    print(f"  {run.kind.name}, {run.concurrency} at once", flush=True)
    with _place(driver) as place:
        for _ in range(rounds):
            before = cpu_seconds(driver.process.pid)
            speed = run.turn(driver.root, ours, by_driver=True)
            cpu += cpu_seconds(driver.process.pid) - before
            speeds.append((speed, run.turn(place, theirs, by_driver=False)))
    return Rate(
        driver=median([speed for speed, _ in speeds], 1),
        programs=median([speed for _, speed in speeds], 1),
        ratio=median([ratio(*pair) for pair in speeds], 2),
        driver_cpu_ms=ratio(cpu * 1000, ours.cycles),
        client_cpu_ms=ratio(ours.cpu * 1000, ours.cycles),
        rounds=[(round(speed, 1), round(other, 1)) for speed, other in speeds],
        failures=ours.failures,
        calls={name: summary(ours.samples[name]) for name in NAMES},
        program_calls={name: summary(theirs.samples[name]) for name in NAMES},
    )


_PROGRAMS = "programs"


@contextmanager
def _place(driver: Driver) -> Iterator[Path]:
    """A folder for the programs on the pool's own filesystem."""
    place = driver.pool_roots()[0] / _PROGRAMS
    place.mkdir()
    try:
        yield place
    finally:
        take_down(place)
    place.rmdir()
