"""Compare the speed of files and block devices with fio, in alternating rounds.

Absolute numbers from a shared machine mean nothing an hour later. So every round runs all targets within seconds of
each other, in a new random order (in a fixed one a target always pays for what the one before it left behind), and
what counts is the median over the rounds of each target's ratio to the first target *of the same round*. Give a target
twice to see the noise.

    targets NAME=PATH NAME=PATH ...   any files or block devices; the first is the baseline
    directory VOLUME BENEATH          a published directory volume against the filesystem beneath it
    loop VOLUME POOL                  a loop device made by the driver, or a directory on one, against a bare
                                      `losetup --direct-io=on` over the same kind of file in POOL

Run it as `python -m tests.bench.fio`: as a script it would meet numbers.py of this folder in place of Python's.
Block devices given are overwritten; one in use is refused. Loop devices, mounts and files made here are removed again,
on SIGINT, SIGTERM and SIGHUP too. Needs root (loop devices, mounts) and fio.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import stat
import statistics
import subprocess
import sys
import tempfile
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypedDict

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from types import FrameType

KIB = 1 << 10
MIB = 1 << 20
FIO_GRACE_S = 60.0
"""What a fio run may take beyond its own runtime before it counts as hung."""

BARE_QUEUE = {"scheduler": "[none]", "nr_requests": "128", "nomerges": "0", "rq_affinity": "1"}
"""The kernel's defaults for a loop device (6.18), as sysfs prints them; the scheduler in use comes first here."""

