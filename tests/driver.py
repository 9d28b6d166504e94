"""The driver as its users meet it: a process and a socket. Every black-box tier starts it through `Driver`.

    with serving("pool=image:{root}/pool.img,size=6Gi") as driver:
        volume = driver.create("data", 64 * MIB, fs="ext4")
        target = driver.attach(volume)

`release` undoes everything through the driver, `leftovers` asks the kernel and the pools what is still there,
and `destroy` removes even that. Nothing here imports the driver's code but its generated messages.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests import observe
from tests.client import Client, Volume

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from types import TracebackType
    from typing import Self

PROGRAM = Path(sys.executable).parent / "csi-local"
READY_SECONDS = 30.0
STOP_SECONDS = 10.0
SWEEP_SECONDS = 5.0
"""What the driver removes in the background must be gone after this."""


class Driver(Client):
    """One `csi-local serve` process, with everything that belongs to it beneath `root`.

    `{root}` in a pool or an argument stands for that folder. A pool may be given without a name. What is put
    `before` the command line runs it: a shell, strace, a namespace.
    """

    def __init__(
        self,
        root: Path,
        *pools: str,
        node: str = "node-1",
        args: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
        before: Sequence[str] = (),
    ) -> None:
        super().__init__(root)
        self.before = list(before)
        self.node_id = node
        self.socket = root / "csi" / "csi.sock"
        self.log = root / "driver.log"
        self.pools = [_named(pool.format(root=root), number) for number, pool in enumerate(pools)]
        self.args = [arg.format(root=root) for arg in args]
        self.env = {"PATH": os.environ["PATH"], **{k: v.format(root=root) for k, v in (env or {}).items()}}
        self._process: subprocess.Popen[bytes] | None = None
        for made in (self.socket.parent, *self._path_pools()):
            made.mkdir(parents=True, exist_ok=True)

    def _path_pools(self) -> list[Path]:
        return [self._place(pool) for pool in self.pools if "=path:/" in pool]

    # The process

    @property
    def argv(self) -> list[str]:
        """The command line, as a user would type it."""
        pools = [word for pool in self.pools for word in ("--pool", pool)]
        where = [] if "CSI_ENDPOINT" in self.env else ["--endpoint", f"unix://{self.socket}"]
        who = ["--node-id", self.node_id, "--run-dir", str(self.root / "run")]
        return [*self.before, str(PROGRAM), "serve", *where, *who, *pools, *self.args]

    def start(self) -> Self:
        """Start the process and return when Probe says that it is ready."""
        process = self.launch()
        deadline = time.monotonic() + READY_SECONDS
        while not self.is_ready():
            if process.poll() is not None:
                raise AssertionError(f"the driver exited with {process.returncode}:\n{self.last_words()}")
            if time.monotonic() > deadline:
                raise AssertionError(f"not ready after {READY_SECONDS:g} s:\n{self.last_words()}")
            time.sleep(0.005)
        return self

    def launch(self) -> subprocess.Popen[bytes]:
        """Start the process without waiting for anything."""
        if not PROGRAM.exists():
            raise AssertionError(f"{PROGRAM} is missing; install the project beside this Python: make setup")
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self.argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=self.env, cwd=self.root
            )
        self.connect(self.socket)
        return self._process

    def refuse(self) -> str:
        """Start the process, demand that it soon gives up with an error for humans, and return its words."""
        process = self.launch()
        try:
            code = process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired as error:
            self.kill()
            raise AssertionError(f"it runs, but should have refused:\n{self.last_words()}") from error
        self.disconnect()
        words = self.output()
        if code <= 0 or not words.strip() or "Traceback" in words:
            raise AssertionError(f"exit code {code} and no clear message:\n{words}")
        return words

    def stop(self) -> None:
        """SIGTERM, and demand a clean end within ten seconds."""
        self.process.send_signal(signal.SIGTERM)
        try:
            code = self.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired as error:
            self.kill()
            message = f"still running {STOP_SECONDS:g} s after SIGTERM:\n{self.last_words()}"
            raise AssertionError(message) from error
        self.disconnect()
        if code != 0:
            raise AssertionError(f"exit code {code} after SIGTERM:\n{self.last_words()}")

    def kill(self) -> None:
        """SIGKILL: no goodbye."""
        self.process.kill()
        self.process.wait()
        self.disconnect()

    def restart(self) -> None:
        """Stop it if it runs, and start it again on the same pools."""
        if self.running:
            self.stop()
        self.start()

    @property
    def process(self) -> subprocess.Popen[bytes]:
        """The process that was started last."""
        if self._process is None:
            raise AssertionError("the driver was never started")
        return self._process

    @property
    def running(self) -> bool:
        """Whether the process is alive."""
        return self._process is not None and self._process.poll() is None

    def output(self) -> str:
        """Return all that the driver has written to stdout and stderr."""
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def last_words(self) -> str:
        """Return the end of that, for the message of a failed test."""
        return "\n".join(self.output().splitlines()[-20:])

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.destroy()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if self.running:
                self.stop()
        finally:
            self.destroy()

    # What is on disk

    @staticmethod
    def _place(pool: str) -> Path:
        return Path(pool.partition(":")[2].partition(",")[0])

    def pool_roots(self) -> list[Path]:
        """Return the folder of each pool: the one given, or where its image is mounted."""
        attached, standing = observe.loops(), observe.mounts()
        roots = []
        for pool in self.pools:
            devices = self._devices(pool, attached)
            places = [mount.target for mount in standing if mount.source in devices]
            if "=path:" in pool:
                places = [self._place(pool)]
            if not places:
                raise AssertionError(f"the pool {pool} is not mounted")
            roots.append(places[0])  # a volume of it that is bind-mounted somewhere comes later
        return roots

    def _devices(self, pool: str, attached: Mapping[str, str]) -> set[str]:
        """Return the devices that a pool's image or disk is seen as."""
        place = str(self._place(pool))
        return {place} | {device for device, file in attached.items() if file == place}

    def _own(self) -> observe.Belongings:
        """Return what belongs to the pools themselves, and so stays: their loop devices and mounts."""
        attached = observe.loops()
        devices = {device for pool in self.pools for device in self._devices(pool, attached)}
        standing = [mount for mount in observe.mounts() if mount.source in devices and mount.root == "/"]
        return observe.Belongings(
            mounts=tuple(standing), loops={device: file for device, file in attached.items() if device in devices}
        )

    def volume_dir(self, volume: Volume) -> Path:
        """Return the folder that is this volume, in whichever pool it was put."""
        found = [path for root in self.pool_roots() if (path := root / "volumes" / volume.id).exists()]
        if len(found) != 1:
            raise AssertionError(f"volume {volume.id} is in {len(found)} pools")
        return found[0]

    def backing_file(self, volume: Volume) -> Path:
        """Return the image file of a loopfile volume."""
        return self.volume_dir(volume) / "disk.img"

    def standing(self) -> list[str]:
        """Name the mounts and loop devices that are there beyond those of the pools themselves."""
        own = set(self._own().names())
        return [name for name in observe.belongings(self.root).names() if name not in own]

    # Leaving nothing behind

    def leftovers(self) -> list[str]:
        """Name the mounts, loop devices and files that are there beyond the pools themselves."""
        return self.standing() + [f"target {path}" for path in self.targets_left()] + self._remains()

    def _remains(self) -> list[str]:
        """Name what is in the pools beyond the pools themselves; what is being swept is given time to go."""
        deadline = time.monotonic() + SWEEP_SECONDS
        while remains := [f"file {path}" for root in self.pool_roots() for path in _contents(root)]:
            if time.monotonic() > deadline:
                break
            time.sleep(0.01)
        return remains

    def forget(self) -> None:
        """Take down and remove what a failed test left, without the driver's help."""
        super().forget()
        observe.take_down(self.root, keep=self._own())
        for path in [path for root in self.pool_roots() for path in _contents(root)]:
            shutil.rmtree(path, ignore_errors=True)
        shutil.rmtree(self.root / "targets", ignore_errors=True)
        shutil.rmtree(self.root / "staging", ignore_errors=True)

    def destroy(self) -> None:
        """Kill the process, take down all that stands on `root`, and remove it."""
        if self.running:
            self.kill()
        self.disconnect()
        observe.take_down(self.root)
        shutil.rmtree(self.root)


@contextmanager
def serving(*pools: str, **options: Any) -> Iterator[Driver]:  # noqa: ANN401
    """Run a driver in a new folder, with a short path because a socket's must fit into 108 bytes."""
    with Driver(Path(tempfile.mkdtemp(prefix="csi-", dir="/tmp")), *pools, **options) as driver:
        yield driver


def _named(pool: str, number: int) -> str:
    """Give a pool a name if it has none."""
    return f"pool-{number}={pool}" if pool.startswith(("path:", "image:", "device:")) else pool


def _contents(root: Path) -> Iterator[Path]:
    """Yield volumes, snapshots, and what is being made or removed, as the layout of a pool has them."""
    for pattern in ("volumes/*", "snapshots/*", "groups/*", ".new-*", ".trash-*"):
        yield from root.glob(pattern)
