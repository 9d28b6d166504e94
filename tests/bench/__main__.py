"""`make bench`: measure the driver on this machine. Needs root; takes about half an hour, or minutes with --quick.

Nothing here passes or fails: numbers of a shared machine are to be read beside what was measured in the same run.
docs/reference/benchmarks.md says what each row means.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.bench import disks, encryption, lifecycles, neighbours, population, report, snapshots
from tests.bench.fio import interruptible
from tests.bench.workers import workers

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tests.bench.workers import Workers

PARTS: dict[str, Callable[[Workers, bool], Any]] = {
    "lifecycles": lambda load, quick: lifecycles.measure(load, lifecycles.QUICK if quick else lifecycles.FULL),
    "population": lambda load, quick: population.measure(load, population.QUICK if quick else population.FULL),
    "neighbours": lambda _load, quick: neighbours.measure(neighbours.QUICK if quick else neighbours.FULL),
    "snapshots": lambda _load, quick: snapshots.measure(snapshots.QUICK if quick else snapshots.FULL),
    "encryption": lambda _load, quick: encryption.measure(encryption.QUICK if quick else encryption.FULL),
    "fio": lambda _load, quick: disks.measure(disks.QUICK if quick else disks.FULL),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Measure the parts asked for, print tables after each, and write everything as JSON; 1 if a part broke off."""
    arguments = _parse(argv)
    document: dict[str, Any] = {"machine": machine(), "quick": arguments.quick, "load": {}, "parts": {}, "broken": {}}
    with interruptible(), workers() as load:
        for part in arguments.parts or PARTS:
            _measure(part, load, arguments.quick, document)
            arguments.json.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    print(f"written to {arguments.json}")
    return 1 if document["broken"] else 0


def _measure(part: str, load: Workers, quick: bool, document: dict[str, Any]) -> None:  # noqa: FBT001 - as in PARTS
    """One part into the document. Where it breaks off, the others are still worth having."""
    began = time.monotonic()
    print(f"{part} …", flush=True)
    try:
        document["parts"][part] = PARTS[part](load, quick)
    except Exception as error:  # noqa: BLE001 - whatever it is
        document["broken"][part] = repr(error)
        traceback.print_exc()
        return
    document["load"][part] = round(os.getloadavg()[1], 1)
    print(report.tables(part, document["parts"][part]))
    took = time.monotonic() - began
    print(f"{part} took {took:.0f} s, load average {document['load'][part]}\n", flush=True)


def machine() -> dict[str, Any]:
    """What the numbers were measured on."""
    with Path("/proc/meminfo").open(encoding="ascii") as file:
        memory_kib = int(file.readline().split()[1])
    return {
        "kernel": platform.release(),
        "machine": platform.machine(),
        "cpus": os.cpu_count(),
        "memory_gib": round(memory_kib / (1 << 20), 1),
        "python": platform.python_version(),
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
    }


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="tests.bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"some of {', '.join(PARTS)}; all of them if none")
    parser.add_argument("--quick", action="store_true", help="fewer, shorter rounds: a look, not a measurement")
    parser.add_argument("--json", type=Path, default=Path("bench.json"), metavar="FILE", help="default: bench.json")
    arguments = parser.parse_args(argv)
    if unknown := sorted(set(arguments.parts) - set(PARTS)):
        parser.error(f"there is no part {unknown[0]!r}; there are {', '.join(PARTS)}")
    if os.geteuid() != 0:
        parser.error("it mounts filesystems: run it as root")
    return arguments


if __name__ == "__main__":
    sys.exit(main())
