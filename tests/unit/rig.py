"""The engine over a machine in memory: wired as `csi_local.app` does it, but that nothing runs in the background."""

from __future__ import annotations

from typing import TYPE_CHECKING

from csi_local.engine.adopt import Adopter
from csi_local.engine.copies import Copies
from csi_local.engine.crypt import Layers
from csi_local.engine.ephemeral import Ephemeral
from csi_local.engine.execute import Executor
from csi_local.engine.groups import Groups
from csi_local.engine.keys import GivenKeys, Keys
from csi_local.engine.locks import KeyedLocks
from csi_local.engine.pools import Pools
from csi_local.engine.publish import Publisher
from csi_local.engine.rotation import Rotator
from csi_local.engine.sizes import Sizes
from csi_local.engine.snapshots import Snapshots
from csi_local.engine.sweeper import Sweeper
from csi_local.engine.volumes import Volumes
from csi_local.model.encryption import KeySources
from csi_local.model.errors import DriverError
from csi_local.model.parameters import parse_parameters
from csi_local.model.pool import parse_pool
from csi_local.model.secret import Secret
from csi_local.model.volume import (
    AccessMode,
    BlockAccess,
    Capability,
    CapacityRange,
    MountAccess,
)
from csi_local.plan.request import VolumeRequest
from tests.fake.calls import Crash
from tests.fake.host import new_host

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from csi_local.engine.pool import Pool
    from tests.fake.host import FakeHost

PATIENCE_S = 1.0
_COPY_S = 0.2
RUN_DIR = "/run/csi-local"
KEYS = KeySources(directory="/keys", program="/key-program")
POOLS = ("dirs=image:/pools/dirs.img,size=4Gi,fs=btrfs", "loops=image:/pools/loops.img,size=4Gi")


class InlineSweeper(Sweeper):
    """Removes when it is told to, on the caller's thread."""

    def start(self) -> None:
        """See what an earlier driver left."""
        for pool in self._pools.all():
            self._add_leftovers(pool)

    def _begin(self, work: Callable[..., None], *arguments: str) -> None:
        """Begin nothing."""

    def drain(self) -> None:
        """Remove all that waits for it."""
        while self._trash:
            _, trash = self._trash.popitem()
            for path in trash:
                self._remove(path)

    def finish(self, timeout_s: float) -> None:
        """As `Sweeper.finish`, without waiting."""
        self.drain()
        super().finish(timeout_s)


class Rig:
    """A machine, and the driver on it, which can be killed and started again."""

    def __init__(self, *pools: str, host: FakeHost | None = None, node_name: str = "") -> None:
        self.node_name = node_name
        self.host = host or new_host()
        self.specs = [parse_pool(pool) for pool in pools or POOLS]
        for path in ("/pools", "/kubelet"):
            self.host.make_dirs(path)
        self.points: list[str] = []
        self.max_volumes = 1000
        self.in_background = False
        self.spawned: list[Callable[[], None]] = []
        """Copies that have not begun, where they are to be in the background."""
        self._fatal = 0

    def start(self) -> None:
        """Start a driver: everything it knows, it knows from the machine."""
        self.pools = Pools(self.host, self.specs, RUN_DIR)
        self.sweeper = InlineSweeper(self.host, self.pools)
        locks, executor = KeyedLocks(), Executor(self.host, self._pass)
        self.copies = Copies(spawn=self._spawn, longest_wait_s=_COPY_S)
        self.volumes = Volumes(self.host, self.pools, executor, locks, self.sweeper, self.copies, node=self.node_name)
        self.snapshots = Snapshots(self.host, self.pools, executor, locks, self.sweeper, self.copies)
        self.groups = Groups(self.host, self.pools, executor, locks, self.sweeper, self.copies)
        keys = Keys(self.host, KEYS)
        self.rotator = Rotator(self.host, self.pools, executor, locks, keys, self.copies)
        layers = Layers(self.host, executor, keys, self.rotator)
        self.sizes = Sizes(self.host, self.pools, executor, locks, layers)
        self.publisher = Publisher(self.host, self.pools, executor, locks, self.copies, layers, self.max_volumes)
        self.adopter = Adopter(self.host, self.pools, executor, lambda: 1.0)
        self.ephemeral = Ephemeral(self.host, self.pools, locks, self.volumes, self.publisher)
        self.pools.open()
        self.publisher.take_over()
        self.sweeper.start()

    def _spawn(self, work: Callable[[], None]) -> None:
        if self.in_background:
            self.spawned.append(work)
        else:
            work()

    def _pass(self, name: str) -> None:
        self.points.append(name)
        self._fatal -= 1
        if self._fatal == 0:
            self.host.end_here()
            raise Crash(name)

    def die_at_point(self, number: int) -> None:
        """Let the process die at the n-th crash point from now on."""
        self._fatal = number

    def calm(self) -> None:
        """Forget what was planned and has not happened."""
        self._fatal = 0
        self.host.calm()

    def crash(self) -> None:
        """Do away with the process, and start another."""
        self.calm()
        self.host.crash()
        self.start()

    def reboot(self) -> None:
        """Do away with the machine's memory, and start the driver again."""
        self.calm()
        self.host.reboot()
        self.start()

    def acknowledged(self, action: Callable[[], object]) -> bool:
        """Whether *action* comes to its end; a crash is followed by a new start, an error must be a planned one."""
        planned = self.host.planned
        try:
            action()
        except Crash:
            self.crash()
            return False
        except DriverError:
            happened = planned > self.host.planned
            if not happened:
                raise
            return False
        finally:
            self.calm()
        return True

    def pool_of(self, volume: str) -> Pool:
        """Return the pool that has a volume."""
        return self.pools.find(volume)[0]

    def filesystem_of(self, pool: Pool) -> object:
        """Return the filesystem of a pool, as the machine has it."""
        return self.host.walk(pool.root, "test").mount.filesystem


def capability(*, block: bool = False, mode: AccessMode = AccessMode.SINGLE_NODE_MULTI_WRITER) -> Capability:
    """Say how a volume is to be used."""
    return Capability(access=BlockAccess() if block else MountAccess(), mode=mode)


def request(
    name: str, size: int, parameters: Mapping[str, str], *, block: bool = False, limit: int = 0
) -> VolumeRequest:
    """Ask for a volume."""
    return VolumeRequest(
        name=name,
        capacity=CapacityRange(required=size, limit=limit),
        capabilities=(capability(block=block),),
        parameters=parse_parameters(parameters),
    )


def key(text: str = "correct horse", previous: str | None = None) -> GivenKeys:
    """The keys that come with a request, once."""
    before = None if previous is None else Secret(previous.encode())
    return GivenKeys(key=Secret(text.encode()), previous=before)
