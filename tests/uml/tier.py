"""The User-Mode Linux tier, seen from the host: one boot, all of its tests.

In the guest /dev/ubda carries /tmp; the disks after it are blank and belong to the tests.
"""

import argparse
import os
import sys
from collections.abc import Sequence

from tests.uml import inside, umlrun
from tests.uml.umlrun import CHECKOUT, Guest, RunnerError

PYTHON = CHECKOUT / ".venv/bin/python"
CSI_SANITY = CHECKOUT / ".tools/bin/csi-sanity"
PROGRAMS = {
    "mkfs.ext4": "e2fsprogs",
    "mkfs.xfs": "xfsprogs",
    "mkfs.btrfs": "btrfs-progs",
    "mkswap": "util-linux",
    "losetup": "mount",
    "dmsetup": "dmsetup",
    "cryptsetup": "cryptsetup-bin",
}
GIB = 1 << 30
MEMORY_MIB = 2048
TMP_DISK = 32 * GIB
BLANK_DISKS = (GIB,) * 15
PASSED_ON = ("CSI_LOCAL_CUTS", "CSI_LOCAL_ROUNDS")
"""Variables of the environment that tests read."""


def main(arguments: Sequence[str]) -> int:
    """Run the tier; 0 when everything passed."""
    options = parse(arguments)
    umlrun.stop_on_signals()
    try:
        require()
        return umlrun.boot(guest_for(options))
    except RunnerError as error:
        sys.stderr.write(f"test-kernel: {error}\n")
        return umlrun.NO_RESULT


def require() -> None:
    """Check that what runs in the guest is there."""
    umlrun.require(PROGRAMS)
    for path, target in ((PYTHON, "setup"), (CSI_SANITY, "tools")):
        if not path.exists():
            raise RunnerError(f"{path} is missing. Make it with: make {target}")


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="tests/uml/run",
        description="Boot User-Mode Linux once and run in it what this machine's kernel may be unable to.",
        epilog="Other words go to pytest, for example: tests/uml/run --only pytest -k growth",
    )
    parser.add_argument(
        "--only", choices=[*inside.STEPS, *inside.MEASURES], action="append", help="run this step alone; repeatable"
    )
    parser.add_argument("--time-limit", type=float, default=1200, metavar="SECONDS")
    options, rest = parser.parse_known_args(arguments)
    options.pytest = rest
    return options


def guest_for(options: argparse.Namespace) -> Guest:
    """Return the guest that runs these steps."""
    steps = ",".join(options.only or inside.STEPS)
    return Guest(
        argv=[str(PYTHON), "-m", inside.__name__, steps, *options.pytest],
        cwd=str(CHECKOUT),
        env={"PYTHONDONTWRITEBYTECODE": "1", **{name: os.environ[name] for name in PASSED_ON if name in os.environ}},
        memory_mib=MEMORY_MIB,
        scratch_bytes=[TMP_DISK, *BLANK_DISKS],
        visible=[CHECKOUT] if inside.is_hidden(CHECKOUT) else [],
        time_limit=options.time_limit,
    )
