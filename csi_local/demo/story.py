"""``csi-local demo``: real volumes on a real disk, through their whole life, each step with what it proves."""

import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from tabulate import tabulate

from csi_local.demo import pod
from csi_local.host import run as programs
from csi_local.host.linux import LinuxHost
from csi_local.model.errors import DriverError, FailedPrecondition, InvalidArgument
from csi_local.model.quantity import GIB, MIB, format_bytes
from csi_local.rpc.client import CallFailed, Client

_POOL_SIZE = "4Gi"
_FIRST_SIZE = 768 * MIB
_READY_WITHIN_S = 30.0
_STOP_WITHIN_S = 15.0
_DIRECTORY = {"backend": "directory"}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Volume:
    """A volume of the demo and the paths it is used at."""

    id: str
    staging: str
    target: str
    block: bool


@dataclass(slots=True)
class _Demo:
    """What the steps share."""

    root: Path
    host: LinuxHost = field(default_factory=LinuxHost)
    process: programs.Process | None = None
    client: Client | None = None
    filesystem: str = "xfs"
    rows: list[tuple[str, str, str]] = field(default_factory=list)

    def step(self, what: str, proves: str, act: Callable[[], object]) -> None:
        """Do one thing, and say what it proves and how long it took."""
        began = time.perf_counter()
        result = act()
        took = (time.perf_counter() - began) * 1000
        shown = f"{what}: {result}" if result else what
        self.rows.append((shown, f"{took:.1f} ms", proves))
        if sys.stderr.isatty():
            print(f"  {shown}", file=sys.stderr, flush=True)

    @property
    def csi(self) -> Client:
        """The connection to the driver."""
        if self.client is None:
            raise FailedPrecondition("the driver is not running")
        return self.client


def run(directory: str) -> int:
    """Run the demo below *directory*; leave nothing there, also when interrupted.

    Raises:
        FailedPrecondition: it cannot run here; the message says what to do.
    """
    if os.geteuid() != 0:
        raise FailedPrecondition("the demo makes loop devices and mounts: run it as root")
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupted)
    with _temporary(directory) as demo:
        try:
            _story(demo)
        except KeyboardInterrupt:
            print("csi-local demo: interrupted; cleaning up", file=sys.stderr)
            return 130
        except (OSError, DriverError) as error:
            raise FailedPrecondition(f"the demo failed: {error}\n{_log_tail(demo)}") from error
    left = _left_behind(LinuxHost(), str(demo.root))
    demo.rows.append(
        ("look for what is left", "", f"nothing leaks: {', '.join(left) or 'no mount, loop device or file'}")
    )
    print(tabulate(demo.rows, headers=("STEP", "TOOK", "WHAT IT SHOWS"), tablefmt="simple", colalign=("left", "right")))
    return 1 if left else 0


def _interrupted(_number: int, _frame: object) -> None:
    raise KeyboardInterrupt


@contextmanager
def _temporary(directory: str) -> Iterator[_Demo]:
    try:
        demo = _Demo(Path(tempfile.mkdtemp(prefix="csi-local-demo.", dir=Path(directory).absolute())))
    except (OSError, ValueError) as error:
        raise InvalidArgument(f"--dir {directory}: {getattr(error, 'strerror', error)}") from None
    try:
        yield demo
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # once is enough
        _clean_up(demo)


# --- the story


def _story(demo: _Demo) -> None:
    demo.step(
        "start the driver, an image pool on this disk", "one process and a file: no partition, no LVM", _start(demo)
    )
    if not demo.csi.largest(_DIRECTORY):
        demo.step(
            "this kernel's XFS has no quota: begin again with btrfs",
            "abilities are found by trying",
            lambda: _again_with_btrfs(demo),
        )
    volumes = _make(demo)
    _use(demo, *volumes)
    _go_back(demo, volumes[0])
    _grow(demo, *volumes)
    _survive(demo, *volumes)
    _end(demo, volumes)


def _start(demo: _Demo) -> Callable[[], str]:
    def act() -> str:
        pool = f"demo=image:{demo.root}/pool.img,size={_POOL_SIZE},fs={demo.filesystem}"
        endpoint = f"unix://{demo.root}/csi.sock"
        argv = [sys.executable, "-m", "csi_local", "serve", "--endpoint", endpoint, "--node-id", "demo"]
        demo.process = programs.start([*argv, "--pool", pool, "--run-dir", f"{demo.root}/run"], f"{demo.root}/log")
        demo.client = Client(endpoint)
        if not demo.client.wait_until_ready(_READY_WITHIN_S):
            raise FailedPrecondition(f"the driver did not become ready:\n{_log_tail(demo)}")
        return f"{_POOL_SIZE} {demo.filesystem}, ready"

    return act


def _again_with_btrfs(demo: _Demo) -> str:
    _stop(demo)
    (demo.root / "pool.img").unlink()
    demo.filesystem = "btrfs"
    return _start(demo)()


