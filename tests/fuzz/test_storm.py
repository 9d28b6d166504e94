"""Every RPC with every sort of request, eight at once, for a while; and then nothing must have happened."""

from __future__ import annotations

from collections import Counter
from contextlib import suppress
from random import Random
from typing import TYPE_CHECKING

import pytest

from tests import observe
from tests.fuzz import oracle
from tests.fuzz.arena import Arena, Precious
from tests.fuzz.messages import methods
from tests.fuzz.storm import Storm, Treasure

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.driver import Driver

pytestmark = pytest.mark.root

WARM_UP = 0.4
"""The part of the time after which files and threads are taken as what the driver needs."""
MOST_STORMS = 4
"""What leaks grows in every storm; what malloc keeps of the largest moment there was does not, however late it was."""
SWEPT_SECONDS = 10.0
GRPC_THREADS = 16
"""gRPC's own threads come and go."""


def in_pools(driver: Driver) -> set[str]:
    """Name what is in the pools, a level deep and below volumes/."""
    roots = driver.pool_roots()
    return {str(path) for root in roots for path in (*root.iterdir(), *(root / "volumes").iterdir())}


def standing(driver: Driver) -> set[str]:
    """Name the mounts and loop devices that belong to the driver."""
    return set(observe.belongings(driver.root).names())


def give_time(so: Callable[[], bool]) -> None:
    """Wait, but not for ever, for what the driver does by itself; whether it is *so* then is judged afterwards."""
    with suppress(AssertionError):
        observe.until(so, "the driver is at rest", seconds=SWEPT_SECONDS)


class Judge:
    """Collects what is wrong, so that one run tells everything."""

    def __init__(self, driver: Driver, seed: str) -> None:
        self.faults: list[str] = []
        self.driver = driver
        self.seed = seed
        self.at_rest = oracle.vitals(driver.process.pid)
        self.treasure = Treasure(driver, Random(seed))  # noqa: S311 - dice
        self.precious = Precious(driver.root / "precious")
        self.arena = Arena(driver.root / "arena", self.precious, driver.pool_roots()[0])
        self.beside = {path.name for path in driver.root.iterdir()}
        self.pools, self.mounted = in_pools(driver), standing(driver)

    def rage(self, seconds: float, name: str) -> tuple[oracle.Vitals, Storm]:
        """Let a storm pass, undo all it did, and return how the process is afterwards."""
        storm = Storm(self.driver, self.arena, f"{self.seed}-{name}")
        self.faults += storm.rage(seconds)
        self.faults += [f"a secret in {path}" for path in self._secrets()]
        self.faults += storm.settle(self.treasure.ids)
        self.faults += self._left()
        return oracle.vitals(self.driver.process.pid), storm

    def rage_while_it_grows(self, seconds: float, before: oracle.Vitals) -> list[Storm]:
        """Let storms pass until one of them leaves the memory as it was."""
        storms: list[Storm] = []
        for number in range(MOST_STORMS):
            after, storm = self.rage(seconds, f"storm {number}")
            storms.append(storm)
            print(f"memory {before.memory >> 10} → {after.memory >> 10} KiB, {after.threads} threads")
            if not after.grew_since(before):
                break
            before = after
        else:
            self.faults.append(f"memory grew in {MOST_STORMS} storms, at last to {before.memory >> 10} KiB")
        return storms

    def _secrets(self) -> list[Path]:
        folders = (self.driver.root / "run", *self.driver.pool_roots(), self.arena.root, self.driver.socket.parent)
        return [path for folder in folders for path in oracle.files_with_secrets(folder)]

    def _left(self) -> list[str]:
        give_time(lambda: in_pools(self.driver) == self.pools)
        pairs = (
            ("in the pools", in_pools(self.driver), self.pools),
            ("mounted or attached", standing(self.driver), self.mounted),
            ("beside the driver", {path.name for path in self.driver.root.iterdir()}, self.beside),
        )
        left = [f"{what}: more {now - was}, less {was - now}" for what, now, was in pairs if now != was]
        left += [f"in the arena: {name}" for name in self.arena.strangers()]
        left += [f"touched: {change}" for change in self.precious.changes()]
        return left if self.treasure.is_whole() else [*left, "the data of a volume nobody asked about has changed"]


def test_whatever_is_asked_nothing_breaks_leaks_or_is_touched(driver: Driver, seed: str, seconds: float) -> None:
    judge = Judge(driver, seed)
    warm, first = judge.rage(seconds * WARM_UP, "warm-up")
    print(f"memory {judge.at_rest.memory >> 10} → {warm.memory >> 10} KiB, {warm.threads} threads")
    others = judge.rage_while_it_grows(seconds * (1 - WARM_UP), warm)
    answers = sum((storm.answers for storm in others), first.answers)
    codes: Counter[str] = Counter()
    for (_, code), count in answers.items():
        codes[code.name] += count
    print(f"{answers.total()} requests: {dict(codes.most_common())}")

    give_time(lambda: not list(oracle.vitals(driver.process.pid).faults_since(warm)))
    after = oracle.vitals(driver.process.pid)
    faults = [*judge.faults, *after.faults_since(warm), *oracle.faults_of_log(driver.output())]
    if (threads := max(warm.threads, after.threads)) > judge.at_rest.threads + oracle.WORKERS + GRPC_THREADS:
        faults.append(f"{threads} threads")
    faults += [
        f"nobody called {method.path}" for method in methods() if all(name != method.name for name, _ in answers)
    ]
    assert not faults, f"CSI_LOCAL_FUZZ_SEED={seed}\n" + "\n".join(faults)
    driver.release()
    assert not driver.leftovers()
