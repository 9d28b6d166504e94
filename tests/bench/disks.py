"""What the driver puts between a pod and the disk: fio on published volumes and on what is beneath them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.bench import fio, kinds
from tests.driver import serving
from tests.observe import GIB, MIB

if TYPE_CHECKING:
    from tests.bench.kinds import Kind

POOL = 8 * GIB
LOOPS = (kinds.BLOCK, kinds.EXT4, kinds.XFS)
FULL = fio.Settings()
QUICK = fio.Settings(size=64 * MIB, seconds=0.5, rounds=1)

Results = dict[str, fio.Results]


def measure(settings: fio.Settings) -> Results:
    """Compare a directory with its filesystem, and each kind on a loop device with a bare loop device."""
    results: Results = {kinds.DIRECTORY.name: _directory(settings)}
    for kind in LOOPS:
        results[kind.name] = _loop(kind, settings)
    return results


def _directory(settings: fio.Settings) -> fio.Results:
    kind = kinds.DIRECTORY
    print(f"  {kind.name}", flush=True)
    with serving(kinds.pool(kind.pool_fs, POOL)) as driver:
        volume = driver.create("fio", 2 * GIB, params=kind.parameters)
        target = driver.attach(volume)
        return fio.compare_directory(target, driver.pool_roots()[0], settings)


def _loop(kind: Kind, settings: fio.Settings) -> fio.Results:
    print(f"  {kind.name}", flush=True)
    with serving(kinds.pool(kind.pool_fs, POOL)) as driver:
        volume = driver.create("fio", 2 * GIB, params=kind.parameters, block=kind.block, fs=kind.fs)
        target = driver.attach(volume)
        return fio.compare_loop(target, driver.pool_roots()[0], settings)
