"""The machines that keep the contract: the real one, and the one in memory, each with btrfs and with XFS."""

from __future__ import annotations

import uuid
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import pytest

from csi_local.host.linux import LinuxHost
from csi_local.model.quantity import MIB, Bytes
from csi_local.model.volume import Filesystem
from tests import observe
from tests.fake.host import FakeHost, new_host

if TYPE_CHECKING:
    from collections.abc import Iterator

    from csi_local.host.api import Host

SIZE = Bytes(900 * MIB)


@dataclass(frozen=True, kw_only=True)
class Machine:
    """A host, and folders to try it in.

    Attributes:
        outside: a folder on whatever the machine has.
        root: the top of a scratch filesystem of its own.
        device: what that is mounted from.
    """

    host: Host
    outside: str
    root: str
    device: str
    filesystem: Filesystem

    def link(self, path: str, target: str) -> str:
        """Make a symbolic link."""
        if isinstance(self.host, FakeHost):
            self.host.make_link(path, target)
        else:
            Path(path).symlink_to(target)
        return path

    def scribble(self, path: str, offset: int) -> None:
        """Write a byte that is not zero."""
        if isinstance(self.host, FakeHost):
            self.host.scribble(path, offset)
            return
        with Path(path).open("r+b") as file:
            file.seek(offset)
            file.write(b"\x01")

    def file(self, name: str, data: bytes = b"data") -> str:
        """Make a file in the scratch filesystem."""
        path = f"{self.root}/{name}"
        self.host.replace_file(path, data)
        return path

    def folder(self, name: str, *, outside: bool = False) -> str:
        """Make a folder in the scratch filesystem, or outside of it."""
        path = f"{self.outside if outside else self.root}/{name}"
        self.host.make_dir(path)
        return path

    def image(self, name: str, size: int, *, thick: bool = False) -> str:
        """Make an image in the scratch filesystem."""
        path = f"{self.root}/{name}"
        self.host.make_image(path, Bytes(size), thick=thick)
        return path


KINDS = [
    pytest.param((real, filesystem), id=f"{'linux' if real else 'fake'}-{filesystem}", marks=marks)
    for real, marks in ((False, ()), (True, (pytest.mark.root,)))
    for filesystem in (Filesystem.BTRFS, Filesystem.XFS)
]


@pytest.fixture(scope="module", params=KINDS)
def scratch(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """Give a machine with a scratch filesystem, for a whole module."""
    real, filesystem = cast("tuple[bool, Filesystem]", request.param)
    with machine_with(filesystem, tmp_path_factory.mktemp("host") if real else None) as made:
        yield made


@contextmanager
def machine_with(filesystem: Filesystem, folder: Path | None) -> Iterator[Machine]:
    """Lend a machine with a scratch filesystem: this one, in a *folder*, or one in memory."""
    host, outside = (LinuxHost(), folder) if folder else (new_host(), Path("/tmp"))
    point = f"{outside}/scratch"
    made = _mounted(host, f"{outside}/scratch.img", point, filesystem)
    yield Machine(host=host, outside=str(outside), root=point, device=made, filesystem=filesystem)
    if folder:
        observe.take_down(outside)
        assert not observe.belongings(outside).loops
        (outside / "scratch.img").unlink()


def _mounted(host: Host, image: str, point: str, filesystem: Filesystem) -> str:
    host.make_image(image, SIZE, thick=False)
    host.make_dir(point)
    with host.attach(image, sector_size=4096, keep=False) as loop:
        made: dict[str, Any] = {"uuid": str(uuid.uuid4()), "label": "scratch", "options": (), "thick": False}
        host.make_filesystem(loop.path, filesystem, **made)
        host.mount(loop.path, point, filesystem, frozenset(), ())
        return loop.path


@pytest.fixture
def machine(scratch: Machine) -> Iterator[Machine]:
    """Give the machine, with empty folders; what a test leaves in them is removed."""
    host, name = scratch.host, uuid.uuid4().hex[:8]
    root, outside = f"{scratch.root}/{name}", f"{scratch.outside}/{name}"
    host.make_dir(root)
    host.make_dir(outside)
    yield Machine(host=host, outside=outside, root=root, device=scratch.device, filesystem=scratch.filesystem)
    for mount in reversed(host.mounts(name)):
        if f"/{name}/" in mount.point:
            host.unmount(mount.point)
    for loop in host.all_loops():
        if any(loop in host.loops(f"{root}/{entry}") for entry in host.list_dir(root)):
            host.detach(loop)
    host.remove_tree(root)
    host.remove_tree(outside)
