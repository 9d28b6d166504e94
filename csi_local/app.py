"""The wiring diagram: config → pools → engine → services → server."""

import json
import logging
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType

from csi_local.config import Config
from csi_local.engine.copies import Copies
from csi_local.engine.execute import CrashPoint, Executor
from csi_local.engine.groups import Groups
from csi_local.engine.locks import KeyedLocks
from csi_local.engine.pools import Pools
from csi_local.engine.publish import Publisher
from csi_local.engine.sizes import Sizes
from csi_local.engine.snapshots import Snapshots
from csi_local.engine.sweeper import Sweeper
from csi_local.engine.volumes import Volumes
from csi_local.host.api import Host
from csi_local.host.cpus import OneCpu
from csi_local.host.linux import LinuxHost
from csi_local.host.syscalls import limit_arenas
from csi_local.rpc.controller import Controller
from csi_local.rpc.group import GroupController
from csi_local.rpc.identity import Identity
from csi_local.rpc.node import Node
from csi_local.rpc.server import Server

_log = logging.getLogger(__name__)
_ARENAS = 2
_COPIES_END_WITHIN_S = 5.0


class Engine:
    """The use cases over a set of pools."""

    def __init__(self, host: Host, config: Config, *, visiting: bool = False) -> None:
        self.pools = Pools(host, config.pools, config.run_dir, visiting=visiting)
        self.sweeper = Sweeper(host, self.pools)
        locks = KeyedLocks()
        executor = Executor(host, crash_point(config.crash_point))
        self.copies = Copies()
        self.volumes = Volumes(host, self.pools, executor, locks, self.sweeper, self.copies)
        self.snapshots = Snapshots(host, self.pools, executor, locks, self.sweeper, self.copies)
        self.groups = Groups(host, self.pools, executor, locks, self.sweeper, self.copies)
        self.sizes = Sizes(host, self.pools, executor, locks)
        self.publisher = Publisher(host, self.pools, executor, locks, self.copies, config.max_volumes)


def serve(config: Config) -> None:
    """``csi-local serve``: everything on one socket, until SIGTERM or SIGINT.

    Raises:
        DriverError: it cannot start; the message says why.
    """
    limit_arenas(_ARENAS)
    log_to_stderr(config.log_level, config.log_format)
    stop = _stop_on_signals()
    together = OneCpu()
    together.start()
    engine = Engine(LinuxHost(), config)
    node = config.node_id
    services = (
        Identity(engine.pools),
        Controller(engine.volumes, engine.sizes, engine.snapshots, node, get_snapshot=config.get_snapshot),
        GroupController(engine.groups),
        Node(engine.publisher, engine.sizes, node, config.max_volumes),
    )
    server = Server(config.endpoint, services)
    try:
        engine.pools.open()
        engine.publisher.take_over()
        server.start()
        engine.sweeper.start()
        for view in engine.pools.views():
            _log.info("pool %s: %s", view.name, view.unavailable or f"{view.abilities.filesystem}, {view.media}")
        _log.info("serving on %s as node %s", config.endpoint, node)
        stop()
        _log.info("stopping")
        server.stop()
        engine.copies.stop(_COPIES_END_WITHIN_S)
        engine.sweeper.stop()
    finally:
        engine.pools.close()
        together.stop()


def _stop_on_signals() -> Callable[[], None]:
    """Let SIGTERM and SIGINT end the process: at once while it starts, and in good order once it waits here."""
    waiting: list[bool] = []
    asked, ask = os.pipe()  # not an Event: its lock may be held by the very code that a signal interrupts

    def handle(_number: int, _frame: FrameType | None) -> None:
        os.write(ask, b".")
        if not waiting:
            raise SystemExit(0)

    def wait() -> None:
        waiting.append(True)
        os.read(asked, 1)

    signal.signal(signal.SIGTERM, handle)
    signal.signal(signal.SIGINT, handle)
    return wait


def crash_point(setting: str) -> CrashPoint:
    """What is called at each crash point: nothing, or what a test set.

    ``trace:FILE`` appends each point's name to the file; ``kill:NAME`` ends the process there, as kill -9 does.

    Raises:
        ValueError: it is neither.
    """
    what, _, argument = setting.partition(":")
    if not setting:
        return lambda _name: None
    if what == "trace":

        def trace(name: str) -> None:
            with Path(argument).open("a", encoding="utf-8") as file:
                file.write(name + "\n")

        return trace
    if what == "kill":
        return lambda name: os.kill(os.getpid(), signal.SIGKILL) if name == argument else None
    raise ValueError(setting)


def log_to_stderr(level: str, style: str) -> None:
    """One line an event, as text or as JSON."""
    handler = logging.StreamHandler(sys.stderr)
    if style == "json":
        handler.setFormatter(_JsonLines())
    else:
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)-7s %(message)s"))
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False  # none of them is shown
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)


class _JsonLines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        """One JSON object."""
        line = {
            "time": self.formatTime(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line)