Unit = Literal["iops", "MiB/s"]
Extents = Literal["unwritten", "sparse"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """One access pattern; `rw` is fio's word for it."""

    name: str
    rw: Literal["read", "write", "randread", "randwrite"]
    block: int
    depth: int
    unit: Unit


WORKLOADS: tuple[Workload, ...] = (
    Workload(name="random write 4k", rw="randwrite", block=4 * KIB, depth=16, unit="iops"),
    Workload(name="random read 4k", rw="randread", block=4 * KIB, depth=16, unit="iops"),
    Workload(name="sequential write 1M", rw="write", block=MIB, depth=4, unit="MiB/s"),
    Workload(name="sequential read 1M", rw="read", block=MIB, depth=4, unit="MiB/s"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A file (made if missing) or a block device (overwritten)."""

    name: str
    path: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How long and how much: `size` bytes of each target, `rounds` runs of `seconds` for each workload."""

    size: int = 256 * MIB
    seconds: float = 2.0
    rounds: int = 5
    workloads: tuple[Workload, ...] = WORKLOADS
    engine: str = "libaio"


class Result(TypedDict):
    """One workload's outcome, by target name. `ratio` is to the first target, the median of the rounds' ratios."""

    unit: Unit
    median: dict[str, float]
    ratio: dict[str, float]
    samples: dict[str, list[float]]


Results = dict[str, Result]


# --- running -------------------------------------------------------------------------------------------------------


def run(*argv: str, timeout: float = FIO_GRACE_S) -> str:
    """Run a program in its own session, so that Ctrl-C reaches only us and the cleanup is not cut short."""
    done = subprocess.run(
        argv,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout,
        start_new_session=True,
        check=False,
    )
    if done.returncode != 0:
        message = f"{' '.join(argv)}: exit {done.returncode}: {done.stderr.strip() or done.stdout.strip()}"
        raise RuntimeError(message)
    return done.stdout


def _fio(target: Target, settings: Settings, workload: Workload, *options: str, timeout: float = FIO_GRACE_S) -> str:
    return run(
        "fio",
        "--name=bench",
        f"--filename={target.path}",
        f"--size={settings.size}",
        f"--ioengine={settings.engine}",
        f"--rw={workload.rw}",
        f"--bs={workload.block}",
        f"--iodepth={workload.depth}",
        "--direct=1",
        "--thread",  # no forked job outlives a killed fio
        "--fallocate=none",  # leave the file's extents as the target's maker chose them
        "--randrepeat=0",
        "--output-format=json",
        *options,
        timeout=timeout,
    )


def measure(target: Target, settings: Settings, workload: Workload) -> float:
    """One timed run: operations per second, or MiB per second, as the workload's unit says."""
    options = ("--time_based", f"--runtime={int(settings.seconds * 1000)}ms")
    out = _fio(target, settings, workload, *options, timeout=settings.seconds + FIO_GRACE_S)
    direction = "read" if workload.rw.endswith("read") else "write"
    report = json.loads(out)["jobs"][0][direction]
    return float(report["iops"]) if workload.unit == "iops" else float(report["bw_bytes"]) / MIB


def fill(target: Target, settings: Settings) -> None:
    """Write the whole range once: reading blocks never written would measure nothing."""
    if target.path.is_block_device():
        os.close(os.open(target.path, os.O_RDWR | os.O_EXCL))  # EBUSY if it is mounted or held
    _fio(target, settings, WORKLOADS[2])


def compare(targets: Sequence[Target], settings: Settings | None = None) -> Results:
    """Measure all targets in alternating rounds; the first is the baseline of the ratios."""
    settings = settings or Settings()
    for target in targets:
        fill(target, settings)
    return {workload.name: _rounds(targets, settings, workload) for workload in settings.workloads}


def _rounds(targets: Sequence[Target], settings: Settings, workload: Workload) -> Result:
    samples: dict[str, list[float]] = {target.name: [] for target in targets}
    for _ in range(settings.rounds):
        for target in random.sample(targets, len(targets)):
            samples[target.name].append(measure(target, settings, workload))
    return summarise(workload.unit, samples)


def summarise(unit: Unit, samples: dict[str, list[float]]) -> Result:
    """Medians, and medians of the ratios round by round; the first name is the baseline."""
    base = next(iter(samples.values()))
    return {
        "unit": unit,
        "median": {name: round(statistics.median(values), 1) for name, values in samples.items()},
        "ratio": {
            name: round(statistics.median(v / b for v, b in zip(values, base, strict=True)), 3)
            for name, values in samples.items()
        },
        "samples": {name: [round(v, 1) for v in values] for name, values in samples.items()},
    }


# --- things made and removed again -----------------------------------------------------------------------------------


@contextmanager
def scratch_file(directory: Path) -> Iterator[Path]:
    """An empty file in `directory`, removed at the end."""
    descriptor, name = tempfile.mkstemp(prefix=".fio-bench-", dir=directory)
    os.close(descriptor)
    try:
        yield Path(name)
    finally:
        Path(name).unlink(missing_ok=True)


@contextmanager
def image(directory: Path, size: int, extents: Extents = "unwritten") -> Iterator[Path]:
    """A file of `size` bytes with its blocks reserved (fallocate), or sparse."""
    with scratch_file(directory) as path:
        os.truncate(path, size)
        if extents == "unwritten":
            with path.open("r+b") as file:
                os.posix_fallocate(file.fileno(), 0, size)
        yield path


@contextmanager
def bare_loop(backing: Path) -> Iterator[Path]:
    """What `losetup --direct-io=on` makes of a file; detached by the file, whatever happened in between."""
    try:
        device = Path(run("losetup", "--find", "--show", "--direct-io=on", str(backing)).strip())
        _refuse_tuned(device)
        yield device
    finally:
        for name in run("losetup", "--associated", str(backing), "--noheadings", "--output", "NAME").split():
            run("losetup", "--detach", name)


def _refuse_tuned(device: Path) -> None:
    """A loop device keeps its queue settings when detached: one tuned by an earlier user is no bare loop device."""
    queue = Path("/sys/block", device.name, "queue")
    found = {key: (queue / key).read_text().strip() for key in BARE_QUEUE}
    changed = {key: value for key, value in found.items() if value.split(" ")[0] != BARE_QUEUE[key]}
    if changed:
        message = f"{device} keeps queue settings from an earlier user, set them back: {changed} is not {BARE_QUEUE}"
        raise RuntimeError(message)


@contextmanager
def filesystem(device: Path, fstype: str) -> Iterator[Path]:
    """A new filesystem on `device`, mounted; discards nothing, so that reserved blocks stay reserved."""
    keep = {"ext4": ("-q", "-E", "nodiscard"), "xfs": ("-q", "-K"), "btrfs": ("-q", "-K")}[fstype]
    run(f"mkfs.{fstype}", *keep, str(device))
    mountpoint = Path(tempfile.mkdtemp(prefix="fio-bench-"))
    try:
        run("mount", "-t", fstype, str(device), str(mountpoint))
        yield mountpoint
    finally:
        if mountpoint.is_mount():
            run("umount", str(mountpoint))
        mountpoint.rmdir()


@contextmanager
def interruptible() -> Iterator[None]:
    """Make the first SIGINT, SIGTERM or SIGHUP unwind the stack, and later ones wait for the cleanup."""
    signals = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

    def leave(number: int, _frame: FrameType | None) -> None:
        for each in signals:
            signal.signal(each, signal.SIG_IGN)
        sys.exit(128 + number)

    before = [(each, signal.signal(each, leave)) for each in signals]
    try:
        yield
    finally:
        for each, handler in before:
            signal.signal(each, handler)


# --- the comparisons that `make bench` makes --------------------------------------------------------------------------


def compare_directory(volume: Path, beneath: Path, settings: Settings | None = None) -> Results:
    """A published directory volume against the directory (same filesystem) beneath it. Ratio 1 is native speed."""
    with interruptible(), scratch_file(beneath) as native, scratch_file(volume) as published:
        targets = (Target(name="filesystem", path=native), Target(name="volume", path=published))
        return compare(targets, settings)


def compare_loop(volume: Path, pool: Path, settings: Settings | None = None, extents: Extents = "unwritten") -> Results:
    """A loop device made by the driver, or a directory on a filesystem on one, against a bare loop device.

    The bare one is `losetup --direct-io=on` over a file in `pool` with the given extents, formatted with the same
    filesystem when `volume` is a directory. The file itself, without a loop device, is measured beside the two. A
    block device given is overwritten.
    """
    settings = settings or Settings()
    with interruptible(), ExitStack() as made:
        raw = stat.S_ISBLK(volume.stat().st_mode)
        room = settings.size if raw else settings.size * 2 + 320 * MIB  # a filesystem's own needs; XFS wants 300 MiB
        native = made.enter_context(image(pool, settings.size, extents))
        bare = made.enter_context(bare_loop(made.enter_context(image(pool, room, extents))))
        if not raw:
            bare = made.enter_context(scratch_file(made.enter_context(filesystem(bare, filesystem_type(volume)))))
            volume = made.enter_context(scratch_file(volume))
        targets = (
            Target(name="bare loop", path=bare),
            Target(name="driver", path=volume),
            Target(name="filesystem", path=native),
        )
        return compare(targets, settings)


def filesystem_type(path: Path) -> str:
    """The type of the filesystem that holds `path`, as mount names it."""
    return run("findmnt", "--noheadings", "--output", "FSTYPE", "--target", str(path)).strip()


# --- command line ----------------------------------------------------------------------------------------------------


def _target(text: str) -> Target:
    name, separator, path = text.partition("=")
    if not separator:
        message = f"{text!r} is not NAME=PATH"
        raise argparse.ArgumentTypeError(message)
    return Target(name=name, path=Path(path))


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench.fio", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size-mib", type=int, default=256)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--rounds", type=int, default=5)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("targets").add_argument("targets", nargs="+", type=_target)
    for name, second in (("directory", "beneath"), ("loop", "pool")):
        command = commands.add_parser(name)
        command.add_argument("volume", type=Path)
        command.add_argument(second, type=Path)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Print the comparison asked for as JSON."""
    args = _parse(argv)
    settings = Settings(size=args.size_mib * MIB, seconds=args.seconds, rounds=args.rounds)
    match args.command:
        case "directory":
            results = compare_directory(args.volume, args.beneath, settings)
        case "loop":
            results = compare_loop(args.volume, args.pool, settings)
        case _:
            with interruptible():
                results = compare(args.targets, settings)
    print(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
