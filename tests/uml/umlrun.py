"""Run one command under a second kernel: User-Mode Linux, booted on this machine's own root filesystem.

    python3 -m tests.uml.umlrun --scratch 2G -- xfs_info /dev/ubda

Debian's 6.1 UML kernel has what many machines and most containers lack: device mapper, project quota, every
capability. The guest sees the host's files and cannot write one of them: the runner makes every mount
read-only in a mount namespace of its own (`--writable DIR` excepted), and the guest writes to an overlay in
its memory.

The command's output is streamed and its exit code passed on. 124: the time limit was reached. 125: the guest
ended without a result (out of memory, panic); the tail of its kernel log is then shown. 126, 127: the command
could not be executed, was not found.

Nothing is left behind, not even by SIGKILL: run directory and guest memory are a tmpfs of that mount
namespace, scratch disks are files without a name, and the guest's processes live in a process namespace that
the kernel empties when the runner dies. So boot() changes the process that calls it: one guest per process.
"""

import argparse
import contextlib
import os
import re
import selectors
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.uml import guest, linux

TIMED_OUT = 124
NO_RESULT = 125

KERNEL = "linux.uml"
PROGRAMS = {KERNEL: "user-mode-linux", "modprobe": "kmod", "setpriv": "util-linux", "unshare": "util-linux"}
CHECKOUT = Path(__file__).resolve().parents[2]
DISK_NAMES = "abcdefghijklmnop"
KERNEL_LOG = guest.RUN_DIR / "kernel.log"
LOG_TAIL_LINES = 25
MODULES = ("loop", "dm-mod", "dm-crypt", "xts", "algif_skcipher", "quota_v2")


class RunnerError(Exception):
    """The guest cannot be started; the message says what to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Guest:
    """One boot: what to run, and on what."""

    argv: Sequence[str]
    cwd: str = "/"
    env: Mapping[str, str] = field(default_factory=dict)
    memory_mib: int = 1024
    scratch_bytes: Sequence[int] = ()  # sparse, empty disks: /dev/ubda, /dev/ubdb, …
    modules: Sequence[str] = MODULES
    writable: Sequence[Path] = ()
    visible: Sequence[Path] = ()
    time_limit: float = 300


def main() -> int:
    """Run from the command line."""
    try:
        return boot(parse(sys.argv[1:]))
    except RunnerError as error:
        sys.stderr.write(f"umlrun: {error}\n")
        return NO_RESULT


def parse(arguments: Sequence[str]) -> Guest:
    """Command line to Guest."""
    parser = argparse.ArgumentParser(
        prog="umlrun", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--memory", type=size, default=size("1G"), metavar="SIZE", help="the guest's memory (default 1G)")
    add("--scratch", type=size, action="append", default=[], metavar="SIZE", help="an empty disk; repeatable")
    add("--writable", type=existing, action="append", default=[], metavar="DIR", help="share DIR for writing")
    add(
        "--visible",
        type=existing,
        action="append",
        default=[],
        metavar="DIR",
        help="show a DIR of /tmp or /run",
    )
    add("--module", action="append", default=[], metavar="NAME", help="one more kernel module; repeatable")
    add("--env", type=assignment, action="append", default=[], metavar="NAME=VALUE")
    add("--cwd", default="/")
    add("--time-limit", type=float, default=300, metavar="SECONDS")
    add("argv", nargs="+", metavar="COMMAND")
    options = parser.parse_args(arguments)
    return Guest(
        argv=options.argv,
        cwd=options.cwd,
        env=dict(options.env),
        memory_mib=options.memory >> 20,
        scratch_bytes=options.scratch,
        modules=[*MODULES, *options.module],
        writable=options.writable,
        visible=options.visible,
        time_limit=options.time_limit,
    )


def size(text: str) -> int:
    """Parse 512M, 2G: bytes."""
    match = re.fullmatch(r"(\d+)([KMG]?)", text)
    if not match:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size: write 512M or 2G")
    return int(match[1]) << {"": 0, "K": 10, "M": 20, "G": 30}[match[2]]


def existing(text: str) -> Path:
    """Parse a directory that is there."""
    path = Path(text).resolve()
    if not path.is_dir():
        raise argparse.ArgumentTypeError(f"{text} is not a directory")
    return path


def assignment(text: str) -> tuple[str, str]:
    """Parse NAME=VALUE."""
    name, separator, value = text.partition("=")
    if not separator:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=VALUE")
    return name, value


def boot(order: Guest) -> int:
    """Boot, run the command, power off; return its exit code. Call it once in a process."""
    require(PROGRAMS)
    with contextlib.ExitStack() as stack:
        disks = [stack.enter_context(scratch_disk(size_)) for size_ in order.scratch_bytes]
        try:
            isolate(order)
        except OSError as error:
            raise RunnerError(f"cannot make a read-only view of this machine: {error}") from error
        guest.Orders(
            argv=list(order.argv),
            cwd=order.cwd,
            env=environment(order.env),
            modules=list(order.modules),
            writable=[str(path) for path in order.writable],
            visible=[str(path) for path in order.visible],
        ).save()
        return run_kernel(order, disks)


def require(programs: Mapping[str, str]) -> None:
    """Check that each program (key) is there; name the packages (values) that have the missing ones."""
    if os.geteuid() != 0:
        raise RunnerError("the runner makes mount and process namespaces: run it as root, e.g. with sudo")
    missing = [name for name in programs if not shutil.which(name, path=search_path())]
    if missing:
        packages = " ".join(sorted({programs[name] for name in missing}))
        raise RunnerError(f"not found: {', '.join(missing)}. Install with: apt-get install -y {packages}")


def environment(extra: Mapping[str, str]) -> dict[str, str]:
    """Return the command's environment: little of the host's, and no udev to wait for."""
    ours = {
        "PATH": search_path(),
        "HOME": "/root",
        "LC_ALL": "C.UTF-8",
        "TERM": "dumb",
        "DM_DISABLE_UDEV": "1",
    }
    return {**ours, **extra}


def search_path() -> str:
    """Return where programs are, the administrator's included: sudo and cron may leave those out."""
    return os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/usr/bin", "/sbin", "/bin"]).lstrip(":")


