"""Fixtures for every tier. A missing prerequisite fails, and says how to get it; nothing is ever skipped."""

from __future__ import annotations

import os
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import pytest

from tests.driver import Driver, serving

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

FAILED = pytest.StashKey[bool]()


class Start(Protocol):
    """Starts a driver on these pools; the words are `Driver`'s."""

    def __call__(self, *pools: str, **options: Any) -> Driver: ...  # noqa: ANN401


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Remember whether a test failed, so that its fixtures do not complain about the consequences."""
    report = yield
    if call.when == "call":
        item.stash[FAILED] = report.failed
    return report


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Fail a test that needs root without it."""
    if item.get_closest_marker("root") and os.geteuid() != 0:
        pytest.fail("this test mounts filesystems; run it as root: sudo make test-root", pytrace=False)


@pytest.fixture
def folder() -> Iterator[Path]:
    """Give an empty folder with a short path."""
    with tempfile.TemporaryDirectory(prefix="csi-", dir="/tmp") as path:
        yield Path(path)


@pytest.fixture
def start(request: pytest.FixtureRequest) -> Iterator[Start]:
    """Start drivers for this test alone; afterwards each must let go of everything and stop cleanly."""
    with ExitStack() as stack:
        started: list[Driver] = []

        def begin(*pools: str, **options: Any) -> Driver:  # noqa: ANN401
            started.append(stack.enter_context(serving(*pools, **options)))
            return started[-1]

        yield begin
        for driver in started:
            settle(driver, failed=request.node.stash.get(FAILED, True))


@pytest.fixture
def nothing_left(request: pytest.FixtureRequest, driver: Driver) -> Iterator[None]:
    """Demand that the driver, told to let go of everything, leaves no mount, no loop device and no file."""
    yield
    settle(driver, failed=request.node.stash.get(FAILED, True))


def settle(driver: Driver, *, failed: bool) -> None:
    """Bring a driver back to where it started. After a failed test do it by force, and say nothing."""
    if failed:
        driver.forget()
        if not driver.running:
            driver.start()
        return
    if not driver.running:
        driver.start()
    try:
        driver.release()
        assert not (left := driver.leftovers()), "left behind: " + ", ".join(left)
    except BaseException:
        driver.forget()
        raise
