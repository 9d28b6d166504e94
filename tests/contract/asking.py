"""How the suite asks a host, and what it does with failed calls."""

from __future__ import annotations

import uuid
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from csi_local.model.errors import SyscallFailed
from csi_local.model.quantity import MIB
from csi_local.model.volume import Filesystem

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractContextManager

    from csi_local.model.observed import FileInfo, LoopDevice
    from tests.contract.conftest import Machine

NONE: frozenset[str] = frozenset()


@contextmanager
def fails(*numbers: int) -> Iterator[None]:
    """Demand a failed system call with one of these errnos."""
    with pytest.raises(SyscallFailed) as caught:
        yield
    assert caught.value.errno in numbers, str(caught.value)


def there(machine: Machine, path: str) -> FileInfo:
    """Return what is at a path where something must be."""
    info = machine.host.stat(path)
    assert info is not None
    return info


def attach(machine: Machine, path: str, **options: Any) -> AbstractContextManager[LoopDevice]:  # noqa: ANN401
    """Attach an image in the usual way."""
    return machine.host.attach(path, **{"sector_size": 4096, "keep": False, **options})


def format_it(machine: Machine, device: str, filesystem: Filesystem = Filesystem.EXT4, **options: Any) -> None:  # noqa: ANN401
    """Make a filesystem in the usual way."""
    made: dict[str, Any] = {"uuid": str(uuid.uuid4()), "label": "", "options": (), "thick": False, **options}
    machine.host.make_filesystem(device, filesystem, **made)


@contextmanager
def volume(machine: Machine, name: str = "disk.img", size: int = 32 * MIB) -> Iterator[tuple[str, str, LoopDevice]]:
    """Give an ext4 on an image, mounted outside: the image, the mount point, the device."""
    image, point = machine.image(name, size), machine.folder(f"{name}-at", outside=True)
    with attach(machine, image) as loop:
        format_it(machine, loop.path)
        machine.host.mount(loop.path, point, "ext4", NONE, ())
    yield image, point, loop