@contextlib.contextmanager
def scratch_disk(bytes_: int) -> Iterator[int]:
    """Make a sparse file that has no name, so that it goes when the last process that holds it goes."""
    with tempfile.TemporaryFile(dir="/var/tmp") as file:  # a disk; /tmp may be memory
        file.truncate(bytes_)
        yield file.fileno()


def isolate(order: Guest) -> None:
    """Enter a read-only view of the host, and make the next child the first process of a namespace."""
    linux.unshare(linux.CLONE_NEWNS | linux.CLONE_NEWPID)
    linux.make_tree_private_and_read_only("/")
    room = (order.memory_mib + 64) << 20
    linux.mount("umlrun", "/run", "tmpfs", options=f"mode=755,size={room}")
    guest.RUN_DIR.mkdir()
    (guest.RUN_DIR / "python").symlink_to(Path(sys.executable).resolve())
    (guest.RUN_DIR / "checkout").symlink_to(CHECKOUT)
    for path in order.writable:
        linux.mount(str(path), str(path), flags=linux.MS_BIND)
        linux.make_mount_writable(str(path))


def run_kernel(order: Guest, disks: Sequence[int]) -> int:
    """Start the kernel, stream its consoles until they close, return the command's exit code."""
    with contextlib.ExitStack() as stack:
        consoles = Consoles(stack)
        log = stack.enter_context(KERNEL_LOG.open("wb"))
        process = stack.enter_context(
            started(
                kernel_command(order, consoles.writers, log.fileno(), disks),
                output=log.fileno(),
                pass_fds=[*consoles.writers, log.fileno(), *disks],
            )
        )
        consoles.close_writers()
        finished = consoles.stream(time.monotonic() + order.time_limit)
        if not finished:
            sys.stderr.write(f"umlrun: stopped at its time limit of {order.time_limit:g} s\n")
            return TIMED_OUT
        process.wait()
        return consoles.exit_code()