def _make(demo: _Demo) -> tuple[_Volume, _Volume, _Volume]:
    made: list[_Volume] = []

    def create(name: str, size: int, parameters: dict[str, str], *, block: bool) -> Callable[[], str]:
        def act() -> str:
            volume, delivered = demo.csi.create(name, size, parameters, block=block)
            staging, target = demo.root / f"staging-{name}", demo.root / f"pod-{name}"
            staging.mkdir(exist_ok=True)
            if all(one.id != volume for one in made):
                made.append(_Volume(id=volume, staging=str(staging), target=str(target), block=block))
            return format_bytes(delivered)

        return act

    ext4 = create("data", _FIRST_SIZE, {"csi.storage.k8s.io/fstype": "ext4"}, block=False)
    demo.step("create an ext4 volume", "blocks are reserved: no ENOSPC later inside a pod", ext4)
    demo.step("create it again", "an identical retry finds the same volume", ext4)
    demo.step("create a raw block volume", "for databases that want a disk", create("disk", 256 * MIB, {}, block=True))
    directory = create("files", 256 * MIB, _DIRECTORY, block=False)
    demo.step("create a directory volume", "native speed, and a hard limit all the same", directory)
    for volume in made:
        demo.step(f"stage {volume.id}", _STAGING[volume.id], _act(demo.csi.stage, volume, block=volume.block))
        publish = _publish(demo, volume)
        demo.step(f"publish {volume.id} to a pod's path", "a path of the pod, made by the driver", publish)
    return made[0], made[1], made[2]


_STAGING = {
    "data": "loop device with direct I/O, formatted once, mounted",
    "disk": "loop device with direct I/O",
    "files": "a bind mount",
}


def _act(call: Callable[..., object], volume: _Volume, **more: object) -> Callable[[], None]:
    def act() -> None:
        call(volume.id, volume.staging, **more)

    return act


def _publish(demo: _Demo, volume: _Volume) -> Callable[[], None]:
    return lambda: demo.csi.publish(volume.id, volume.staging, volume.target, block=volume.block)


def _use(demo: _Demo, data: _Volume, disk: _Volume, files: _Volume) -> None:
    demo.step(
        "write 64 MiB to the ext4 volume", "an ordinary filesystem", lambda: pod.write(data.target, "first", 64 * MIB)
    )
    demo.step("df of the ext4 volume", "pods and the kubelet see the volume, not the disk", lambda: _df(demo, data))
    demo.step(
        "read the raw block volume", "new blocks are zeros, never an old owner's data", lambda: pod.zeros(disk.target)
    )
    demo.step("write to the raw block volume", "a real block device", lambda: pod.write_block(disk.target, 0))
    demo.step(
        "write 300 MiB to the 256 MiB directory",
        "the limit is the filesystem's own",
        lambda: pod.overfill(files.target),
    )
    demo.step("df of the directory volume", "usage is the volume's, not the pool's", lambda: _df(demo, files))
    second = _Volume(id=data.id, staging=data.staging, target=f"{data.target}-2", block=False)
    demo.step("publish the ext4 volume to a second pod", "pods of one node share a volume", _publish(demo, second))
    demo.step("read there what the first pod wrote", "the same bytes", lambda: pod.check(second.target, "first"))
    demo.step(
        "unpublish the second pod", "the first is not disturbed", lambda: demo.csi.unpublish(second.id, second.target)
    )


def _go_back(demo: _Demo, data: _Volume) -> None:
    taken: list[str] = []

    def take() -> None:
        taken.append(demo.csi.snapshot(data.id, "before"))

    def restore() -> None:
        demo.csi.create("restored", _FIRST_SIZE, {"csi.storage.k8s.io/fstype": "ext4"}, snapshot=taken[0])
        Path(restored.staging).mkdir()
        demo.csi.stage(restored.id, restored.staging, block=False)
        _publish(demo, restored)()

    def compare() -> str:
        now, then = (pod.checksum(volume.target, "first") for volume in (data, restored))
        pod.see(now != then, "the snapshot has changed with its volume")
        return pod.check(restored.target, "first")

    restored = _Volume(
        id="restored", staging=f"{demo.root}/staging-restored", target=f"{demo.root}/pod-restored", block=False
    )
    again = partial(pod.write, data.target, "first", 64 * MIB)
    demo.step("snapshot the ext4 volume while it is used", "frozen for a moment; its blocks are shared", take)
    demo.step("write other data to that file", "the pod goes on", again)
    demo.step("restore the snapshot into a new volume", "shared blocks again: no copy, whatever the size", restore)
    demo.step("read there what was in the file before", "the snapshot has kept it", compare)
    demo.step("unpublish, unstage, delete restored", "what it shared stays", partial(_remove, demo, restored))
    demo.step("delete the snapshot", "its room comes back", lambda: demo.csi.delete_snapshot(taken[0]))


