"""What a pod, or anybody, may plant, on the real machine: it is neither opened nor waited for."""

from __future__ import annotations

import os
import stat
import threading
from pathlib import Path

from csi_local.host.linux import LinuxHost
from csi_local.host.trees import _Copy
from tests.hostile import opens, planted


def test_files_with_several_names_further_down_than_a_path_can_say(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    target.mkdir()
    (source / "top").write_bytes(b"top")
    here = os.open(source, os.O_RDONLY)
    for number in range(40):
        os.mkdir("x" * 250, dir_fd=here)
        inner = os.open("x" * 250, os.O_RDONLY, dir_fd=here)
        os.link(source / "top", "from-the-top", dst_dir_fd=inner)
        with os.fdopen(os.open("one", os.O_WRONLY | os.O_CREAT, 0o600, dir_fd=inner), "wb") as file:
            file.write(str(number).encode())
        os.link("one", "two", src_dir_fd=inner, dst_dir_fd=inner)
        os.close(here)
        here = inner
    os.close(here)
    most = 0

    def proceed() -> None:
        nonlocal most
        most = max(most, len(list(Path("/proc/self/fd").iterdir())))

    before = len(list(Path("/proc/self/fd").iterdir()))
    LinuxHost().copy_tree(str(source), str(target), share=False, proceed=proceed)
    assert most - before <= 2 * 40 + 5, "each level holds its directory and the copy of it"
    here = os.open(target, os.O_RDONLY)
    top = os.stat("top", dir_fd=here)
    for _ in range(40):
        inner = os.open("x" * 250, os.O_RDONLY, dir_fd=here)
        one, two = os.stat("one", dir_fd=inner), os.stat("two", dir_fd=inner)
        assert (one.st_ino, one.st_nlink) == (two.st_ino, 2)
        assert os.stat("from-the-top", dir_fd=inner).st_ino == top.st_ino
        os.close(here)
        here = inner
    os.close(here)
    for folder in (source, target):
        LinuxHost().remove_tree(str(folder))


def test_a_fifo_in_a_record_s_place_holds_nobody_up(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "volume.json", 0o600)
    read: list[bytes] = []
    reader = threading.Thread(
        target=lambda: read.append(LinuxHost().read_file(str(tmp_path / "volume.json"))), daemon=True
    )
    reader.start()
    reader.join(timeout=10)
    assert read == [b""]


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