def kernel_command(order: Guest, consoles: Sequence[int], log: int, disks: Sequence[int]) -> list[str]:
    """Return the argv that boots: a process that dies with the runner, and below it the kernel.

    The kernel is not the first of its namespace itself: as such it could not kill itself in a panic.
    """
    outlets = [f"con{number}=null,fd:{fd}" for number, fd in enumerate([log, *consoles])]
    drives = [
        f"ubd{name}=/proc/{os.getpid()}/fd/{fd}" for name, fd in zip(DISK_NAMES[: len(disks)], disks, strict=True)
    ]
    return [
        *("setpriv", "--pdeathsig", "KILL", "unshare", "--fork"),
        *(KERNEL, f"mem={order.memory_mib}M", "quiet", "panic=-1"),
        *("nohz=off", "highres=off"),  # a periodic tick: a one-shot timer that is lost stops this kernel for good
        *("root=/dev/root", "rootfstype=hostfs", "rootflags=/", "ro"),
        *("umid=guest", f"uml_dir={guest.RUN_DIR}/", "con=null", "ssl=null", *outlets, *drives),
        *(f"PYTHONPATH={guest.RUN_DIR}/checkout", f"init={guest.RUN_DIR}/python"),
        *("--", "-B", "-m", guest.__name__),
    ]


@contextlib.contextmanager
def started(argv: Sequence[str], *, output: int, pass_fds: Sequence[int]) -> Iterator[subprocess.Popen[bytes]]:
    """Run a process that is dead, with all it started, when the block is left."""
    env = {"PATH": search_path(), "TMPDIR": str(guest.RUN_DIR), "HOME": str(guest.RUN_DIR)}
    process = subprocess.Popen(
        argv,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=output,
        pass_fds=pass_fds,
        env=env,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


class Consoles:
    """The host's ends of the guest's tty1 (stdout), tty2 (stderr) and tty3 (results)."""

    def __init__(self, stack: contextlib.ExitStack) -> None:
        """Make the pipes; `stack` closes what is still open in the end."""
        pipes = [os.pipe() for _ in range(3)]
        self._stdout, self._stderr, self._result = (os.fdopen(reader, "rb", 0) for reader, _ in pipes)
        self._write_ends = [os.fdopen(writer, "wb", 0) for _, writer in pipes]
        for stream in (self._stdout, self._stderr, self._result, *self._write_ends):
            stack.enter_context(stream)
        self._report = b""

    @property
    def writers(self) -> list[int]:
        """The guest's ends, in the order tty1, tty2, tty3."""
        return [stream.fileno() for stream in self._write_ends]

    def close_writers(self) -> None:
        """Drop our copies of the guest's ends, so that its end is the end of the streams."""
        for stream in self._write_ends:
            stream.close()

    def stream(self, deadline: float) -> bool:
        """Copy output as it comes; True when the guest closed its consoles, False at the deadline."""
        with selectors.DefaultSelector() as selector:
            selector.register(self._stdout, selectors.EVENT_READ, sys.stdout.fileno())
            selector.register(self._stderr, selectors.EVENT_READ, sys.stderr.fileno())
            selector.register(self._result, selectors.EVENT_READ)
            while selector.get_map():
                left = deadline - time.monotonic()
                if left <= 0:
                    return False
                for key, _ in selector.select(left):
                    data = os.read(key.fd, 1 << 16)
                    if not data:
                        selector.unregister(key.fileobj)
                    elif key.data is None:
                        self._report += data
                    else:
                        write_all(key.data, data)
        return True

    def exit_code(self) -> int:
        """Return what the guest reported, or NO_RESULT with the reason as far as the kernel log has it."""
        match = re.search(rf"^{guest.EXIT} (\d+)$", self._report.decode(errors="replace"), re.MULTILINE)
        if match:
            return int(match[1])
        tail = KERNEL_LOG.read_text(errors="replace").splitlines()[-LOG_TAIL_LINES:]
        lines = ["umlrun: the guest ended without a result; its kernel log ends:", *tail]
        sys.stderr.write("\n".join(lines) + "\n")
        return NO_RESULT


def write_all(descriptor: int, data: bytes) -> None:
    """write(2) until everything is written."""
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def stop_on_signals() -> None:
    """Let SIGTERM and SIGHUP unwind like Ctrl-C, so that they too end with the guest gone."""

    def stop(number: int, _frame: object) -> None:
        sys.exit(128 + number)

    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        signal.signal(number, stop)


if __name__ == "__main__":
    stop_on_signals()
    sys.exit(main())
