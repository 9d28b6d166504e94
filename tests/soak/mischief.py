"""Faults beside those of the process: full pools, leftovers of crashes, and records that cannot be believed."""

from __future__ import annotations

import hashlib
import time
from typing import TYPE_CHECKING

from csi_local._proto import csi_pb2 as csi
from tests.client import Code
from tests.observe import MIB
from tests.soak.holding import Holding
from tests.soak.kinds import BLOCK, DIRECTORIES, DIRECTORY, LOOPFILES
from tests.soak.tally import Violation

if TYPE_CHECKING:
    from pathlib import Path
    from random import Random

    from tests.soak.calls import Caller, Pressure
    from tests.soak.power import Power

FILLERS = 3


class Mischief:
    """What it does to the pools it undoes, or the driver must."""

    def __init__(self, caller: Caller, pressure: Pressure, dice: Random, power: Power) -> None:
        self._caller = caller
        self._pressure = pressure
        self._dice = dice
        self._power = power
        self._planted = 0
        self.damaged: list[Damaged] = []

    # Room

    def fill(self, *, deadly: bool) -> None:
        """Take nearly all room of a pool for a while, if *deadly* through a death of the driver, and free it."""
        pool = self._dice.choice((DIRECTORIES, LOOPFILES))
        params = {"backend": "loopfile", "pool": pool}
        self._pressure.begin()
        try:
            taken = [name for number in range(FILLERS) if (name := self._take(f"filler-{number}", params))]
            time.sleep(self._dice.uniform(0.5, 3.0))
            if deadly:
                self._power.cut()
            for name in taken:
                self._caller.ask("DeleteVolume", csi.DeleteVolumeRequest(volume_id=name))
        finally:
            self._pressure.end()

    def _take(self, name: str, params: dict[str, str]) -> str:
        capacity = csi.GetCapacityRequest(parameters=params, volume_capabilities=[BLOCK.capability])
        room = self._caller.ask("GetCapacity", capacity).response.maximum_volume_size.value
        size = room - self._dice.randrange(32) * MIB
        if size < MIB:
            return ""
        request = csi.CreateVolumeRequest(
            name=name,
            parameters=params,
            volume_capabilities=[BLOCK.capability],
            capacity_range=csi.CapacityRange(required_bytes=size),
        )
        return name if self._caller.ask("CreateVolume", request, Code.OK, Code.RESOURCE_EXHAUSTED).ok else ""

    # Leftovers

    def plant(self) -> None:
        """Leave behind what a crash may leave; the driver removes it, at its next start at the latest."""
        for root in self._power.pools.values():
            for kind in (".new-", ".trash-"):
                self._planted += 1
                place = root / f"{kind}planted-{self._planted}.0"
                (place / "data" / "deep").mkdir(parents=True)
                (place / "data" / "deep" / "file").write_bytes(bytes(5000))
                (place / "disk.img").write_bytes(bytes(70000))
                (place / "volume.json").write_text('{"layout":1,"sha')

    # Records

    def damage(self) -> None:
        """Make a volume in each pool, put data into it, and damage its record."""
        for number, kind in enumerate((DIRECTORY, BLOCK)):
            h = Holding(name=f"damaged-{number}", kind=kind, root=self._power.driver.root)
            self._caller.ask("CreateVolume", h.create(16 * MIB), manner="plain")
            place = self._power.pools[kind.params["pool"]] / "volumes" / h.name
            data = place / "data" / "treasure" if kind.directory else place / "disk.img"
            with data.open("r+b" if data.exists() else "wb") as file:
                file.write(self._dice.randbytes(100_000))
            self.damaged.append(Damaged(h, self._caller, data, cut_short=bool(number)))

    def mend(self) -> None:
        """Put the records back, and delete those volumes."""
        for one in self.damaged:
            one.mend()


class Damaged:
    """A volume whose record cannot be believed: it is shown as such, and neither used nor changed nor deleted."""

    def __init__(self, holding: Holding, caller: Caller, data: Path, *, cut_short: bool) -> None:
        self.name = holding.name
        self._holding = holding
        self._caller = caller
        self._data = data
        self._record = (data.parent.parent if holding.kind.directory else data.parent) / "volume.json"
        self._good = self._record.read_bytes()
        bad = self._good[:-40] if cut_short else self._good.replace(b'"size":', b'"size":1', 1)
        self._record.write_bytes(bad)
        self._digest = self._look()

    def _look(self) -> str:
        with self._data.open("rb") as file:
            return hashlib.sha256(self._record.read_bytes() + file.read(100_000)).hexdigest()

    def check(self) -> None:
        """Raise a violation unless it is unavailable and untouched."""
        h = self._holding
        condition = self._caller.ask("ControllerGetVolume", h.get(), manner="plain").response.status.volume_condition
        if not (condition.abnormal and "record" in condition.message):
            raise Violation(f"{self.name} is damaged, and its condition is {condition}")
        for rpc, request in (
            ("NodeStageVolume", h.stage()),
            ("ControllerExpandVolume", h.grow(32 * MIB)),
            ("CreateVolume", h.create(16 * MIB)),
            ("DeleteVolume", h.delete()),
        ):
            self._caller.ask(rpc, request, Code.FAILED_PRECONDITION, manner="plain")
        h.staging.rmdir()
        if self._look() != self._digest:
            raise Violation(f"{self.name} is damaged and was touched")

    def mend(self) -> None:
        """Restore the record, and delete the volume."""
        self._record.write_bytes(self._good)
        found = self._caller.ask("ControllerGetVolume", self._holding.get()).response
        if found.status.volume_condition.abnormal:
            raise Violation(f"{self.name} was mended, and is still {found.status.volume_condition}")
        self._caller.ask("DeleteVolume", self._holding.delete())
