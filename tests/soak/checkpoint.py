"""The kernel's view held against what the workers know, while nothing moves."""

from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING

from csi_local._proto import csi_pb2 as csi
from tests import observe
from tests.soak.tally import Violation
from tests.soak.vitals import growth, vitals

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from tests.soak.calls import Caller
    from tests.soak.holding import Holding
    from tests.soak.mischief import Mischief
    from tests.soak.power import Power
    from tests.soak.tally import Tally

SETTLE_SECONDS = 20.0
"""What the driver removes in the background, and devices that clear themselves, must be gone after this."""
_NEVER = re.compile(r"^\S+ \S+ \w+ +\w+ \S+ (?:INTERNAL|UNKNOWN|DATA_LOSS): .*$", re.MULTILINE)


class Log:
    """The driver's log, read as it grows."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._read = 0

    def faults(self) -> Iterator[str]:
        """Say what is wrong with what is new in it."""
        with self._path.open("rb") as file:
            file.seek(self._read)
            new = file.read()
        whole = new.rfind(b"\n") + 1
        self._read += whole
        text = new[:whole].decode(errors="replace")
        if "Traceback" in text:
            place = text.index("Traceback")
            yield f"a traceback in the log: {text[max(0, place - 300) : place + 3000]}"
        yield from (f"in the log: {found[0]}" for found in _NEVER.finditer(text))


class Checkpoint:
    """Looks at everything. It must be alone with the driver."""

    def __init__(self, power: Power, caller: Caller, tally: Tally, mischief: Mischief) -> None:
        self._power = power
        self._root = power.driver.root
        self._caller = caller
        self._tally = tally
        self._mischief = mischief
        self._log = Log(power.driver.log)

    def look(self, holdings: Sequence[Holding]) -> None:
        """Compare, and tell the tally what differs."""
        self._tally.checkpoints += 1
        faults = list(self._log.faults())
        try:
            for one in self._mischief.damaged:
                one.check()
            faults += self._listed(holdings)
        except Violation as wrong:
            faults.append(str(wrong))
        faults += self._settled(holdings)
        faults += self._images(holdings)
        sample = vitals(
            self._power.driver.process.pid,
            self._power.started,
            loops=len(self._loops()),
            volumes=sum(bool(h.size) for h in holdings),
        )
        self._tally.vitals.append(sample)
        faults += growth(self._tally.vitals)
        for fault in faults:
            self._tally.violation(f"checkpoint: {fault}")

    def _settled(self, holdings: Sequence[Holding]) -> list[str]:
        """What still differs after a while."""
        deadline = time.monotonic() + SETTLE_SECONDS
        while (faults := [*self._mounts(holdings), *self._devices(holdings), *self._files(holdings)]) and (
            time.monotonic() < deadline
        ):
            time.sleep(0.1)
        return faults

    def _mounts(self, holdings: Sequence[Holding]) -> Iterator[str]:
        wanted: list[tuple[str, bool | None]] = []
        for h in sure(holdings):
            if h.staged and not h.kind.block:
                wanted.append((str(h.staging), False))
            wanted += [
                (str(h.target(name)), None if h.kind.block else read_only) for name, read_only in h.targets.items()
            ]
        blocks = {path for path, read_only in wanted if read_only is None}
        seen: list[tuple[str, bool | None]] = []
        for folder in ("staging", "targets"):
            for mount in observe.mounts(self._root / folder):
                path = str(mount.target)
                if not _of_broken(path, holdings):
                    seen.append((path, None if path in blocks else "ro" in mount.options))
        yield from _differences("mounts", wanted, seen)

    def _loops(self) -> list[tuple[str, str]]:
        """Volumes' images with the devices attached to them."""
        return [(file, device) for device, file in observe.loops().items() if self._is_image(file)]

    def _is_image(self, file: str) -> bool:
        return any(file.startswith(f"{root}/") for root in self._power.pools.values())

    def _devices(self, holdings: Sequence[Holding]) -> Iterator[str]:
        wanted: list[str] = []
        for h in sure(holdings):
            if not h.kind.directory:
                image = str(self._image(h))
                wanted += [image] * h.staged
                wanted += [image] * (h.kind.block and any(h.targets.values()))
        seen = [file for file, _ in self._loops() if not _of_broken(file, holdings)]
        yield from _differences("loop devices", wanted, seen)

    def _image(self, h: Holding) -> Path:
        return self._power.pools[h.kind.params["pool"]] / "volumes" / h.name / "disk.img"

    def _files(self, holdings: Sequence[Holding]) -> Iterator[str]:
        wanted = [h.name for h in sure(holdings) if h.size] + [one.name for one in self._mischief.damaged]
        seen: list[str] = []
        for root in self._power.pools.values():
            seen += [path.name for path in (root / "volumes").iterdir() if not _of_broken(str(path), holdings)]
            seen += [str(path) for path in root.glob(".trash-*") if "planted" not in path.name]
        yield from _differences("files", wanted, seen)

    def _images(self, holdings: Sequence[Holding]) -> Iterator[str]:
        """Images have their size; those of thick volumes have their blocks, but for what an ext4 gives back later."""
        for h in sure(holdings):
            if h.size and not h.kind.directory:
                seen = self._image(h).stat()
                if not h.size <= seen.st_size <= h.ceiling:
                    yield f"the image of {h} has {seen.st_size} bytes"
                if h.kind.thick and h.kind.fs != "ext4" and seen.st_blocks * 512 < h.size:
                    yield f"of the image of {h} only {seen.st_blocks * 512} bytes are reserved"

    def _listed(self, holdings: Sequence[Holding]) -> Iterator[str]:
        answer = self._caller.ask("ListVolumes", csi.ListVolumesRequest(), manner="plain").response
        broken = {h.name for h in holdings if h.broken}
        damaged = {one.name for one in self._mischief.damaged}
        seen = {entry.volume.volume_id: entry.volume.capacity_bytes for entry in answer.entries}
        wanted = [(h.name, h.size) for h in sure(holdings) if h.size]
        yield from _differences(
            "volumes listed", wanted, [one for one in seen.items() if one[0] not in broken | damaged]
        )
        abnormal = {e.volume.volume_id for e in answer.entries if e.status.volume_condition.abnormal}
        yield from _differences("abnormal volumes", list(damaged), list(abnormal - broken))


def sure(holdings: Sequence[Holding]) -> list[Holding]:
    """Those of which something is known."""
    return [h for h in holdings if not h.broken]


def _of_broken(path: str, holdings: Sequence[Holding]) -> bool:
    return any(h.broken and h.name in path.split("/") for h in holdings)


def _differences(what: str, wanted: Sequence[object], seen: Sequence[object]) -> Iterator[str]:
    left, more = sorted(map(str, wanted)), []
    for one in sorted(map(str, seen)):
        if one in left:
            left.remove(one)
        else:
            more.append(one)
    if left or more:
        yield f"{what}: missing {left}, unexpected {more}"
