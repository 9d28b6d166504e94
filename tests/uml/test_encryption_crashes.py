"""kill -9 at every named point around a key: format, open, grow, close, rotate, erase. Asked again, it must succeed.

The points that a volume without encryption passes too are `tests/root/test_crash_points.py`'s.
"""

from __future__ import annotations

import os
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import pytest

from tests import observe
from tests.observe import MIB
from tests.root.test_crash_points import Life, Step, live_and_die, traced
from tests.rules.kinds import LUKS_EXT4

if TYPE_CHECKING:
    from pathlib import Path

    from tests.conftest import Start

pytestmark = pytest.mark.uml

KEY = "correct horse"
KIND = replace(LUKS_EXT4, name="loopfile-ext4", size=32 * MIB, params={**LUKS_EXT4.params, "allocation": "thin"})
AROUND = {
    "stage": {"FormatEncrypted", "MakeFilesystem"},
    "node-expand": {"ResizeEncrypted"},
    "unstage": {"CloseEncrypted"},
    "stage later": {"AddKey", "RemoveKey", "RemoveTree"},
    "delete": {"EraseHeader"},
}
"""The steps whose points are died at, and the operations before which."""

ALL = {
    "stage": {*AROUND["stage"], "WriteRecord", "Attach", "OpenEncrypted", "KeepHeader", "end"},
    "stage later": {*AROUND["stage later"], "ProveKey", "KeepHeader", "OpenEncrypted", "UseDevice", "end"},
    "node-expand": {*AROUND["node-expand"], "GrowMounted"},
    "unstage": {*AROUND["unstage"], "end"},
    "delete": {*AROUND["delete"], "end"},
}
"""With ``CSI_LOCAL_CUTS=all``: four minutes."""


class EncryptedLife(Life):
    """A volume whose content is encrypted."""

    def steps(self) -> list[Step]:
        """Return what is asked of it: opening takes the time here, so nothing is asked twice."""
        return [
            Step(name="create", act=self._create),
            Step(name="stage", act=self._stage),
            Step(name="publish", act=self._publish, check=self._write),
            Step(name="expand", act=partial(self._expand, 1)),
            Step(name="node-expand", act=self._node_expand, check=self._read),
            Step(name="unpublish", act=partial(self._unpublish, "target")),
            Step(name="unstage", act=self._unstage),
            Step(name="stage later", act=self._stage_with_another_key),
            Step(name="publish again", act=self._publish, check=self._read),
            Step(name="unpublish again", act=partial(self._unpublish, "target")),
            Step(name="unstage again", act=self._unstage),
            Step(name="delete", act=self._delete),
        ]

    def _stage_with_another_key(self) -> None:
        self.driver.stage(self.made, secrets={"encryptionKey": "battery staple", "previousEncryptionKey": KEY})


def test_every_point_around_a_key_is_survived(start: Start, folder: Path) -> None:
    driver = start("image:{root}/pool.img,size=1Gi,allocation=thin")
    driver.secrets = {"encryptionKey": KEY}
    around = ALL if os.environ.get("CSI_LOCAL_CUTS") == "all" else AROUND
    points = {
        name: [point for point in found if point.rpartition(":")[2] in around[name]]
        for name, found in traced(driver, KIND, folder / "trace", EncryptedLife).items()
        if name in around
    }
    for name, operations in around.items():
        assert {point.rpartition(":")[2] for point in points[name]} == operations, name
    for number in range(max(map(len, points.values()))):
        live_and_die(
            driver, KIND, {n: found[number] for n, found in points.items() if number < len(found)}, EncryptedLife
        )
        assert not (left := driver.leftovers()), "left behind: " + ", ".join(left)
        assert not observe.mapped()
