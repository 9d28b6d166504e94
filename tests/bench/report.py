"""Tables of what was measured, for people."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tabulate import tabulate

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tests.bench import disks, lifecycles, neighbours, population, snapshots
    from tests.bench.numbers import Summary
    from tests.bench.process import Memory

Row = tuple[object, ...]

_SHORT = {
    "CreateVolume": "Create",
    "NodeStageVolume": "Stage",
    "NodePublishVolume": "Publish",
    "NodeUnpublishVolume": "Unpublish",
    "NodeUnstageVolume": "Unstage",
    "DeleteVolume": "Delete",
}


def tables(part: str, results: Any) -> str:  # noqa: ANN401 - each part has its own
    """The tables of a part."""
    return "\n\n".join(_TABLES[part](results)) + "\n"


def table(rows: Iterable[Row], *headers: str) -> str:
    """Rows as a table."""
    return tabulate([list(row) for row in rows], headers=headers, tablefmt="github", floatfmt="g")


def _lifecycles(results: lifecycles.Results) -> list[str]:
    rates = [(kind, at, rate) for kind, by in results["rates"].items() for at, rate in by.items()]
    speed = table(
        (
            (
                kind,
                at,
                r["driver"],
                r["programs"],
                r["ratio"],
                r["driver_cpu_ms"],
                r["client_cpu_ms"],
                len(r["failures"]),
            )
            for kind, at, r in rates
        ),
        *("volume", "at once", "lifecycles/s", "programs/s", "ratio", "CPU ms each", "client CPU ms", "failed"),
    )
    latency = table(
        (
            (kind, at, *(f"{call['p50']:.1f} / {call['p99']:.1f}" for call in rate["calls"].values()))
            for kind, at, rate in rates
        ),
        *("p50 / p99 in ms", "at once", *_SHORT.values()),
    )
    return [speed, latency]


def _population(results: population.Results) -> list[str]:
    stages = results["stages"]
    rows: list[Row] = [("0", *_memory(results["idle"]), results["ready"]["median"], "")]
    rows += [
        (f"{s['volumes']}", *_memory(s["memory_started"]), s["ready"]["median"], s["created_per_second"])
        for s in stages
    ]
    rows += [(f"{s['volumes']}, made by it", *_memory(s["memory_made"]), "", "") for s in stages]
    staged = results["staged"]
    rows.append((f"{staged['volumes']}, staged", *_memory(staged["memory"]), "", ""))
    memory = table(rows, *("volumes", "RSS MiB", "anonymous", "peak", "ready after s", "created/s at 16"))
    costs: list[tuple[object, str, population.Costs]] = [
        (s["volumes"], call, c) for s in stages for call, c in s["calls"].items()
    ]
    costs += [(f"{staged['volumes']}, staged", call, c) for call, c in staged["calls"].items()]
    calls = table(
        (
            (volumes, call, c["there"]["p50"], c["there"]["p99"], c["empty"]["p50"], c["ratio"])
            for volumes, call, c in costs
        ),
        *("volumes", "call", "p50 ms", "p99 ms", "p50 ms with none", "ratio"),
    )
    return [memory, calls]


def _memory(memory: Memory) -> tuple[float, float, float]:
    return memory["rss"], memory["anonymous"], memory["peak"]


def _neighbours(results: neighbours.Results) -> list[str]:
    rows: list[Row] = []
    for name, delay in results.items():
        rows.append((f"{name} ({delay['long_seconds']} s)", *[""] * 6))
        for what in ("quiet", "driver", "programs"):
            seen: Summary = delay[what]
            later = (
                [round(seen[part] - delay["quiet"][part], 1) for part in ("p50", "p99")]
                if what != "quiet"
                else ["", ""]
            )
            rows.append((f"… {what}", seen["n"], seen["p50"], seen["p99"], seen["max"], *later))
    headers = ("CreateVolume + DeleteVolume of others", "n", "p50 ms", "p99 ms", "max ms", "p50 later", "p99 later")
    return [table(rows, *headers)]


def _snapshots(results: snapshots.Results) -> list[str]:
    loops = table(
        (
            (name, *_both(one["unused"]), *_both(one["written"]), one["stall"], one["stall_quiet"])
            for name, one in results["loops"].items()
        ),
        *("snapshot of", "unused p50 ms", "p99", "written to p50 ms", "p99", "longest write ms", "without snapshots"),
    )
    trees = table(
        (
            (name, *_both(one["snapshot"]), *_both(one["restore"]), *_both(one["clone"]))
            for name, one in results["trees"].items()
        ),
        *("200 MiB, 2,000 files", "snapshot p50 ms", "p99", "restore p50 ms", "p99", "clone p50 ms", "p99"),
    )
    others = table(
        (
            (name, *_both(one["quiet"]), *_both(one["meanwhile"]), one["meanwhile"]["max"])
            for name, one in results["others"].items()
        ),
        *("other volumes beside", "quiet p50 ms", "p99", "meanwhile p50 ms", "p99", "max"),
    )
    return [loops, trees, others]


def _both(seen: Summary) -> tuple[float, float]:
    return seen["p50"], seen["p99"]


def _disks(results: disks.Results) -> list[str]:
    found = []
    for kind, by_workload in results.items():
        names = list(next(iter(by_workload.values()))["median"])
        found.append(
            table(
                (
                    (load, r["unit"], *(r["median"][n] for n in names), *(r["ratio"][n] for n in names[1:]))
                    for load, r in by_workload.items()
                ),
                *(kind, "unit", *names, *(f"{name} / {names[0]}" for name in names[1:])),
            )
        )
    return found


_TABLES: dict[str, Any] = {
    "lifecycles": _lifecycles,
    "population": _population,
    "neighbours": _neighbours,
    "snapshots": _snapshots,
    "encryption": _disks,
    "fio": _disks,
}
