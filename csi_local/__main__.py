"""``python -m csi_local`` and the console script."""

import logging
import os
import sys
from contextlib import suppress

from csi_local import cli


def main() -> None:
    """Run the command line and exit with its status, at once.

    A request that a stop did not wait for any longer ends here as it would by a kill, which it bears; the interpreter
    would wait for its thread, and so for a mkfs of minutes.
    """
    status = cli.main()
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):  # whoever read it has gone
            stream.flush()
    os._exit(status)


if __name__ == "__main__":
    main()
