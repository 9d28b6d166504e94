"""ListVolumes and ControllerGetVolume: all of them, in order, page by page."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from csi_local._proto import csi_pb2 as csi
from tests.client import TOPOLOGY_KEY, Code, Volume, refused
from tests.driver import Driver, serving
from tests.observe import MIB
from tests.rules.kinds import BLOCK, Kind, every_kind

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.root

MANY = 600
SMALL = Kind(name="small", params={"backend": "directory", "quota": "advisory"}, size=MIB)


def page(driver: Driver, size: int, token: str = "") -> csi.ListVolumesResponse:
    """Ask for one page."""
    return driver.controller.ListVolumes(csi.ListVolumesRequest(max_entries=size, starting_token=token))


def paged(driver: Driver, size: int) -> list[str]:
    """Walk through all pages, and check that none is too long, none empty but the last, and that there is one."""
    found: list[str] = []
    token = ""
    for _ in range(MANY + 1):
        answer = page(driver, size, token)
        assert len(answer.entries) <= size
        found += [entry.volume.volume_id for entry in answer.entries]
        token = answer.next_token
        if not token:
            return found
        assert answer.entries, "an empty page that is not the last"
    raise AssertionError("there is no last page")


@pytest.mark.usefixtures("nothing_left")
class TestPages:
    """A handful of volumes."""

    @pytest.fixture
    def five(self, driver: Driver) -> list[str]:
        return sorted(BLOCK.create(driver, name=f"v{number}", size=MIB).id for number in (3, 1, 5, 2, 4))

    @pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 6, 2**31 - 1])
    def test_pages_of_any_size_are_the_whole_list(self, driver: Driver, five: list[str], size: int) -> None:
        assert paged(driver, size) == five

    def test_without_a_size_it_is_everything_in_order(self, driver: Driver, five: list[str]) -> None:
        answer = page(driver, 0)
        assert [entry.volume.volume_id for entry in answer.entries] == five
        assert not answer.next_token

    def test_a_page_that_holds_everything_has_no_token(self, driver: Driver, five: list[str]) -> None:
        assert not page(driver, len(five)).next_token

    def test_a_token_without_a_size_gives_the_rest(self, driver: Driver, five: list[str]) -> None:
        answer = page(driver, 0, page(driver, 2).next_token)
        assert [entry.volume.volume_id for entry in answer.entries] == five[2:]

    def test_an_empty_list(self, driver: Driver) -> None:
        for size in (0, 1):
            answer = page(driver, size)
            assert not answer.entries
            assert not answer.next_token

    @pytest.mark.parametrize("size", [-1, -(2**31)])
    def test_a_negative_page(self, driver: Driver, size: int) -> None:
        with refused(Code.INVALID_ARGUMENT):
            page(driver, size)

    @pytest.mark.parametrize("token", ["invalid-token", "-1", "0", "99999", "../x", " ", "\u00e9", "\n"])
    @pytest.mark.usefixtures("five")
    def test_a_token_that_was_never_given(self, driver: Driver, token: str) -> None:
        with refused(Code.ABORTED):
            page(driver, 2, token)

    @pytest.mark.parametrize("gone", [0, 1, 2, 3, 4])
    def test_a_token_outlives_any_volume(self, driver: Driver, five: list[str], gone: int) -> None:
        token = page(driver, 2).next_token
        driver.delete(Volume(id=five[gone]))
        rest = [entry.volume.volume_id for entry in page(driver, 0, token).entries]
        assert rest == [volume_id for volume_id in five[2:] if volume_id != five[gone]]

    def test_a_token_outlives_all_volumes(self, driver: Driver, five: list[str]) -> None:
        token = page(driver, 2).next_token
        for volume_id in five:
            driver.delete(Volume(id=volume_id))
        answer = page(driver, 2, token)
        assert not answer.entries
        assert not answer.next_token

    def test_a_token_outlives_the_process(self, driver: Driver, five: list[str]) -> None:
        token = page(driver, 2).next_token
        driver.restart()
        assert [entry.volume.volume_id for entry in page(driver, 0, token).entries] == five[2:]

    def test_a_new_volume_shifts_nothing(self, driver: Driver, five: list[str]) -> None:
        """A token that counts would give the second entry again, or lose one."""
        token = page(driver, 2).next_token
        BLOCK.create(driver, name="a-first", size=MIB)
        assert [entry.volume.volume_id for entry in page(driver, 0, token).entries] == five[2:]


@pytest.mark.usefixtures("nothing_left")
class TestEntries:
    """What is said of a volume is what was said when it was made."""

    @every_kind
    @pytest.mark.parametrize("attached", [False, True], ids=["", "in use"])
    def test_list_and_get_say_the_same_as_create(self, driver: Driver, kind: Kind, *, attached: bool) -> None:
        volume = kind.create(driver)
        if attached:
            driver.attach(volume)
        [entry] = page(driver, 0).entries
        answer = driver.controller.ControllerGetVolume(csi.ControllerGetVolumeRequest(volume_id=volume.id))
        for told in (entry.volume, answer.volume):
            assert told.volume_id == volume.id
            assert told.capacity_bytes == volume.size
            assert dict(told.volume_context) == volume.context
            segments = [dict(topology.segments) for topology in told.accessible_topology]
            assert segments == [{TOPOLOGY_KEY: driver.node_id}]

    @every_kind
    def test_a_sound_volume_is_in_normal_condition(self, driver: Driver, kind: Kind) -> None:
        volume = kind.create(driver)
        [entry] = page(driver, 0).entries
        answer = driver.controller.ControllerGetVolume(csi.ControllerGetVolumeRequest(volume_id=volume.id))
        for condition in (entry.status.volume_condition, answer.status.volume_condition):
            assert not condition.abnormal
            assert condition.message

    def test_a_volume_without_its_image_is_not(self, driver: Driver) -> None:
        volume = BLOCK.create(driver)
        image = driver.backing_file(volume)
        aside = image.rename(image.with_name("aside"))
        [entry] = page(driver, 0).entries
        assert entry.status.volume_condition.abnormal
        assert entry.status.volume_condition.message
        aside.rename(image)
        [entry] = page(driver, 0).entries
        assert not entry.status.volume_condition.abnormal

    def test_a_deleted_volume_is_gone_at_once(self, driver: Driver) -> None:
        volume = BLOCK.create(driver)
        driver.delete(volume)
        assert not page(driver, 0).entries
        with refused(Code.NOT_FOUND):
            driver.controller.ControllerGetVolume(csi.ControllerGetVolumeRequest(volume_id=volume.id))


@pytest.fixture(scope="module")
def crowded() -> Iterator[Driver]:
    """Run a driver with several hundred volumes."""
    with serving("path:{root}/pool") as driver:
        for number in range(MANY):
            SMALL.create(driver, name=f"volume-{number * 7919 % MANY:05}")
        yield driver


class TestMany:
    """A crowd."""

    @pytest.mark.parametrize("size", [0, 7, 100, MANY - 1, MANY])
    def test_all_are_listed_once_and_in_order(self, crowded: Driver, size: int) -> None:
        expected = [f"volume-{number:05}" for number in range(MANY)]
        listed = paged(crowded, size) if size else [volume.volume_id for volume in crowded.volumes()]
        assert listed == expected

    def test_all_are_listed_after_a_restart(self, crowded: Driver) -> None:
        before = crowded.volumes()
        crowded.restart()
        assert crowded.volumes() == before
        assert len(before) == MANY
