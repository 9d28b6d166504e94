"""The load: lifecycles of volumes from several client processes with several threads each.

One Python process cannot keep a driver busy and measure it at the same time, so each run is spread over processes.
They are started once and kept. What they measure they measure around the bare call.
"""

from __future__ import annotations

import itertools
import signal
import threading
import time
from collections import defaultdict
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from multiprocessing import get_context
from typing import TYPE_CHECKING, TypeVar

import grpc

from tests.bench.calls import Calls
from tests.bench.programs import Programs

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from multiprocessing.synchronize import Event
    from pathlib import Path

    from tests.bench.kinds import Kind

PROCESSES = 2
_LEAD_S = 0.3
"""Between asking the processes to begin and the common beginning."""

T = TypeVar("T")
Step = tuple[str, "Callable[[], object]"]
Samples = dict[str, list[float]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What a client process is to do: lifecycles until the time is over, by the driver or by programs.

    `threads` are this process's share of the concurrency; `place` is the driver's folder, or where the programs work.
    """

    kind: Kind
    size: int
    by_driver: bool
    place: Path
    prefix: str
    threads: int
    begin: float
    seconds: float


@dataclass(slots=True)
class Outcome:
    """What came of it.

    How many lifecycles were completed, when the last ended, the client's CPU time, each step's durations, and what
    went wrong in the others. Those are abandoned where they stand.
    """

    cycles: int = 0
    ended: float = 0.0
    cpu: float = 0.0
    samples: Samples = field(default_factory=lambda: defaultdict(list))
    failures: list[str] = field(default_factory=list)

    def add(self, other: Outcome) -> None:
        """Put two together."""
        self.cycles += other.cycles
        self.ended = max(self.ended, other.ended)
        self.cpu += other.cpu
        self.failures.extend(other.failures)
        for name, values in other.samples.items():
            self.samples[name].extend(values)


class Workers:
    """The client processes."""

    def __init__(self, pool: ProcessPoolExecutor, stop: Event) -> None:
        self._pool = pool
        self._stop = stop
        self._runs = 0

    def run(
        self, kind: Kind, size: int, place: Path, *, concurrency: int, seconds: float, by_driver: bool
    ) -> tuple[Outcome, float]:
        """Live lifecycles at a concurrency; return what came out and how many seconds it took."""
        self._runs += 1
        begin = time.monotonic() + _LEAD_S
        jobs = [
            Job(
                kind=kind,
                size=size,
                by_driver=by_driver,
                place=place,
                prefix=f"b{self._runs}-{process}",
                threads=share,
                begin=begin,
                seconds=seconds,
            )
            for process, share in enumerate(_shares(concurrency))
        ]
        total = Outcome()
        for outcome in self._results([self._pool.submit(live, job) for job in jobs]):
            total.add(outcome)
        return total, total.ended - begin

    def create(self, kind: Kind, size: int, place: Path, *, prefix: str, count: int, concurrency: int) -> float:
        """Create volumes as fast as possible; return the seconds it took."""
        shares = _shares(concurrency)
        cuts = [count * number // len(shares) for number in range(len(shares) + 1)]
        began = time.monotonic()
        done = [
            self._pool.submit(create_many, kind, size, place, prefix, (first, last), share)
            for first, last, share in zip(cuts, cuts[1:], shares, strict=False)
        ]
        self._results(done)
        return time.monotonic() - began

    def _results(self, futures: list[Future[T]]) -> list[T]:
        """Wait for them; where the wait is cut short, for an end of what they do."""
        try:
            return [future.result() for future in futures]
        except BaseException:
            self._stop.set()
            wait(futures)
            raise


def _shares(concurrency: int) -> list[int]:
    processes = min(PROCESSES, concurrency)
    return [concurrency // processes + (number < concurrency % processes) for number in range(processes)]


@contextmanager
def workers() -> Iterator[Workers]:
    """Start client processes; signals are for the main process, which then stops them."""
    context = get_context("spawn")  # forking beside gRPC's threads deadlocks
    stop = context.Event()
    with ProcessPoolExecutor(PROCESSES, mp_context=context, initializer=_begin, initargs=(stop,)) as pool:
        for future in [pool.submit(time.sleep, 0.2) for _ in range(PROCESSES)]:
            future.result()  # so that all of them have started
        yield Workers(pool, stop)


# In the client process

_stop: list[Event] = []


def _begin(stop: Event) -> None:
    _stop.append(stop)
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def _stopped() -> bool:
    return any(event.is_set() for event in _stop)


def live(job: Job) -> Outcome:
    """Lifecycle after lifecycle in each thread until the time is over; the last ones are completed and counted."""
    _wait_until(job.begin)
    cpu = time.process_time() + _children()
    with _maker(job) as steps, ThreadPoolExecutor(job.threads) as pool:
        work = partial(_live, job, steps)
        total = Outcome()
        for part in pool.map(work, range(job.threads)):
            total.add(part)
    total.cpu = time.process_time() + _children() - cpu
    total.samples = dict(total.samples)  # a factory cannot travel
    return total


def _children() -> float:
    import resource  # noqa: PLC0415 - only here

    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


@contextmanager
def _maker(job: Job) -> Iterator[Callable[[str], list[Step]]]:
    if not job.by_driver:
        yield Programs(job.kind, job.size, job.place).steps
        return
    with Calls(job.place) as calls:
        yield partial(calls.steps, job.kind, job.size)


def _live(job: Job, steps: Callable[[str], list[Step]], thread: int) -> Outcome:
    outcome = Outcome()
    until = job.begin + job.seconds
    for number in itertools.count():
        if time.monotonic() >= until or _stopped():
            break
        try:
            for name, step in steps(f"{job.prefix}-{thread}-{number}"):
                began = time.perf_counter()
                _do(step)
                outcome.samples[name].append(time.perf_counter() - began)
        except RuntimeError as error:
            outcome.failures.append(str(error))
        else:
            outcome.cycles += 1
    outcome.ended = time.monotonic()
    return outcome


def _do(step: Callable[[], object]) -> None:
    """Errors of gRPC cannot travel between processes."""
    try:
        step()
    except grpc.RpcError as error:
        raise RuntimeError(str(error)) from None


def create_many(kind: Kind, size: int, place: Path, prefix: str, span: tuple[int, int], threads: int) -> None:
    """Create the volumes with the numbers in *span*."""
    failed = threading.Event()
    with Calls(place) as calls, ThreadPoolExecutor(threads) as pool:

        def create(number: int) -> None:
            if failed.is_set() or _stopped():
                return
            try:
                _do(lambda: calls.create(kind.request(f"{prefix}{number:06}", size)))
            except RuntimeError:
                failed.set()
                raise

        for _ in pool.map(create, range(*span)):
            pass


def _wait_until(moment: float) -> None:
    time.sleep(max(0.0, moment - time.monotonic()))
