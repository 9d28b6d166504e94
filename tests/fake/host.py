"""`FakeHost`: `csi_local.host.api.Host` in memory, quick, and able to crash.

    host = FakeHost()
    host.fail("rename", errno.EIO)      # the next rename fails
    host.die(7)                         # at the seventh moment from now the process dies
    host.crash()                        # what a dead process leaves; host.reboot(): what a machine leaves

`tests/contract` holds it to what the real host does.
"""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

from csi_local.model.observed import FileKind
from tests.fake.calls import call
from tests.fake.copying import FakeCopying
from tests.fake.kernel import LOOP_MAJOR
from tests.fake.tree import failed

if TYPE_CHECKING:
    from collections.abc import Sequence

    from csi_local.host.api import Host


class FakeInspection(FakeCopying):
    """Implements `host.api.Inspection`."""

    @call
    def owner(self, path: str) -> int:
        """See `Inspection.owner`."""
        return self.walk(path, f"stat {path}").node.uid

    @call
    def set_owner(self, path: str, owner: int, mode: int) -> None:
        """See `Inspection.set_owner`."""
        place = self.walk(path, f"open {path}")
        if place.node.kind is FileKind.SYMLINK:
            raise failed(f"open {path}", errno.ELOOP)
        self.check_writable(place, f"take over {path}")
        place.node.uid, place.node.mode = owner, place.node.mode & mode

    @call
    def project_of(self, path: str) -> int:
        """See `Inspection.project_of`."""
        return self.directory(path, f"open {path}").node.project

    @call
    def backing_path(self, device: int) -> str:
        """See `Inspection.backing_path`: where it is now, or was when it was removed."""
        loop = self.attached.get(os.minor(device)) if os.major(device) == LOOP_MAJOR else None
        if loop is None:
            return ""
        return loop.image.node.last_path or self.path_of(loop.image)

    @call
    def openers(self, path: str) -> Sequence[int]:
        """See `Inspection.openers`."""
        loop = self.loop_of(self.walk(path, f"stat {path}").node)
        return list(range(2, 2 + loop.openers)) if loop is not None else []


class FakeHost(FakeInspection):
    """A machine in memory."""

    def make_dirs(self, path: str) -> None:
        """Make a directory and those above it."""
        parts = [part for part in path.split("/") if part]
        for index in range(len(parts)):
            above = "/" + "/".join(parts[: index + 1])
            if self.look(above) is None:
                self.make_dir(above, mode=0o755)


def new_host() -> FakeHost:
    """Return a machine with the directories that every machine has."""
    host = FakeHost()
    for path in ("/run", "/tmp", "/var/lib"):
        host.make_dirs(path)
    return host


if TYPE_CHECKING:
    _kept: Host = FakeHost()  # the type checker sees that the protocol is kept
