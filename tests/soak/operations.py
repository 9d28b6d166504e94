"""What a CO does to a volume, each step with all that must be true once it was answered."""

from __future__ import annotations

import os
from functools import partial
from typing import TYPE_CHECKING

from csi_local._proto import csi_pb2 as csi
from tests import observe
from tests.client import Code
from tests.observe import MIB
from tests.soak import markers
from tests.soak.kinds import GRANULE
from tests.soak.tally import Violation

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from random import Random

    from tests.soak.calls import Caller
    from tests.soak.holding import Holding
    from tests.soak.power import Power

TARGETS = ("one", "two", "three")


def demand(condition: bool, otherwise: str) -> None:  # noqa: FBT001 - reads like assert
    """Raise a violation unless it is so."""
    if not condition:
        raise Violation(otherwise)


class Operations:
    """The steps. Each asks, compares, and brings what is known of the volume up to date."""

    def __init__(self, caller: Caller, dice: Random, power: Power) -> None:
        self._caller = caller
        self._dice = dice
        self._power = power

    def possible(self, h: Holding) -> list[tuple[int, str, Callable[[Holding], None]]]:
        """What can be done with a volume as it is, with weights."""
        if not h.size:
            return [
                (12, "create", self.create),
                (2, "create over a leftover", self.create_over_leftover),
                (1, "delete what is absent", self.delete_absent),
                (1, "use what is absent", self.use_absent),
            ]
        found: list[tuple[int, str, Callable[[Holding], None]]] = [
            (2, "create again", self.create_again),
            (1, "create with another size", self.create_otherwise),
            (2, "get", self.get),
            (3, "grow", self.grow),
        ]
        if not h.staged:
            return [*found, (8, "stage", self.stage), (3, "delete", self.delete)]
        found += [(1, "stage again", self.stage), (1, "delete in use", self.delete_in_use)]
        if len(h.targets) < len(TARGETS):
            found.append((6 if not h.targets else 3, "publish", self.publish))
        if not h.targets:
            return [*found, (3, "unstage", self.unstage)]
        if h.writable:
            found.append((8, "write", self.write))
        return [
            *found,
            (4, "verify", self.verify),
            (2, "stats", self.stats),
            (1, "publish again", self.publish_again),
            (1, "publish otherwise", self.publish_otherwise),
            (5, "unpublish", self.unpublish),
        ]

    # While it is absent

    def create(self, h: Holding) -> None:
        """CreateVolume; where there is no room it stays absent."""
        size = h.kind.least + self._dice.randrange(h.kind.more // GRANULE) * GRANULE
        answer = self._caller.ask("CreateVolume", h.create(size), Code.OK, Code.RESOURCE_EXHAUSTED)
        if not answer.ok:
            return
        made = answer.response.volume
        demand(made.volume_id == h.name, f"the id is {made.volume_id}")
        demand(made.capacity_bytes == size, f"{made.capacity_bytes} bytes instead of {size}")
        h.asked = h.size = h.ceiling = size
        h.context.update(made.volume_context)

    def create_over_leftover(self, h: Holding) -> None:
        """CreateVolume where an earlier one of that name was cut short."""
        place = self._power.pools[h.kind.params["pool"]] / f".new-{h.name}"
        with self._power.steady:
            (place / "data" / "some").mkdir(parents=True, exist_ok=True)
            (place / "volume.json").write_text("{")
        self.create(h)

    def delete_absent(self, h: Holding) -> None:
        """DeleteVolume, NodeUnstageVolume and NodeUnpublishVolume of what is not there are done already."""
        self._caller.ask("NodeUnpublishVolume", h.unpublish(TARGETS[0]))
        self._caller.ask("NodeUnstageVolume", h.unstage())
        self._caller.ask("DeleteVolume", h.delete())

    def use_absent(self, h: Holding) -> None:
        """What is not there is not found."""
        self._caller.ask("ControllerGetVolume", h.get(), Code.NOT_FOUND)
        self._caller.ask("NodeStageVolume", h.stage(), Code.NOT_FOUND)
        self._caller.ask("ControllerExpandVolume", h.grow(h.kind.least), Code.NOT_FOUND)
        h.staging.rmdir()

    # While it exists

    def create_again(self, h: Holding) -> None:
        """The same request finds the volume, which may have grown."""
        made = self._caller.ask("CreateVolume", h.create(h.asked)).response.volume
        demand(
            (made.volume_id, made.capacity_bytes) == (h.name, h.size), f"another one: {made.capacity_bytes} of {h.size}"
        )

    def create_otherwise(self, h: Holding) -> None:
        """Another size is another volume, and the name is taken."""
        self._caller.ask("CreateVolume", h.create(h.size + GRANULE), Code.ALREADY_EXISTS)

    def get(self, h: Holding) -> None:
        """ControllerGetVolume says what is known."""
        found = self._caller.ask("ControllerGetVolume", h.get()).response
        demand(found.volume.capacity_bytes == h.size, f"{found.volume.capacity_bytes} bytes instead of {h.size}")
        condition = found.status.volume_condition
        demand(not condition.abnormal, f"it is abnormal: {condition.message}")

    def grow(self, h: Holding) -> None:
        """ControllerExpandVolume, and NodeExpandVolume where it is staged; where there is no room nothing changes."""
        if h.size >= h.kind.least + h.kind.more + 4 * h.kind.step:
            return
        wanted = h.size + self._dice.randrange(1, 3) * h.kind.step
        h.ceiling = max(h.ceiling, wanted)
        answer = self._caller.ask("ControllerExpandVolume", h.grow(wanted), Code.OK, Code.RESOURCE_EXHAUSTED)
        if not answer.ok:
            self.get(h)
            return
        demand(answer.response.capacity_bytes == wanted, f"{answer.response.capacity_bytes} instead of {wanted}")
        demand(answer.response.node_expansion_required is not h.kind.directory, "node_expansion_required is wrong")
        h.size = wanted
        if h.staged:
            self._grow_on_node(h)

    def _grow_on_node(self, h: Holding) -> None:
        path = h.target(self._dice.choice(h.writable)) if h.writable else h.staging
        accepted = (Code.OK, Code.FAILED_PRECONDITION) if h.kind.fs == "ext4" else (Code.OK,)
        answer = self._caller.ask("NodeExpandVolume", h.grow_on_node(path), *accepted)
        if answer.ok:
            demand(answer.response.capacity_bytes == h.size, f"{answer.response.capacity_bytes} instead of {h.size}")
            self._check_filesystem(h)
            if h.kind.block and h.writable:
                self._check_device(h, path)

    def _check_filesystem(self, h: Holding) -> None:
        """A filesystem has grown with its volume, but for what it needs itself."""
        if not h.kind.fs:
            return
        seen = os.statvfs(h.staging)
        total = seen.f_blocks * seen.f_frsize
        size, before = h.measured = h.measured or (h.size, total)
        demand(
            total - before >= (h.size - size) // 2, f"its filesystem has {total} bytes, and {before} when it had {size}"
        )
        demand(total <= h.ceiling, f"its filesystem has {total} bytes")

    def _check_device(self, h: Holding, target: Path) -> None:
        size = observe.device_size(target)
        demand(h.size <= size <= h.ceiling, f"the device has {size} bytes instead of {h.size}")

    def delete(self, h: Holding) -> None:
        """DeleteVolume."""
        self._caller.ask("DeleteVolume", h.delete())
        self._caller.ask("ControllerGetVolume", h.get(), Code.NOT_FOUND, manner="plain")
        h.forget()

    # On its node

    def stage(self, h: Holding) -> None:
        """NodeStageVolume, for the first time or again."""
        already, h.staged = h.staged, True
        self._caller.ask("NodeStageVolume", h.stage())
        if not h.kind.block:
            demand(len(observe.mounts(h.staging)) == 1, f"mounts at {h.staging}: {observe.mounts(h.staging)}")
        if not (already and h.kind.fs == "ext4"):  # which grows only where the kernel lets it, or when it is staged
            self._check_filesystem(h)

    def unstage(self, h: Holding) -> None:
        """NodeUnstageVolume; the CO removes the folder, which must be empty."""
        self._caller.ask("NodeUnstageVolume", h.unstage())
        demand(not observe.mounts(h.staging), f"still mounted at {h.staging}")
        h.staging.rmdir()
        h.staged = False

    def delete_in_use(self, h: Holding) -> None:
        """What is in use is not deleted."""
        self._caller.ask("DeleteVolume", h.delete(), Code.FAILED_PRECONDITION)

    def publish(self, h: Holding) -> None:
        """NodePublishVolume at one more target."""
        name = self._dice.choice([name for name in TARGETS if name not in h.targets])
        read_only = self._dice.random() < 0.3
        self._caller.ask("NodePublishVolume", h.publish(name, read_only=read_only))
        h.targets[name] = read_only
        self._check_target(h, name)

    def _check_target(self, h: Holding, name: str) -> None:
        target = h.target(name)
        standing = observe.mounts(target)
        demand(len(standing) == 1, f"mounts at {target}: {standing}")
        demand(observe.is_block(target) is h.kind.block, f"{target} is of the wrong kind")
        demand(markers.can_write(target) is not h.targets[name], f"{target} is writable, or is not, and should not be")
        if h.kind.block:
            self._check_device(h, target)

    def publish_again(self, h: Holding) -> None:
        """The same again changes nothing."""
        name = self._dice.choice(list(h.targets))
        self._caller.ask("NodePublishVolume", h.publish(name, read_only=h.targets[name]))
        self._check_target(h, name)

    def publish_otherwise(self, h: Holding) -> None:
        """The target is taken."""
        name = self._dice.choice(list(h.targets))
        self._caller.ask("NodePublishVolume", h.publish(name, read_only=not h.targets[name]), Code.ALREADY_EXISTS)

    def unpublish(self, h: Holding) -> None:
        """NodeUnpublishVolume; the target is gone."""
        name = self._dice.choice(list(h.targets))
        self._caller.ask("NodeUnpublishVolume", h.unpublish(name))
        del h.targets[name]
        demand(not os.path.lexists(h.target(name)), f"{h.target(name)} is still there")

    def write(self, h: Holding) -> None:
        """A pod writes and syncs."""
        target = h.target(self._dice.choice(h.writable))
        slots = list(h.markers) if len(h.markers) >= markers.MOST else range(h.size // markers.SLOT)
        slot = self._dice.choice(slots)
        h.markers[slot] = markers.write(target, slot, self._dice)

    def verify(self, h: Holding) -> None:
        """Every target shows all that was ever written."""
        for name in h.targets:
            for marker in h.markers.values():
                markers.verify(h.target(name), marker)
            self._check_target(h, name)

    def stats(self, h: Holding) -> None:
        """NodeGetVolumeStats: nothing is wrong, and the size is right where one can tell."""
        name = self._dice.choice(list(h.targets))
        found = self._caller.ask("NodeGetVolumeStats", h.stats(name)).response
        demand(not found.volume_condition.abnormal, f"it is abnormal: {found.volume_condition.message}")
        total = found.usage[0].total
        demand(total <= h.ceiling, f"{total} bytes are more than it has")
        if h.kind.directory or h.kind.block:
            demand(total >= h.size, f"{total} bytes instead of {h.size}")

    # No volume in particular

    def around(self) -> list[tuple[int, str, Callable[[list[Holding]], None]]]:
        """What is asked of the driver as a whole, with weights."""
        return [
            (3, "list in pages", self.list),
            (2, "capacity", partial(self._ignoring, self.capacity)),
            (2, "delete what never was", partial(self._ignoring, self.delete_unknown)),
        ]

    def _ignoring(self, act: Callable[[], None], _holdings: list[Holding]) -> None:
        act()

    def list(self, holdings: list[Holding]) -> None:
        """ListVolumes shows each of one's volumes once, and none that is absent, however the others come and go."""
        seen: dict[str, int] = {}
        token, size = "", self._dice.choice((0, 5, 9, 20, 50))
        while True:
            request = csi.ListVolumesRequest(max_entries=size, starting_token=token)
            answer = self._caller.ask("ListVolumes", request).response
            demand(not size or len(answer.entries) <= size, f"{len(answer.entries)} entries, {size} asked for")
            for entry in answer.entries:
                demand(entry.volume.volume_id not in seen, f"{entry.volume.volume_id} is listed twice")
                seen[entry.volume.volume_id] = entry.volume.capacity_bytes
            token = answer.next_token
            if not token:
                break
        for h in holdings:
            if not h.broken:
                demand(seen.get(h.name, 0) == h.size, f"{h} is listed with {seen.get(h.name, 'nothing')}")

    def capacity(self) -> None:
        """GetCapacity makes sense."""
        params = {"backend": "loopfile", "pool": self._dice.choice(list(self._power.pools))}
        found = self._caller.ask("GetCapacity", csi.GetCapacityRequest(parameters=params)).response
        largest = found.maximum_volume_size.value
        demand(0 <= largest <= found.available_capacity, f"{largest} of {found.available_capacity} bytes")
        demand(found.minimum_volume_size.value == 16 * MIB, f"the smallest has {found.minimum_volume_size.value} bytes")

    def delete_unknown(self) -> None:
        """What never was is deleted already."""
        for name in (f"never-{self._dice.randrange(1 << 32):08x}", "..", "a/b", "\N{SNOWMAN}"):
            self._caller.ask("DeleteVolume", csi.DeleteVolumeRequest(volume_id=name))
