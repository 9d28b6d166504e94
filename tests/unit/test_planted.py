"""Copies of trees, on the real machine: what took a file's place since it was listed is not opened."""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING

from csi_local.host.trees import _Copy
from tests.hostile import opens, planted

if TYPE_CHECKING:
    from pathlib import Path


def test_only_files_are_opened(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    target.mkdir()
    special = planted(source)
    old, new = os.open(source, os.O_RDONLY), os.open(target, os.O_RDONLY)
    with opens(*special) as count:
        copy = _Copy(new, share=False, proceed=lambda: None)
        for path in special:
            copy._entry(old, new, path.name, path.name, stat.S_IFREG, 0)
        assert count() == 0
    os.close(old)
    os.close(new)
    for path in special:
        assert stat.S_IFMT((target / path.name).lstat().st_mode) == stat.S_IFMT(path.lstat().st_mode)
