"""A name makes one volume: the same one for the same request, none for another, and never a path."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from tests import observe
from tests.client import Code, Mode, outcome, refused
from tests.driver import Driver, serving
from tests.observe import MIB
from tests.rules.kinds import BLOCK, BTRFS, DIRECTORY, EXT4, XFS, Kind, every_kind, fresh_name

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("nothing_left")]

SAFE_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}", re.ASCII)

HOSTILE = [
    "../x",
    "../../../../../../tmp/escaped",
    "/etc/passwd",
    "a/b",
    ".",
    "..",
    ".hidden",
    ".new-x",
    ".trash-x",
    "x;id>f;",
    "$(id)",
    "`id`",
    "x|y&z",
    "--help",
    "-rf",
    "a b",
    " leading",
    "trailing ",
    "new\nline",
    "tab\there",
    "quo'te\"",
    "back\\slash",
    "percent%2e%2e",
    "{root}",
    "a,b=c",
    "*",
    "~",
    "volume.json",
    "pool.json",
    "\N{LATIN SMALL LETTER E WITH ACUTE}t\N{LATIN SMALL LETTER E WITH ACUTE}",
    "e\N{COMBINING ACUTE ACCENT}",
    "\N{RIGHT-TO-LEFT OVERRIDE}gpj.exe",
    "\N{SMILING FACE WITH SUNGLASSES}" * 32,
    "x" * 128,
    "." * 128,
    "/" * 128,
]

BANNED = [chr(code) for code in (0x00, 0x01, 0x08, 0x0B, 0x0C, 0x0E, 0x1B, 0x1F, 0x7F, 0x80, 0x9F)]
"""Some of the control characters that CreateVolumeRequest.name may not have."""


@pytest.fixture(scope="module")
def path_driver() -> Iterator[Driver]:
    """Run a driver whose pool is a plain folder, so that everything around it can be looked at."""
    with serving("path:{root}/outer/pool") as driver:
        yield driver


class TestHostileNames:
    """Names are data. What is done with them stays in the pool."""

    @pytest.fixture
    def driver(self, path_driver: Driver) -> Driver:
        """Talk to the driver with the plain pool."""
        return path_driver

    @pytest.mark.parametrize("name", HOSTILE, ids=ascii)
    def test_any_name_makes_a_volume_in_its_own_folder_and_touches_nothing_else(
        self, driver: Driver, name: str
    ) -> None:
        volumes = driver.pool_roots()[0] / "volumes"
        before = observe.tree(driver.root)
        volume = BLOCK.create(driver, name=name, size=MIB)
        assert SAFE_ID.fullmatch(volume.id), f"{volume.id!r} is no safe file name"
        new = {driver.root / path for path in observe.tree(driver.root) - before}
        own = volumes / volume.id
        assert own in new
        assert all(path.is_relative_to(own) or path == volumes for path in new), new

    def test_a_hostile_name_works_to_the_end(self, driver: Driver) -> None:
        volume = EXT4.create(driver, name="../x;id>f\n")
        observe.put(driver.attach(volume), b"safe")
        driver.detach(volume)
        driver.delete(volume)
        assert not driver.volumes()

    def test_different_names_are_different_volumes(self, driver: Driver) -> None:
        similar = ["a/b", "a_b", "a-b", "A/B", "a b", "A-b", "\u00e9", "e\u0301", "x", "X", "x ", " x", "x\n"]
        ids = [BLOCK.create(driver, name=name, size=MIB).id for name in similar]
        assert len(set(ids)) == len(similar)

    @pytest.mark.parametrize("name", ["../x", "a b", ".new-x", "\u00e9", "." * 128])
    def test_the_id_of_one_volume_is_a_name_for_another(self, driver: Driver, name: str) -> None:
        made = BLOCK.create(driver, name=name, size=MIB)
        named_so = BLOCK.create(driver, name=made.id, size=MIB)
        assert named_so.id != made.id, "two names, one volume: whoever guesses an id owns its data"

    @pytest.mark.parametrize("name", HOSTILE, ids=ascii)
    def test_the_id_depends_on_nothing_but_the_name(self, driver: Driver, name: str) -> None:
        first = BLOCK.create(driver, name=name, size=MIB)
        driver.delete(first)
        second = EXT4.create(driver, name=name, size=32 * MIB)
        assert second.id == first.id

    @pytest.mark.parametrize("char", BANNED, ids=ascii)
    def test_control_characters_are_refused(self, driver: Driver, char: str) -> None:
        with refused(Code.INVALID_ARGUMENT):
            BLOCK.create(driver, name=f"x{char}y", size=MIB)


def test_a_safe_name_is_the_id(driver: Driver) -> None:
    name = fresh_name()
    assert BLOCK.create(driver, name=name).id == name


@pytest.mark.parametrize("name", ["x" * 129, "\u00e9" * 65, "y" * 4096])
def test_a_name_of_more_than_128_bytes_is_refused(driver: Driver, name: str) -> None:
    with refused(Code.INVALID_ARGUMENT):
        BLOCK.create(driver, name=name)


@every_kind
def test_an_identical_request_finds_the_same_volume(driver: Driver, kind: Kind) -> None:
    first = kind.create(driver, name="again")
    assert kind.create(driver, name="again") == first
    assert [volume.volume_id for volume in driver.volumes()] == [first.id]


@every_kind
def test_an_identical_request_finds_the_same_volume_after_a_restart(driver: Driver, kind: Kind) -> None:
    first = kind.create(driver, name="again")
    driver.restart()
    assert kind.create(driver, name="again") == first


@every_kind
def test_an_identical_request_for_a_volume_in_use_changes_nothing(driver: Driver, kind: Kind) -> None:
    first = kind.create(driver, name="again")
    target = driver.attach(first)
    observe.put(target, b"precious")
    assert kind.create(driver, name="again") == first
    assert observe.get(target, 8) == b"precious"


def test_a_range_that_holds_the_volume_that_is_there_is_compatible(driver: Driver) -> None:
    made = BLOCK.create(driver, name="range", size=64 * MIB)
    assert driver.create("range", 64 * MIB, limit=128 * MIB, params=BLOCK.params, block=True) == made


@every_kind
def test_another_size_is_another_volume(driver: Driver, kind: Kind) -> None:
    kind.create(driver, name="taken")
    with refused(Code.ALREADY_EXISTS):
        kind.create(driver, name="taken", size=kind.size * 2)


def test_a_limit_below_the_volume_that_is_there(driver: Driver) -> None:
    BLOCK.create(driver, name="taken", size=64 * MIB)
    with refused(Code.ALREADY_EXISTS):
        driver.create("taken", 0, limit=32 * MIB, params=BLOCK.params, block=True)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        pytest.param(EXT4, BLOCK, id="access type"),
        pytest.param(BLOCK, EXT4, id="access type, the other way"),
        pytest.param(XFS, Kind(name="ext4", params=EXT4.params, fs="ext4", size=XFS.size), id="filesystem"),
        pytest.param(BTRFS, Kind(name="ext4", params=EXT4.params, fs="ext4", size=BTRFS.size), id="btrfs"),
        pytest.param(EXT4, Kind(name="directory", params=DIRECTORY.params), id="backend"),
        pytest.param(
            EXT4,
            Kind(name="thin", params={"backend": "loopfile", "allocation": "thin"}, fs="ext4"),
            id="allocation",
        ),
        pytest.param(
            DIRECTORY,
            Kind(name="advisory", params={"backend": "directory", "quota": "advisory"}),
            id="quota",
        ),
        pytest.param(
            EXT4,
            Kind(name="inodes", params={"backend": "loopfile", "mkfsOptions": "-N 2048"}, fs="ext4"),
            id="mkfsOptions",
        ),
    ],
)
def test_other_parameters_are_another_volume(driver: Driver, first: Kind, second: Kind) -> None:
    made = first.create(driver, name="taken")
    with refused(Code.ALREADY_EXISTS):
        second.create(driver, name="taken")
    assert [volume.volume_id for volume in driver.volumes()] == [made.id]


def test_another_node_is_another_volume(driver: Driver) -> None:
    BLOCK.create(driver, name="taken", nodes=["node-1"])
    with refused(Code.ALREADY_EXISTS, Code.RESOURCE_EXHAUSTED):
        BLOCK.create(driver, name="taken", nodes=["node-2"])


def test_a_name_is_free_again_after_delete(driver: Driver) -> None:
    driver.delete(BLOCK.create(driver, name="free"))
    assert EXT4.create(driver, name="free").size >= EXT4.size


def test_the_access_mode_of_a_retry_never_makes_a_second_volume(driver: Driver) -> None:
    made = BLOCK.create(driver, name="mode", mode=Mode.SINGLE_NODE_WRITER)
    retry = outcome(lambda: BLOCK.create(driver, name="mode", mode=Mode.SINGLE_NODE_MULTI_WRITER))
    assert retry in (Code.OK, Code.ALREADY_EXISTS)
    assert [volume.volume_id for volume in driver.volumes()] == [made.id]
