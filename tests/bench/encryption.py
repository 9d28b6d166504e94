"""What the driver puts between a pod and dm-crypt: fio in User-Mode Linux, since not every kernel has dm-crypt."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

from tests.uml.crypt_speed import MARK

if TYPE_CHECKING:
    from tests.bench.disks import Results

FULL, QUICK = 5, 1
"""Rounds."""

RUN = Path(__file__).resolve().parents[1] / "uml" / "run"
TIME_LIMIT_S = 900


def measure(rounds: int) -> Results:
    """Compare an encrypted raw block volume with dm-crypt by hand over the same disk, in a kernel that has it."""
    argv = [str(RUN), "--only", "speed", "--time-limit", str(TIME_LIMIT_S)]
    env = {**os.environ, "CSI_LOCAL_ROUNDS": str(rounds)}
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, env=env) as running:
        try:
            output, _ = running.communicate()
        except BaseException:
            running.terminate()  # it takes its guest along
            raise
    found = [line.removeprefix(MARK) for line in output.splitlines() if line.startswith(MARK)]
    if running.returncode or len(found) != 1:
        message = f"{' '.join(argv)}: exit {running.returncode}: {output[-2000:]}"
        raise RuntimeError(message)
    return {"encrypted raw block": json.loads(found[0])}