def _grow(demo: _Demo, data: _Volume, disk: _Volume, files: _Volume) -> None:
    for volume, size in ((disk, 512 * MIB), (files, 512 * MIB), (data, 2 * GIB)):
        demo.step(f"grow {volume.id} while it is used", _GROWING[volume.id], _growing(demo, volume, size))
    demo.step(
        "write 1 GiB more to the ext4 volume",
        "it does not fit in the old size",
        lambda: pod.write(data.target, "second", GIB),
    )
    demo.step(
        "write behind the raw block volume's old end",
        "the device has grown",
        lambda: pod.write_block(disk.target, 300 * MIB),
    )
    demo.step(
        "write 128 MiB more to the directory", "the limit has grown", lambda: pod.write(files.target, "more", 128 * MIB)
    )


_GROWING = {
    "disk": "file, then device, under an open pod",
    "files": "the limit, at once",
    "data": "file, device, filesystem",
}


def _growing(demo: _Demo, volume: _Volume, size: int) -> Callable[[], str]:
    def act() -> str:
        new = format_bytes(demo.csi.grow(volume.id, size))
        try:
            demo.csi.grow_on_node(volume.id, volume.target)
        except CallFailed as error:
            if error.code != "FAILED_PRECONDITION":
                raise
            _restage(demo, volume)
            return f"{new}, when staged again (this machine lets no mounted ext4 grow)"
        return f"{new}, online"

    return act


def _restage(demo: _Demo, volume: _Volume) -> None:
    demo.csi.unpublish(volume.id, volume.target)
    demo.csi.unstage(volume.id, volume.staging)
    demo.csi.stage(volume.id, volume.staging, block=volume.block)
    _publish(demo, volume)()


def _survive(demo: _Demo, data: _Volume, disk: _Volume, files: _Volume) -> None:
    demo.step("kill -9 the driver", "pods do not need it to read and write", lambda: _kill(demo, data))
    demo.step("start it again", "the pool on the disk is the truth", _start(demo))
    for volume in (data, disk, files):
        demo.step(f"publish {volume.id} again", "it knows that it is there", _publish(demo, volume))
    demo.step(
        "read everything back",
        "every checksum is right",
        lambda: pod.check(data.target, "first") + pod.check(data.target, "second"),
    )


def _end(demo: _Demo, volumes: tuple[_Volume, ...]) -> None:
    for volume in volumes:
        demo.step(
            f"unpublish, unstage, delete {volume.id}", "unmounted, detached, gone", partial(_remove, demo, volume)
        )
    demo.step("list the volumes", "none", lambda: f"{demo.csi.count()}")
    demo.step("stop the driver", "it ends in good order on SIGTERM", lambda: _stop(demo))


def _remove(demo: _Demo, volume: _Volume) -> None:
    demo.csi.unpublish(volume.id, volume.target)
    demo.csi.unstage(volume.id, volume.staging)
    demo.csi.delete(volume.id)
    pod.see(not os.path.lexists(volume.target), f"{volume.target} is still there")


# --- ending


def _df(demo: _Demo, volume: _Volume) -> str:
    total, used = demo.csi.usage(volume.id, volume.target)
    return f"{format_bytes(used)} of {format_bytes(total)} used"


def _kill(demo: _Demo, volume: _Volume) -> str:
    if demo.process is not None:
        demo.process.kill()
        demo.process.wait()
    demo.csi.close()
    return pod.check(volume.target, "first")


def _stop(demo: _Demo) -> str:
    if demo.client is not None:
        demo.client.close()
    if demo.process is not None:
        demo.process.terminate()
        status = demo.process.wait(_STOP_WITHIN_S)
        demo.process = None
        pod.see(status == 0, f"the driver ended with status {status}")
    return ""


def _log_tail(demo: _Demo) -> str:
    with suppress(OSError):
        return "".join((demo.root / "log").read_text(encoding="utf-8").splitlines(keepends=True)[-15:])
    return ""


def _clean_up(demo: _Demo) -> None:
    """Take away whatever is there, however far the story came."""
    if demo.process is not None:
        with suppress(ProcessLookupError):
            os.killpg(demo.process.pid, signal.SIGKILL)  # a mkfs of its would go on, and hold its device
        demo.process.wait()
    host, root = demo.host, str(demo.root)
    for mount in reversed(host.mounts(root)):
        with suppress(DriverError):
            host.unmount(mount.point)
    images = {info.identity for path in demo.root.rglob("*.img*") if (info := host.stat(str(path)))}
    for loop in host.all_loops():
        if loop.backing in images:
            with suppress(DriverError):
                host.detach(loop)
    with suppress(DriverError):
        host.remove_tree(root)


def _left_behind(host: LinuxHost, root: str) -> list[str]:
    left = [f"mount {mount.point}" for mount in host.mounts(root)]
    for backing in Path("/sys/block").glob("loop*/loop/backing_file"):
        with suppress(OSError):  # detached this moment
            if backing.read_text(encoding="utf-8").startswith(root):
                left.append(f"loop device {backing.parts[3]}")
    return left + ([root] if os.path.lexists(root) else [])
