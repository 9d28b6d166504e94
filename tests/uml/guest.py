"""The guest's init: process 1 inside User-Mode Linux, root on the host's own tree, read-only.

It lays an overlay over that tree (everything written goes to memory), mounts what a system has, runs the one
command it was ordered to, reports the exit code on a console of its own, and powers off.

    tty1  the command's stdout        tty2  the command's stderr        tty3  "started", then "exit N"
"""

import fcntl
import json
import os
import resource
import socket
import struct
import subprocess
import sys
import termios
import traceback
import tty
from dataclasses import asdict, dataclass
from pathlib import Path

from tests.uml import linux

STDOUT, STDERR, RESULT = "/dev/tty1", "/dev/tty2", "/dev/tty3"
STARTED, EXIT = "started", "exit"
RUN_DIR = Path("/run/umlrun")
MODULES = Path("/usr/lib/uml/modules")

_NOT_FOUND, _NOT_EXECUTABLE = 127, 126  # as a shell reports them
_SIOCSIFFLAGS, _IFF_UP = 0x8914, 0x1


@dataclass(frozen=True, slots=True, kw_only=True)
class Orders:
    """What the runner wants of its guest, handed over as a file in RUN_DIR."""

    argv: list[str]
    cwd: str
    env: dict[str, str]
    modules: list[str]
    writable: list[str]  # host directories the guest shares for writing
    visible: list[str]  # host directories that the guest's own /tmp or /run would hide

    def save(self) -> None:
        """Leave them where the guest looks."""
        (RUN_DIR / "orders.json").write_text(json.dumps(asdict(self)))

    @classmethod
    def load(cls) -> "Orders":
        """Read what save() wrote."""
        return cls(**json.loads((RUN_DIR / "orders.json").read_text()))


def main() -> None:
    """Run as process 1: never return, whatever happens, because the kernel would panic."""
    try:
        orders = Orders.load()
        os.environ["PATH"] = orders.env["PATH"]
        enter_overlay(orders)
        prepare(orders.modules)
        code = execute(orders)
        os.sync()
        report(f"{EXIT} {code}")
        drain_consoles()
    except BaseException:  # noqa: BLE001 - there is nobody above process 1
        traceback.print_exc()
        sys.stderr.flush()
    linux.power_off()


def enter_overlay(orders: Orders) -> None:
    """Make / an overlay of the host's tree and a tmpfs, with fresh system mounts on top."""
    linux.mount("proc", "/proc", "proc")
    linux.mount("tmpfs", "/mnt", "tmpfs", options="mode=755")
    for name in ("upper", "work", "root", "modprobe/lib/modules"):
        Path("/mnt", name).mkdir(parents=True)
    release = os.uname().release
    Path("/mnt/modprobe/lib/modules", release).symlink_to(MODULES / release)
    modprobe("-d", "/mnt/modprobe", "overlay")
    layers = "lowerdir=/,upperdir=/mnt/upper,workdir=/mnt/work"
    linux.mount("root", "/mnt/root", "overlay", options=layers)
    mount_system("/mnt/root")
    for path in orders.writable:
        mount_host(path, "/mnt/root", flags=0)
    for path in orders.visible:
        mount_host(path, "/mnt/root", flags=linux.MS_RDONLY)
    modules = Path("/mnt/root/lib/modules")
    modules.mkdir(parents=True, exist_ok=True)
    if not (modules / release).exists():
        (modules / release).symlink_to(MODULES / release)
    linux.pivot_root("/mnt/root")
    linux.mount("", "/", flags=linux.MS_SHARED | linux.MS_REC)


def modprobe(*arguments: str) -> None:
    """Load kernel modules."""
    subprocess.run(["modprobe", *arguments], check=True)  # noqa: S607


def mount_system(root: str) -> None:
    """Mount /proc, /sys, /dev and the places that programs expect to be empty at boot."""
    linux.mount("proc", f"{root}/proc", "proc")
    linux.mount("sysfs", f"{root}/sys", "sysfs")
    linux.mount("devtmpfs", f"{root}/dev", "devtmpfs")
    for name in ("shm", "pts"):
        Path(root, "dev", name).mkdir(exist_ok=True)
    linux.mount("shm", f"{root}/dev/shm", "tmpfs", options="mode=1777")
    linux.mount("devpts", f"{root}/dev/pts", "devpts", options="gid=5,mode=620,ptmxmode=666")
    for name, target in (("fd", "/proc/self/fd"), ("stdin", "fd/0"), ("stdout", "fd/1"), ("stderr", "fd/2")):
        Path(root, "dev", name).symlink_to(target)
    linux.mount("run", f"{root}/run", "tmpfs", options="mode=755")
    Path(root, "run/lock").mkdir()
    linux.mount("tmp", f"{root}/tmp", "tmpfs", options="mode=1777")


def mount_host(path: str, root: str, *, flags: int) -> None:
    """Mount a host directory at the same path in the guest."""
    Path(root + path).mkdir(parents=True, exist_ok=True)
    linux.mount("none", root + path, "hostfs", flags, path)


def prepare(modules: list[str]) -> None:
    """Load modules, bring the loopback interface up, make the consoles 8-bit clean."""
    if modules:
        modprobe("-a", *modules)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        fcntl.ioctl(control, _SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", _IFF_UP))
    resource.setrlimit(resource.RLIMIT_NOFILE, (65536, 65536))
    socket.sethostname("uml")
    for console in (STDOUT, STDERR, RESULT):
        with Path(console).open("rb", buffering=0) as stream:
            tty.setraw(stream.fileno())


def execute(orders: Orders) -> int:
    """Run the command and return its exit code; reap the orphans that end before it does."""
    report(STARTED)
    with Path(STDOUT).open("wb") as stdout, Path(STDERR).open("wb") as stderr:
        try:
            child = subprocess.Popen(
                orders.argv,
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=stderr,
                cwd=orders.cwd,
                env=orders.env,
                start_new_session=True,
            )
        except OSError as error:
            stderr.write(f"umlrun: {error}\n".encode())
            return _NOT_FOUND if isinstance(error, FileNotFoundError) else _NOT_EXECUTABLE
        return reap_until(child.pid)


def reap_until(wanted: int) -> int:
    """Wait for every child until `wanted` ends; its exit code, or 128 plus the signal that ended it."""
    while True:
        pid, status = os.wait()
        if pid == wanted:
            code = os.waitstatus_to_exitcode(status)
            return code if code >= 0 else 128 - code


def report(line: str) -> None:
    """Tell the runner, who reads this console."""
    Path(RESULT).write_text(f"{line}\n")


def drain_consoles() -> None:
    """Wait until the host has taken everything: a power-off would drop it."""
    for console in (STDOUT, STDERR, RESULT):
        with Path(console).open("wb", buffering=0) as stream:
            termios.tcdrain(stream)


if __name__ == "__main__":
    main()
