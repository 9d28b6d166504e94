"""``python -m csi_local`` and the console script."""

import logging
import os
import sys
from contextlib import suppress


def main() -> None:
    """Run the command line and exit with its status, at once.

    A request that a stop did not wait for any longer ends here as it would by a kill, which it bears; the interpreter
    would wait for its thread, and so for a mkfs of minutes.
    """
    _open_standard_files()
    try:
        from csi_local import cli  # noqa: PLC0415 (interrupted here, it ends as it does later)

        status = cli.main()
    except KeyboardInterrupt:
        status = 130
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):  # whoever read it has gone
            stream.flush()
    os._exit(status)


def _open_standard_files() -> None:
    """Put /dev/null where a standard file is closed: else a pool's lock or a socket would get its number, and text."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # noqa: FBT003 (its way); it takes the lowest number
    sys.stdout = sys.stdout or open(1, "w", closefd=False)  # noqa: SIM115 (for as long as the process)
    sys.stderr = sys.stderr or open(2, "w", closefd=False)  # noqa: SIM115 (likewise)


if __name__ == "__main__":
    main()
