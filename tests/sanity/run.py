"""csi-sanity, the conformance suite, against every kind of volume that the driver makes.

    run.py                      every configuration that this kernel can do
    run.py loopfile-xfs …       only these

Each configuration gets its own driver process and folder, and two runs in a row on that one process. A run
passes when nothing failed, nothing was skipped but what this version does not offer, and nothing was left
behind.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from xml.etree import ElementTree as ET

import yaml
from tabulate import tabulate

from tests.cluster import InCluster, in_cluster
from tests.driver import serving
from tests.observe import GIB

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tests.driver import Driver

CSI_SANITY = Path(__file__).parents[2] / ".tools/bin/csi-sanity"
RUNS = 2
RUN_SECONDS = 300.0
OUTCOMES = ("passed", "failed", "skipped", "pending")
SECRETS = ("CreateVolumeSecret", "NodeStageVolumeSecret", "NodePublishVolumeSecret", "ControllerExpandVolumeSecret")
VOLUME_SIZE, EXPANDED_SIZE = GIB, 2 * GIB

ONE_THREAD = {"GOMAXPROCS": "1"}
"""csi-sanity 5.4.0 waits for its connection to become ready, and if it was so before the first look, for a minute
in vain: 2 runs of 100 with two threads or more, none of 700 with one (utils/grpcutil.go, Connect).
"""

PENDING = (
    "Controller Service [Controller Server] ListVolumes pagination should detect volumes added between pages"
    " and accept tokens when the last volume from a page is deleted"
)
"""The one spec that csi-sanity itself holds back."""

NOT_IN_THIS_VERSION = {
    "modify": {
        "Modify volume not supported",
        "Modify Volume not supported",
        "ControllerModifyVolume not supported",
    },
    "controller publish: a local volume is never attached": {
        "ControllerPublishVolume not supported",
        "ControllerPublishVolume.readonly field not supported",
        "Controller Publish, UnpublishVolume not supported",
        "ControllerUnpublishVolume not supported",
    },
    "a limit of volumes per node": {"testnodevolumeattachlimit not enabled"},
}
"""What csi-sanity says when it skips for want of a capability. Skipping for any other reason is a failure."""

NOT_ON_A_NODE = {"GroupControllerService not supported"}
"""csi-sanity asks the Identity of a node's socket whether there are groups; in a cluster the controller has them."""

ALLOWED_SKIPS = frozenset[str]().union(*NOT_IN_THIS_VERSION.values())
CLUSTER_SKIPS = ALLOWED_SKIPS | NOT_ON_A_NODE


@dataclass(frozen=True, slots=True, kw_only=True)
class Configuration:
    """One kind of volume: the pool that it is in, the StorageClass parameters, how it is used."""

    pool: str
    parameters: Mapping[str, str]
    access_type: str = "mount"
    everywhere: bool = True
    """Whether any kernel with loop devices can do it."""
    cluster: bool = False
    """Whether controller and node are a process each, over a Kubernetes API."""
    key: str = ""
    """What the volumes are encrypted with, if they are."""
    runs: int = RUNS


XFS_POOL = "main=image:{root}/pool.img,size=20Gi,fs=xfs,allocation=thin"
BTRFS_POOL = "main=image:{root}/pool.img,size=20Gi,fs=btrfs,allocation=thin"


def _loopfile(fs: str, *, cluster: bool = False) -> Configuration:
    parameters = {"backend": "loopfile", "csi.storage.k8s.io/fstype": fs}
    return Configuration(pool=XFS_POOL, parameters=parameters, cluster=cluster)


def _encrypted(fs: str = "") -> Configuration:
    """One run: each opening takes its time, and what is opened is used as any other."""
    parameters = {"encryption": "luks2", "kdfMemory": "8Mi"}
    if fs:
        parameters["csi.storage.k8s.io/fstype"] = fs
    access = "mount" if fs else "block"
    return Configuration(
        pool=XFS_POOL, parameters=parameters, access_type=access, everywhere=False, key="correct horse", runs=1
    )


