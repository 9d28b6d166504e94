"""The User-Mode Linux tier, seen from the guest: prepare /tmp, run each step, sum up."""

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from tests.uml import guest, linux

CHECKOUT = Path(__file__).resolve().parents[2]
TMP_DEVICE = "/dev/ubda"

_PYTEST = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-m", "uml", "--basetemp=/tmp/pytest"]
STEPS: dict[str, list[str]] = {
    "pytest": [*_PYTEST, "tests/uml", "tests/contract/test_host_crypt.py"],
    "sanity": [sys.executable, "tests/sanity/run.py", "directory-xfs"],
}


def main() -> int:
    """Run the steps named in the first argument; the others go to pytest."""
    names, *pytest_arguments = sys.argv[1:]
    booted = float(Path("/proc/uptime").read_text().split()[0])
    mount_tmp()
    results: dict[str, tuple[int, float]] = {}
    for name in names.split(","):
        results[name] = run(STEPS[name] + (pytest_arguments if name == "pytest" else []))
    print(f"\nUser-Mode Linux {os.uname().release}: up {booted:.1f} s before the first step")
    for name, (code, seconds) in results.items():
        verdict = "passed" if code == 0 else f"FAILED (exit code {code})"
        print(f"  {name:8} {verdict}, {seconds:.1f} s")
    return 1 if any(code for code, _ in results.values()) else 0


def mount_tmp() -> None:
    """Put /tmp on a disk: an image in memory could have neither direct I/O nor clones."""
    subprocess.run(["mkfs.xfs", "-q", "-K", TMP_DEVICE], check=True)  # noqa: S607
    linux.mount(TMP_DEVICE, "/tmp", "xfs")
    Path("/tmp").chmod(0o1777)
    if is_hidden(CHECKOUT):
        guest.mount_host(str(CHECKOUT), "", flags=linux.MS_RDONLY)


def is_hidden(path: Path) -> bool:
    """Say whether the guest's own mounts hide this path of the host."""
    return path.parts[1] in {"tmp", "run"}


def run(argv: Sequence[str]) -> tuple[int, float]:
    """Run one step; its exit code, and how long it took."""
    print(f"\n$ {' '.join(argv)}", flush=True)
    start = time.monotonic()
    code = subprocess.run(argv, check=False).returncode
    return code, time.monotonic() - start


if __name__ == "__main__":
    sys.exit(main())
