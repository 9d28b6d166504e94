"""The tables at the end of a run."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.bench.numbers import summary
from tests.bench.report import table
from tests.soak.vitals import FD_SLACK, MEMORY_SLACK_MIB, THREAD_SLACK, WARM_SECONDS

if TYPE_CHECKING:
    from collections import Counter

    from tests.soak.tally import Tally


def tables(tally: Tally) -> str:
    """All of them."""
    return "\n\n".join(
        (
            table(tally.operations.most_common(), "operation", "times"),
            table(tally.faults.most_common(), "fault", "times"),
            table(_answers(tally), "RPC", "p50 ms", "p99 ms", "max ms", "answers"),
            _vitals(tally),
        )
    )


def _answers(tally: Tally) -> list[tuple[object, ...]]:
    """Latencies are of calls that no restart and no absurd deadline touched; answers are of all."""
    rows: list[tuple[object, ...]] = []
    for rpc in sorted(tally.codes):
        took = summary(tally.seconds.get(rpc, []))
        rows.append((rpc, *(round(ms, 1) for ms in (took["p50"], took["p99"], took["max"])), _codes(tally.codes[rpc])))
    return rows


def _codes(codes: Counter[str]) -> str:
    return ", ".join(f"{name} {count}" for name, count in codes.most_common())


def _vitals(tally: Tally) -> str:
    """The first and the last sample of each process that was seen more than once, and of the first and the last."""
    shown = []
    for pid in dict.fromkeys(sample.pid for sample in tally.vitals):
        of_one = [sample for sample in tally.vitals if sample.pid == pid]
        if len(of_one) > 1 or of_one[0] in (tally.vitals[0], tally.vitals[-1]):
            shown += [of_one[0], of_one[-1]] if len(of_one) > 1 else of_one
    rows = [sample.row() for sample in shown]
    slack = (
        f"allowed after {WARM_SECONDS:g} s of a process: {MEMORY_SLACK_MIB:g} MiB, {FD_SLACK} open files,"
        f" {THREAD_SLACK} threads more; loop devices as many as the volumes need"
    )
    return table(rows, "process", "age s", "RSS MiB", "open files", "threads", "loop devices", "volumes") + "\n" + slack
