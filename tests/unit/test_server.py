"""The socket of a server: where there can be one, how it is made, and how it is missed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from csi_local.model.errors import DriverError, InvalidArgument
from csi_local.rpc.server import Server, socket_path

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize("name", ["csi.sock", "s"])
def test_how_long_its_path_may_be(name: str) -> None:
    """Where it is made counts as well, in a directory of its own."""
    room = 107 - 1 - max(len(name), len(".new/s"))
    longest = f"/{'d' * (room - 1)}/{name}"
    assert socket_path(f"unix://{longest}") == longest
    with pytest.raises(InvalidArgument, match="at most 107 bytes"):
        socket_path(f"unix:///d{longest}")


@pytest.mark.parametrize("path", ["/run/\udcff/s", "/run/\n/s"])
def test_what_cannot_be_said(path: str) -> None:
    with pytest.raises(InvalidArgument, match="cannot be printed"):
        socket_path(f"unix://{path}")


def test_missing_directories_are_made_for_the_owner_alone(folder: Path) -> None:
    server = Server(f"unix://{folder}/a/b/s", ())
    server.start()
    assert [one.stat().st_mode & 0o777 for one in (folder / "a", folder / "a/b")] == [0o700, 0o700]
    server.stop()


def test_a_directory_that_cannot_be_made_is_named(folder: Path) -> None:
    (folder / "file").write_text("")
    with pytest.raises(DriverError, match=f"{folder}/file/a/s"):
        Server(f"unix://{folder}/file/a/s", ()).start()


def test_one_that_is_wiped_is_missed(folder: Path) -> None:
    server = Server(f"unix://{folder}/s", ())
    server.start()
    assert server.problem == ""
    (folder / "s").unlink()
    assert server.problem == f"the socket {folder}/s is gone"
    server.renew()
    assert server.problem == ""
    server.stop()
