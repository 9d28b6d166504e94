"""`python -m tests.e2e`: the driver in a real Kubernetes on this machine.

    python -m tests.e2e scenarios [PYTEST ARGUMENTS]   what users do, with real pods
    python -m tests.e2e shell [COMMAND]                 a cluster with the driver until the command ends
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

from tests.e2e import binaries, cluster, images, node, sandbox

ROOT = Path(__file__).parents[2]
LOGS = ROOT / ".e2e/logs"
INSIDE = "E2E_INSIDE"
"""Set, in the sandbox, to the cluster's folder."""


def main() -> int:
    """Prepare what needs the network, then go into the sandbox."""
    if os.environ.get(INSIDE):
        return inside(Path(os.environ[INSIDE]), sys.argv[1:])
    if os.geteuid() != 0:
        sys.exit("this starts containers: run it as root")
    if missing := node.programs_missing():
        sys.exit(f"missing: {', '.join(missing)}\nRun: make setup-e2e")
    programs = binaries.build(["cluster"])
    with sandbox.folder() as folder:
        images.make_stand_ins(folder / "images", programs)
        try:
            return sandbox.run([sys.executable, "-m", "tests.e2e", *sys.argv[1:]], {INSIDE: str(folder)})
        finally:
            shutil.rmtree(LOGS, ignore_errors=True)
            if (folder / "logs").exists():
                shutil.copytree(folder / "logs", LOGS, symlinks=True)
                print(f"logs are in {LOGS}", file=sys.stderr)


def inside(folder: Path, argv: list[str]) -> int:
    """Start the cluster and run the command on it."""
    start = time.monotonic()
    archives = sorted((folder / "images").glob("*.tar"))
    with cluster.running(folder, binaries.folder(), archives) as made:
        print(f"a cluster of {len(made.nodes)} nodes in {time.monotonic() - start:.1f} s", file=sys.stderr, flush=True)
        env = {**os.environ, "KUBECONFIG": str(made.kubeconfig), "PATH": f"{made.programs}:{os.environ['PATH']}"}
        return subprocess.run(argv[1:] or ["bash"], check=False, env=env).returncode


if __name__ == "__main__":
    sys.exit(main())