CONFIGURATIONS = {
    "directory-btrfs": Configuration(pool=BTRFS_POOL, parameters={"backend": "directory"}),
    "directory-xfs": Configuration(pool=XFS_POOL, parameters={"backend": "directory"}, everywhere=False),
    "loopfile-ext4": _loopfile("ext4"),
    "loopfile-xfs": _loopfile("xfs"),
    "loopfile-btrfs": _loopfile("btrfs"),
    "loopfile-block": Configuration(pool=XFS_POOL, parameters={"backend": "loopfile"}, access_type="block"),
    "luks-ext4": _encrypted("ext4"),
    "luks-xfs": _encrypted("xfs"),
    "luks-block": _encrypted(),
    "cluster-ext4": _loopfile("ext4", cluster=True),
    "cluster-block": Configuration(
        pool=XFS_POOL, parameters={"backend": "loopfile"}, access_type="block", cluster=True
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What one run of csi-sanity came to."""

    specs: Counter[str]
    seconds: float
    complaints: list[str]
    output: str


def run_once(configuration: Configuration, driver: Driver, folder: Path) -> Result:
    """Run csi-sanity in the new `folder` and look at what it reports and what it leaves."""
    folder.mkdir()
    report = folder / "report.xml"
    parameters = folder / "parameters.yaml"
    parameters.write_text(yaml.safe_dump(dict(configuration.parameters)))
    secrets = folder / "secrets.yaml"
    given = {"encryptionKey": configuration.key}
    secrets.write_text(yaml.safe_dump(dict.fromkeys(SECRETS, given) if configuration.key else {}))
    mounts, stagings = folder / "mount", folder / "staging"
    argv = [
        str(CSI_SANITY),
        f"--csi.endpoint=unix://{driver.socket}",
        *([f"--csi.controllerendpoint=unix://{driver.head.socket}"] if isinstance(driver, InCluster) else []),
        f"--csi.mountdir={mounts}",
        f"--csi.stagingdir={stagings}",
        f"--csi.testvolumeparameters={parameters}",
        f"--csi.secrets={secrets}",
        f"--csi.testvolumeaccesstype={configuration.access_type}",
        f"--csi.testvolumesize={VOLUME_SIZE}",
        f"--csi.testvolumeexpandsize={EXPANDED_SIZE}",
        f"--ginkgo.junit-report={report}",
        f"--ginkgo.timeout={RUN_SECONDS:g}s",
        "--ginkgo.no-color",
    ]
    began = time.monotonic()
    done = subprocess.run(
        argv,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        env=os.environ | ONE_THREAD,
    )
    seconds = time.monotonic() - began
    if not report.exists():
        return Result(specs=Counter(), seconds=seconds, complaints=["csi-sanity made no report"], output=done.stdout)
    specs, complaints = judge(report, CLUSTER_SKIPS if configuration.cluster else ALLOWED_SKIPS)
    if done.returncode != 0 and not complaints:
        complaints.append(f"csi-sanity exited with {done.returncode}")
    complaints += [f"volume {volume.volume_id} still exists" for volume in driver.volumes()]
    complaints += [f"left behind: {thing}" for thing in driver.leftovers()]
    complaints += [f"left behind: {path}" for path in (mounts, stagings) if path.exists()]
    return Result(specs=specs, seconds=seconds, complaints=complaints, output=done.stdout)


def judge(report: Path, allowed: frozenset[str]) -> tuple[Counter[str], list[str]]:
    """Count the specs of a JUnit report by their outcome, and complain of those that should not have it."""
    specs: Counter[str] = Counter()
    complaints = []
    for case in ET.parse(report).iter("testcase"):  # noqa: S314 - our own csi-sanity has just written it
        name = case.get("name", "").removeprefix("[It] ")
        status = case.get("status", "")
        specs[status if status in OUTCOMES else "failed"] += 1  # also panicked, timedout, interrupted
        if status == "skipped":
            skipped = case.find("skipped")
            reason = "" if skipped is None else skipped.get("message", "").removeprefix("skipped - ")
            if reason not in allowed:
                complaints.append(f"skipped, {reason}: {name}")
        elif status != "passed" and (status, name) != ("pending", PENDING):
            failure = case.find("failure")
            complaints.append(f"{status}: {name}: {'' if failure is None else failure.get('message', '').strip()}")
    if specs["passed"] == 0:
        complaints.append("no spec passed")
    return specs, complaints


def run_configuration(name: str) -> list[Result]:
    """Run csi-sanity as often as it takes on one driver process; say what went wrong as soon as it did."""
    configuration = CONFIGURATIONS[name]
    runs = configuration.runs
    with in_cluster(configuration.pool) if configuration.cluster else serving(configuration.pool) as driver:
        results = []
        for number in range(1, runs + 1):
            result = run_once(configuration, driver, driver.root / f"sanity-{number}")
            results.append(result)
            if result.complaints:
                print(result.output, "The driver said:", driver.output(), f"{name}, run {number}:", sep="\n")
                print(*result.complaints, sep="\n")
                break  # what a failed run leaves behind spoils the next
        driver.stop()
    return results


def row(name: str, number: int, result: Result) -> list[str | int | float]:
    """Return one line of the table."""
    counts = [result.specs[outcome] for outcome in OUTCOMES]
    return [name, number, *counts, round(result.seconds, 1), "FAILED" if result.complaints else "ok"]


def main() -> int:
    """Run what was asked for and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    everywhere = [name for name, configuration in CONFIGURATIONS.items() if configuration.everywhere]
    parser.add_argument("names", nargs="*", metavar="CONFIGURATION", help=f"any of: {', '.join(CONFIGURATIONS)}")
    names = parser.parse_args().names or everywhere
    if unknown := set(names) - CONFIGURATIONS.keys():
        parser.error(f"unknown configuration: {', '.join(sorted(unknown))}")
    if os.geteuid() != 0:
        return _refuse("the driver mounts filesystems; run this as root: sudo make sanity")
    if not CSI_SANITY.exists():
        return _refuse("csi-sanity is missing; build it with: make tools")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # as on Ctrl-C: the driver must not stay behind
    results = {name: run_configuration(name) for name in names}
    rows = [row(name, number, result) for name in names for number, result in enumerate(results[name], 1)]
    headers = ["configuration", "run", *OUTCOMES, "seconds", ""]
    print(tabulate(rows, headers=headers))
    return any(result.complaints for runs in results.values() for result in runs)


def _refuse(why: str) -> int:
    print(why, file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
