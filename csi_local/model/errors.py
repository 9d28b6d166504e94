"""Every error the driver raises on purpose.

::

    DriverError
    ├── InvalidArgument       the request is malformed or asks for something that does not exist
    ├── NotFound              no such volume (or no such path for that volume)
    ├── AlreadyExists         the name, or the path, is taken by something that differs from the request
    ├── OutOfRange            a size that cannot be delivered
    ├── ResourceExhausted     no pool has the room, or the node has reached its limit
    ├── FailedPrecondition    the state of the node forbids it; the message says what to change
    │   └── DamagedRecord     this volume's record cannot be read or believed
    ├── Unauthenticated       the key of an encrypted volume is missing or is not its key
    ├── Busy                  another operation on the same volume is under way
    │   └── Conflict          somebody else has written the object of the Kubernetes API meanwhile
    ├── Unsupported           this version, or this node, cannot do it
    ├── Unavailable           a pool is missing, its disk fails, no memory is left; the same request may work later
    │   └── Expired           the Kubernetes API no longer knows that version; list again
    └── HostError             the kernel or a program refused
        ├── SyscallFailed     carries the errno
        └── CommandFailed     carries the exit status and the last lines it printed

``rpc.boundary`` alone turns these into gRPC status codes. A message is written for the person who will
read it in ``kubectl describe``: it says what was seen and what to do, and it never holds a secret.
"""

import errno
import os


class DriverError(Exception):
    """The root: an error that was foreseen."""

    def __str__(self) -> str:
        """The message, as UTF-8 can have it: names of files may hold any bytes, and a pod chooses them."""
        return super().__str__().encode(errors="backslashreplace").decode()


class InvalidArgument(DriverError):
    """The request cannot be right whatever the state of the node."""


class NotFound(DriverError):
    """There is no such volume here."""


class AlreadyExists(DriverError):
    """Taken, by something that is not what the request describes."""


class OutOfRange(DriverError):
    """A size that cannot be delivered."""


class ResourceExhausted(DriverError):
    """No room, or a limit is reached."""


class FailedPrecondition(DriverError):
    """Something must be changed first."""


class DamagedRecord(FailedPrecondition):
    """A volume's record is unreadable, fails its checksum, or is from a newer version."""


class Unauthenticated(DriverError):
    """The key is missing, empty or wrong; the request must come again with another."""


class Busy(DriverError):
    """Another operation on the same thing is under way."""


class Conflict(Busy):
    """Written by somebody else since it was read."""


class Unsupported(DriverError):
    """Not in this version, or not on this node."""


class Unavailable(DriverError):
    """A pool is missing or failing, or the node lacks memory or open files: no other request would do better."""


class Expired(Unavailable):
    """A resource version that is too old to go on from."""


class HostError(DriverError):
    """The kernel or a program refused."""


class SyscallFailed(HostError):
    """A system call failed.

    Attributes:
        errno: the error number (errno(3)).
    """

    def __init__(self, what: str, number: int) -> None:
        """*what* names the call and its object, e.g. ``mount /dev/loop3 on /mnt``."""
        name = errno.errorcode.get(number, str(number))
        super().__init__(f"{what}: {os.strerror(number)} ({name})")
        self.errno = number


class CommandFailed(HostError):
    """A program ended with a status that was not expected, timed out, or is missing.

    Attributes:
        status: the exit status, or None where the program did not end by itself.
    """

    def __init__(self, message: str, status: int | None = None) -> None:
        """*message* names the program and what it printed."""
        super().__init__(message)
        self.status = status


SHORTAGE = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)
"""What says nothing of the thing that was asked about: who takes it for "it is not there" lets go of what is in use."""

_ERRNO_KINDS: dict[int, type[DriverError]] = {
    errno.ENOSPC: ResourceExhausted,
    errno.EDQUOT: ResourceExhausted,
    errno.EFBIG: OutOfRange,
    errno.EACCES: FailedPrecondition,
    errno.EPERM: FailedPrecondition,
    errno.EEXIST: Busy,
    errno.EBUSY: FailedPrecondition,
    errno.ENOENT: FailedPrecondition,
    errno.ENOTDIR: FailedPrecondition,
    errno.EUCLEAN: FailedPrecondition,
    errno.EBADMSG: FailedPrecondition,
    errno.EOPNOTSUPP: FailedPrecondition,
    errno.EXDEV: FailedPrecondition,
    errno.ELOOP: InvalidArgument,
    errno.ENAMETOOLONG: InvalidArgument,
    errno.EROFS: Unavailable,
    errno.EIO: Unavailable,
    errno.ENODEV: Unavailable,
    errno.ENXIO: Unavailable,
    errno.ENOMEDIUM: Unavailable,
    errno.EREMOTEIO: Unavailable,
    errno.ENOTCONN: Unavailable,
    errno.ESTALE: Unavailable,
    errno.EHOSTDOWN: Unavailable,
    errno.ETIMEDOUT: Unavailable,
    errno.EAGAIN: Unavailable,
    errno.ENOMEM: Unavailable,
    errno.EMFILE: Unavailable,
    errno.ENFILE: Unavailable,
}


def kind_of(error: Exception) -> type[Exception]:
    """The class whose meaning an error has for a caller: its own, or what the errno of a system call comes down to."""
    if isinstance(error, SyscallFailed):
        return _ERRNO_KINDS.get(error.errno, SyscallFailed)
    return type(error)
