"""The suite that Kubernetes judges CSI drivers by (External.Storage of k8s.io/kubernetes/test/e2e)."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING
from xml.etree import ElementTree as ET

from tests.e2e import images

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.e2e.cluster import Cluster

DRIVER_FILE = Path(__file__).parent / "suite/driver.yaml"
PROCESSES = 4
"""Most of a spec's time is waiting."""
SECONDS = 1500.0
LEFT_OUT = (
    r"\[Disruptive\]|\[Serial\]|\[FeatureGate:|\[Feature:(SELinux|Windows|VolumeAttributesClass|volumegroupsnapshot)\]"
)
"""What restarts a kubelet through systemd, wants the cluster for itself, or a feature that is off by default."""
SUITE = "External.Storage"
FILTERED_OUT = " - "
"""Only a spec that was started and then skipped says why, after this."""


def make_images(folder: Path, programs: Path) -> None:
    """Make stand-ins for the images of the suite, under the very names that it asks for."""
    listed = subprocess.run([programs / "e2e.test", "--list-images"], check=True, capture_output=True, text=True)
    busybox, agnhost = images.busybox_layer(), images.Layer(files=[("agnhost", programs / "agnhost")])

    def named(pattern: str) -> list[str]:
        return [name for name in listed.stdout.split() if re.search(pattern, name)]

    images.make(folder / "suite-busybox.tar", named(r"/(busybox|nginx|pause):"), [busybox], [], ["sleep", "1000000"])
    gnu = [busybox, _gnu_layer()]
    images.make(folder / "suite-glibc.tar", named("/glibc-dns-testing:"), gnu, [], ["sleep", "1000000"])
    images.make(folder / "suite-agnhost.tar", named("/agnhost:"), [busybox, agnhost], ["/agnhost"], ["pause"])


def _gnu_layer() -> images.Layer:
    """The suite's multivolume specs write with GNU dd, and busybox's sh runs its own applets before the path's."""
    programs = {"bin/sh": shutil.which("dash") or "/bin/dash", "bin/dd": shutil.which("dd") or "/bin/dd"}
    libraries: set[str] = set()
    for program in programs.values():
        shown = subprocess.run(["ldd", program], check=True, capture_output=True, text=True).stdout  # noqa: S607
        libraries |= set(re.findall(r"(/\S+)", shown))
    return images.Layer(
        folders=sorted({str(Path(library).parent)[1:] for library in libraries}),
        files=[
            *((name, Path(program)) for name, program in programs.items()),
            *((library[1:], Path(library).resolve()) for library in sorted(libraries)),
        ],
    )


def run(cluster: Cluster, output: Path, argv: Sequence[str]) -> int:
    """Run the suite, print its summary, and return 0 when specs passed and none failed."""
    shutil.rmtree(output, ignore_errors=True)
    output.mkdir(parents=True)
    focus = f"{SUITE}.*" + "".join(argv[:1])
    words: list[str | Path] = [
        *(cluster.programs / "ginkgo", "run", f"--procs={PROCESSES}", f"--timeout={SECONDS:g}s", "--no-color"),
        *(f"--focus={focus}", f"--skip={LEFT_OUT}", "--junit-report=junit.xml", f"--output-dir={output}"),
        *("--poll-progress-after=0", cluster.programs / "e2e.test", "--"),
        *(f"--kubeconfig={cluster.kubeconfig}", f"--kubectl-path={cluster.programs}/kubectl"),
        *(f"--storage.testdriver={DRIVER_FILE}", f"--repo-root={DRIVER_FILE.parent}"),
        *(f"--num-nodes={len(cluster.nodes)}", "--minStartupPods=0", "--allowed-not-ready-nodes=0"),
        *("--provider=skeleton", "--kubelet-root-dir=/var/lib/kubelet", "--disable-log-dump=true"),
        "--prepull-images=false",
    ]
    environment = {**os.environ, "PATH": f"{cluster.programs}:{os.environ['PATH']}", "NO_PROXY": "*"}
    with (output / "suite.log").open("w") as log:
        done = subprocess.run(words, stdout=log, stderr=log, cwd=output, env=environment, check=False)
    failed = summarise(output / "junit.xml")
    print(f"log: {output}/suite.log")
    return done.returncode or int(failed)


def summarise(report: Path) -> bool:
    """Print how the specs ended; return whether one failed or none passed."""
    counts: Counter[str] = Counter()
    skips: Counter[str] = Counter()
    for case in ET.parse(report).iter("testcase"):  # noqa: S314 - the suite has just written it
        name, status = case.get("name", ""), case.get("status", "")
        if not name.startswith("[It]") or "External Storage" not in name:
            continue
        if status == "skipped":
            why = _message(case, "skipped")
            if FILTERED_OUT in why:
                counts["skipped"] += 1
                skips[re.sub(r'"[^"]*"', "…", why.split(FILTERED_OUT, 1)[1].splitlines()[0])[:110]] += 1
        elif status == "passed":
            counts["passed"] += 1
        else:
            counts["failed"] += 1
            print(f"failed: {name}\n    {(_message(case, 'failure') or _message(case, 'error'))[:400]}")
    for why, number in skips.most_common():
        print(f"skipped {number}: {why}")
    print(f"{counts['passed']} passed, {counts['failed']} failed, {counts['skipped']} skipped")
    return bool(counts["failed"]) or not counts["passed"]


def _message(case: ET.Element, kind: str) -> str:
    found = case.find(kind)
    return "" if found is None else found.get("message", "")
