"""`make soak`: a mixed load with faults, and everything that was acknowledged held against the kernel. Needs root.

Workers create, stage, publish, write, verify, grow, unpublish, unstage and delete volumes of every kind, while the
driver is killed and stopped, clients give up, pools are filled, and leftovers and damaged records are planted. Exit
status 1, and the seed, where anything was wrong.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from typing import TYPE_CHECKING

from tests.bench.fio import interruptible
from tests.soak.report import tables
from tests.soak.run import Plan, soak

if TYPE_CHECKING:
    from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Soak, and print the tables."""
    plan = _parse(argv)
    print(f"{plan.seconds / 60:g} minutes, {plan.at_once} at once, seed {plan.seed}", flush=True)
    with interruptible():
        tally = soak(plan)
    print(tables(tally))
    print(f"\n{tally.checkpoints} looks at everything, {len(tally.violations)} sorts of violations, seed {plan.seed}")
    for violation in tally.wrong():
        print(f"* {violation}")
    return 1 if tally.violations else 0


def _parse(argv: Sequence[str] | None) -> Plan:
    parser = argparse.ArgumentParser(
        prog="tests.soak", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=30.0, help="how long the load lasts (30)")
    parser.add_argument("--seed", type=int, default=time.time_ns() % (1 << 32), help="of all dice (the clock)")
    parser.add_argument("--at-once", type=int, default=16, metavar="N", help="clients (16)")
    arguments = parser.parse_args(argv)
    if os.geteuid() != 0:
        parser.error("it mounts filesystems: run it as root")
    return Plan(seconds=arguments.minutes * 60, seed=arguments.seed, at_once=arguments.at_once)


if __name__ == "__main__":
    sys.exit(main())
