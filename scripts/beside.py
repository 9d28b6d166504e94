"""Run one command, and another one beside it, whose output is shown when both have ended.

    beside.py OTHER COMMAND    each is a line for sh; the exit status is 0 where both succeeded

Who ends this ends both.
"""

import os
import signal
import subprocess
import sys
import tempfile
from types import FrameType
from typing import IO


def main(other: str, command: str) -> int:
    """Run both; the exit status."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    with tempfile.TemporaryFile() as output:
        running = [_start(other, output), _start(command, None)]
        try:
            statuses = [process.wait() for process in reversed(running)]
        except KeyboardInterrupt:
            for process in running:
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: what they made they remove
                process.wait()
            return 130
        output.seek(0)
        shown = output.read().decode(errors="replace")
    print(f"\n--- {other} (exit status {running[0].returncode})\n{shown}", flush=True)
    return int(any(statuses))


def _start(line: str, output: IO[bytes] | None) -> subprocess.Popen[bytes]:
    return subprocess.Popen(["/bin/sh", "-c", line], stdout=output, stderr=output, start_new_session=True)


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
