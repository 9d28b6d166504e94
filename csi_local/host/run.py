"""Running a program: the one place where a process is started.

Never a shell, never a ``preexec_fn`` (fork beside gRPC's threads may deadlock unless exec follows at once).
"""

import os
import selectors
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from subprocess import PIPE

from csi_local.host import cpus
from csi_local.host.syscalls import opened
from csi_local.model.errors import CommandFailed
from csi_local.model.quantity import KIB
from csi_local.model.secret import Secret

TIMEOUT_S = 120.0
_SHOWN = 600
_ANSWER = 64 * KIB
_PATH = "/usr/sbin:/usr/bin:/sbin:/bin"
_FIX = {
    "blkid": "util-linux",
    "wipefs": "util-linux",
    "mkfs.ext4": "e2fsprogs",
    "e2fsck": "e2fsprogs",
    "resize2fs": "e2fsprogs",
    "mkfs.xfs": "xfsprogs",
    "xfs_growfs": "xfsprogs",
    "mkfs.btrfs": "btrfs-progs",
    "btrfs": "btrfs-progs",
    "cryptsetup": "cryptsetup-bin",
}
Process = subprocess.Popen[bytes]
PACKAGES = _FIX
"""The programs that may be run, and the Debian package each comes with."""


def search_path() -> str:
    """Where programs are looked for: the caller's PATH, then the system's own places."""
    return f"{os.environ.get('PATH', '')}:{_PATH}"


def find(program: str) -> str | None:
    """Where *program* is, or None."""
    return shutil.which(program, path=search_path())


def start(argv: Sequence[str], log: str) -> Process:
    """Start a program that goes on beside us, its output appended to the file *log*.

    It leads a process group of its own, in which the programs that it starts are too.
    """
    with open(log, "ab") as output, cpus.everywhere():
        return subprocess.Popen(list(argv), stdin=subprocess.DEVNULL, stdout=output, stderr=output, process_group=0)


def run(
    argv: Sequence[str],
    *,
    ok: Sequence[int] = (0,),
    timeout_s: float = TIMEOUT_S,
    secret: Secret | None = None,
    more: Secret | None = None,
    on: str = "",
) -> tuple[int, str, str]:
    """Run a program to its end and return its exit status, standard output and standard error.

    A *secret* is its standard input, and shown nowhere. *more* is what it reads from the file that comes as its last
    argument: a pipe, and so on no disk. The device that it works *on* is open in it from its first moment: it may
    outlive the driver, and a loop device that nobody has open is soon another volume's (LO_FLAGS_AUTOCLEAR, loop(4)).

    Raises:
        SyscallFailed: the device cannot be opened.
        CommandFailed: it is missing, does not end in time (it is killed), or ends with a status not in *ok*.
    """
    program = find(argv[0])
    if program is None:
        package = _FIX.get(argv[0], argv[0])
        raise CommandFailed(f"{argv[0]} is not installed: apt-get install {package}")
    environment = {
        "PATH": search_path(),
        "LC_ALL": "C",
        "BLKID_FILE": os.devnull,  # libblkid(3): no cache, which would tell mkfs of devices that were
        "DM_DISABLE_UDEV": "1",  # in a container nobody answers who waits for udev
    }
    given = secret.reveal() if secret else b""
    with ExitStack() as held:
        pipes = [held.enter_context(_piped(more))] if more else []
        devices = [held.enter_context(opened(on, os.O_RDONLY))] if on else []
        words = [program, *argv[1:], *(f"/dev/fd/{pipe}" for pipe in pipes)]
        done = _run(words, environment, timeout_s, given, *pipes, *devices)
    stdout, stderr = done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace")
    if done.returncode not in ok:
        said = (stderr.strip() or stdout.strip())[-_SHOWN:]
        raise CommandFailed(f"{' '.join(argv)}: status {done.returncode}: {said}", done.returncode)
    return done.returncode, stdout, stderr


def ask(program: str, question: bytes, *, timeout_s: float) -> tuple[int, Secret, str]:
    """Run a program of the administrator's, in the driver's own environment, with *question* as its standard input.

    Returns its exit status, its answer, which is shown nowhere, and the end of what it said on standard error. Of one
    that is killed nothing is left: it is often a script, which waits for others.

    Raises:
        CommandFailed: it is missing, does not end in time, or has no end of an answer (it is killed).
    """
    deadline = time.monotonic() + timeout_s
    with ExitStack() as held, Secret(question) as given:
        asked = held.enter_context(_piped(given))
        try:
            with cpus.everywhere():
                process = subprocess.Popen([program], stdin=asked, stdout=PIPE, stderr=PIPE, process_group=0)
        except OSError as error:
            raise _not_started(program, error) from error
        held.enter_context(process)
        try:
            answer, complaint = _heard(process, program, deadline)
            status = process.wait(max(0.0, deadline - time.monotonic()))
        except BaseException as error:
            os.killpg(process.pid, signal.SIGKILL)
            if isinstance(error, subprocess.TimeoutExpired):
                raise _too_late([program], timeout_s) from None
            raise
    return status, Secret(bytes(answer)), complaint.decode(errors="replace").strip()[-_SHOWN:]


def _heard(process: Process, program: str, deadline: float) -> tuple[bytearray, bytearray]:
    """All that a program says on standard output, and the last of standard error, until it closes both.

    Raises:
        CommandFailed: that is more than anybody asked for.
        subprocess.TimeoutExpired: it is still at it.
    """
    answer, complaint = bytearray(), bytearray()
    with selectors.DefaultSelector() as open_pipes:
        for pipe, said in ((process.stdout, answer), (process.stderr, complaint)):
            assert pipe is not None  # noqa: S101 (for the type checker)
            open_pipes.register(pipe, selectors.EVENT_READ, said)
        while open_pipes.get_map():
            if (left := deadline - time.monotonic()) <= 0:
                raise subprocess.TimeoutExpired(program, 0)
            for ready, _ in open_pipes.select(left):
                piece = os.read(ready.fd, _ANSWER)
                ready.data.extend(piece)
                if not piece:
                    open_pipes.unregister(ready.fileobj)
            if len(answer) > _ANSWER:
                raise CommandFailed(f"{program}: an answer of more than {_ANSWER} bytes, killed")
            del complaint[:-_ANSWER]
    return answer, complaint


@contextmanager
def _piped(secret: Secret) -> Iterator[int]:
    """The end of a pipe from which it can be read; a pipe holds 64 KiB (pipe(7))."""
    reading, writing = os.pipe()
    try:
        try:
            os.write(writing, secret.reveal())
        finally:
            os.close(writing)
        yield reading
    finally:
        os.close(reading)


def _run(
    argv: Sequence[str], environment: Mapping[str, str], timeout_s: float, given: bytes, *more: int
) -> subprocess.CompletedProcess[bytes]:
    try:
        with cpus.everywhere():
            return subprocess.run(
                argv,
                input=given or b"",
                capture_output=True,
                timeout=timeout_s,
                check=False,
                env=environment,
                pass_fds=more,
            )
    except subprocess.TimeoutExpired:
        raise _too_late(argv, timeout_s) from None
    except OSError as error:
        raise _not_started(argv[0], error) from error


def _too_late(argv: Sequence[str], timeout_s: float) -> CommandFailed:
    return CommandFailed(f"{' '.join(argv)}: no end after {timeout_s:.0f} s, killed")


def _not_started(program: str, error: OSError) -> CommandFailed:
    return CommandFailed(f"{program} cannot be started: {error.strerror}")
