"""`python -m tests.e2e`: the driver in a real Kubernetes on this machine.

python -m tests.e2e scenarios [PYTEST ARGUMENTS]   what users do, with real pods
python -m tests.e2e bench                           how long claims and pods take, and the driver's memory
python -m tests.e2e external [PATTERN]              the storage suite of Kubernetes
python -m tests.e2e shell [COMMAND]                 a cluster with the driver until the command ends
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

from tests.e2e import bench, binaries, cluster, external, images, install, node, sandbox, scenarios

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
    if not install.HELM.exists():
        sys.exit(f"missing: {install.HELM}\nRun: make tools")
    suite = sys.argv[1:2] == ["external"]
    programs = binaries.build(["cluster", "snapshots", *(["external"] if suite else [])])
    with sandbox.folder() as folder:
        images.make_stand_ins(folder / "images", programs)
        shutil.copytree(binaries.snapshot_crds(), folder / cluster.SNAPSHOT_CRDS)
        if suite:
            external.make_images(folder / "images", programs)
        install.build_image(folder / "images/csi-local.tar")
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
    programs = binaries.folder()
    with cluster.running(folder, programs, archives) as made:
        _say(f"a cluster of {len(made.nodes)} nodes", start)
        start = time.monotonic()
        if argv[0] != "bench":
            made.control_plane.snapshots.start()
        install.install(made)
        _say("the driver is installed", start)
        match argv[0]:
            case "scenarios":
                install.make_snapshot_classes(made)
                return scenarios.run(made, argv[1:])
            case "external":
                return external.run(made, ROOT / ".e2e/external", argv[1:])
            case "bench":
                bench.report(made, ROOT / ".e2e/bench.json")
                return 0
            case "shell":
                env = {**os.environ, "KUBECONFIG": str(made.kubeconfig), "PATH": f"{programs}:{os.environ['PATH']}"}
                return subprocess.run(argv[1:] or ["sleep", "infinity"], check=False, env=env).returncode
            case other:
                sys.exit(f"unknown: {other}")


def _say(what: str, start: float) -> None:
    print(f"e2e: {what} after {time.monotonic() - start:.1f} s", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
