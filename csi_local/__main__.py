"""``python -m csi_local`` and the console script."""

import sys

from csi_local import cli


def main() -> None:
    """Run the command line and exit with its status."""
    sys.exit(cli.main())


if __name__ == "__main__":
    main()
