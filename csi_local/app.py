"""The wiring diagram: config → pools → engine → services → server."""

import json
import logging
import os
import resource
import signal
import sys
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from csi_local.config import Config
from csi_local.engine.copies import Copies
from csi_local.engine.crypt import Layers
from csi_local.engine.ephemeral import Ephemeral
from csi_local.engine.execute import CrashPoint, Executor
from csi_local.engine.groups import Groups
from csi_local.engine.keys import Keys
from csi_local.engine.locks import KeyedLocks
from csi_local.engine.pools import Pools
from csi_local.engine.publish import Publisher
from csi_local.engine.rotation import Rotator
from csi_local.engine.sizes import Sizes
from csi_local.engine.snapshots import Snapshots
from csi_local.engine.survey import Survey
from csi_local.engine.sweeper import Sweeper
from csi_local.engine.volumes import Volumes
from csi_local.host.api import Host
from csi_local.host.cpus import OneCpu
from csi_local.host.linux import LinuxHost
from csi_local.host.syscalls import limit_arenas
from csi_local.rpc.boundary import unobserved
from csi_local.rpc.controller import Controller
from csi_local.rpc.group import GroupController
from csi_local.rpc.identity import Identity
from csi_local.rpc.node import Node
from csi_local.rpc.registration import Registration
from csi_local.rpc.server import Server

if TYPE_CHECKING:
    from csi_local.rpc.http import Check
    from csi_local.rpc.metrics import Metrics

_log = logging.getLogger(__name__)
_ARENAS = 2
_FILES = 1 << 16
"""Open at once, where the node allows so many: copies of deep trees hold two for each level."""
_COPIES_END_WITHIN_S = 1.0
_THAWED_WITHIN_S = 10.0
"""First of all: pods wait while a filesystem is frozen, and without the driver until there is another."""
_CONTROLLER_WORKERS = 160
"""Most of them wait for a node's answer; csi-provisioner asks for 100 volumes at once."""


class Engine:
    """The use cases over a set of pools."""

    def __init__(self, host: Host, config: Config, *, visiting: bool = False) -> None:
        self.pools = Pools(host, config.pools, config.run_dir, visiting=visiting)
        self.sweeper = Sweeper(host, self.pools)
        locks = KeyedLocks()
        executor = Executor(host, crash_point(config.crash_point))
        self.stillness = executor.stillness
        self.copies = Copies()
        self.volumes = Volumes(host, self.pools, executor, locks, self.sweeper, self.copies, node=config.node_id)
        self.snapshots = Snapshots(host, self.pools, executor, locks, self.sweeper, self.copies)
        self.groups = Groups(host, self.pools, executor, locks, self.sweeper, self.copies)
        keys = Keys(host, config.keys)
        self.rotator = Rotator(host, self.pools, executor, locks, keys, self.copies)
        layers = Layers(host, executor, keys, self.rotator)
        self.sizes = Sizes(host, self.pools, executor, locks, layers)
        self.publisher = Publisher(host, self.pools, executor, locks, self.copies, layers, config.max_volumes)
        self.ephemeral = Ephemeral(host, self.pools, locks, self.volumes, self.publisher)
        self.sweeper.every_round(self.ephemeral.sweep)


def serve(config: Config) -> None:
    """``csi-local serve``: everything on one socket, until SIGTERM or SIGINT.

    Raises:
        DriverError: it cannot start; the message says why.
    """
    stop = _begin(config)
    with ExitStack() as stack:
        engine = _engine(config, stack)
        metrics = _metrics(config, engine)
        services = (
            Identity(engine.pools, groups=True),
            Controller(engine.volumes, engine.sizes, engine.snapshots, get_snapshot=config.get_snapshot),
            GroupController(engine.groups),
            Node(engine.publisher, engine.ephemeral, engine.sizes, config.node_id, config.max_volumes),
        )
        engine.pools.open()
        server = Server(config.endpoint, services, metrics.rpc if metrics else unobserved)
        _start(engine, server, stack)
        if metrics is not None:
            survey = Survey(engine.volumes, engine.pools)
            metrics.volumes(lambda: survey.found)
            survey.start()
            stack.callback(survey.stop)
            ready = {"pools": engine.pools.missing, "survey": lambda: survey.problem}
            _serve_pages(config, metrics, {"socket": lambda: server.problem}, ready, stack)
        stack.callback(engine.stillness.stop, _THAWED_WITHIN_S)
        _log.info("serving on %s as node %s", config.endpoint, config.node_id)
        stop()
        _log.info("stopping")


def node(config: Config) -> None:
    """``csi-local node``: this node's kubelet, and what the controller asks of this node, until SIGTERM or SIGINT.

    Raises:
        DriverError: it cannot start; the message says why. That the Kubernetes API is not there is no reason.
    """
    from csi_local.cluster import ClusterPart, SomePool  # noqa: PLC0415 (memory, where there is no cluster)

    stop = _begin(config)
    with ExitStack() as stack:
        engine = _engine(config, stack)
        metrics = _metrics(config, engine)
        services = (
            Identity(SomePool(engine.pools)),
            Node(engine.publisher, engine.ephemeral, engine.sizes, config.node_id, config.max_volumes),
        )
        engine.pools.open(patient=True)
        server = Server(config.endpoint, services, metrics.rpc if metrics else unobserved)
        _start(engine, server, stack)
        alive: dict[str, Check] = {"socket": lambda: server.problem}
        ready: dict[str, Check] = {"pools": lambda: "" if engine.pools.all() else engine.pools.missing()}
        if config.registration:
            registration = Registration(config.kubelet_dir, config.endpoint, server.renew)
            registration.start()
            stack.callback(registration.stop)
            alive = {"registration": lambda: registration.died}  # which looks after the socket too
            ready["registration"] = lambda: registration.problem
        told = metrics.operation if metrics else unobserved
        point = crash_point(config.crash_point)
        part = ClusterPart(config, engine, told, point)
        part.start()
        stack.callback(part.stop)
        if metrics is not None:
            metrics.volumes(lambda: part.survey.found)
        _serve_pages(config, metrics, {**alive, **part.alive}, {**ready, **part.looking}, stack)
        stack.callback(engine.stillness.stop, _THAWED_WITHIN_S)
        _log.info("serving on %s as node %s", config.endpoint, config.node_id)
        stop()
        _log.info("stopping")


def controller(config: Config) -> None:
    """``csi-local controller``: volumes of all nodes for the sidecars, until SIGTERM or SIGINT. No disk is touched.

    The socket appears when all caches are filled: an answer before that would be wrong.

    Raises:
        DriverError: it cannot start; the message says why. That the Kubernetes API is not there is no reason.
    """
    from csi_local.cluster import ClusterView  # noqa: PLC0415 (likewise)

    stop = _begin(config)
    with ExitStack() as stack:
        _together(stack)
        view = ClusterView(config)
        view.start()
        stack.callback(view.stop)
        metrics = _metrics(config)
        _serve_pages(config, metrics, view.alive, view.synced, stack)
        services = (
            Identity(view, groups=True),
            Controller(view.volumes, view.volumes, view.snapshots, get_snapshot=config.get_snapshot),
            GroupController(view.groups),
        )
        observe = metrics.rpc if metrics else unobserved
        server = Server(config.endpoint, services, observe, workers=_CONTROLLER_WORKERS)
        view.wait()
        server.start()
        stack.callback(server.stop)
        _log.info("serving on %s for the nodes of %s", config.endpoint, view.server)
        stop()
        _log.info("stopping")


def _begin(config: Config) -> Callable[[], None]:
    """What every program does first; what comes back waits for a signal."""
    limit_arenas(_ARENAS)
    _allow_files(_FILES)
    log_to_stderr(config.log_level, config.log_format)
    return _stop_on_signals()


def _allow_files(most: int) -> None:
    """Raise the soft limit of open files, which is 1,024 by habit, since select(2) takes no more (getrlimit(2))."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = most if hard == resource.RLIM_INFINITY else min(most, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _engine(config: Config, stack: ExitStack) -> Engine:
    """The engine on this machine, with all of the process on one processor."""
    _together(stack)
    engine = Engine(LinuxHost(), config)
    stack.callback(engine.pools.leave)
    stack.callback(engine.sweeper.stop)
    stack.callback(engine.copies.stop, _COPIES_END_WITHIN_S)
    return engine


def _together(stack: ExitStack) -> None:
    """All of the process on one processor (docs/decisions/0005)."""
    together = OneCpu()
    together.start()
    stack.callback(together.stop)


def _start(engine: Engine, server: Server, stack: ExitStack) -> None:
    """Serve what the open pools have."""
    engine.publisher.take_over()
    server.start()
    stack.callback(server.stop)
    engine.sweeper.start()
    for view in engine.pools.views():
        _log.info("pool %s: %s", view.name, view.unavailable or f"{view.abilities.filesystem}, {view.media}")


def _metrics(config: Config, engine: Engine | None = None) -> "Metrics | None":
    """What counts, where somebody may ask."""
    if config.http_address is None:
        return None
    from csi_local.rpc.metrics import Metrics  # noqa: PLC0415 (memory, where nobody asks)

    metrics = Metrics()
    if engine is not None:
        metrics.pools(engine.pools.views)
    logging.getLogger().addHandler(metrics.log_handler())
    return metrics


def _serve_pages(
    config: Config,
    metrics: "Metrics | None",
    alive: "Mapping[str, Check]",
    ready: "Mapping[str, Check]",
    stack: ExitStack,
) -> None:
    """/healthz, /readyz and /metrics, where an address is given."""
    if config.http_address is None or metrics is None:
        return
    from csi_local.rpc.http import HttpServer, Pages  # noqa: PLC0415 (likewise)

    http = HttpServer(config.http_address, Pages(alive=alive, ready=ready, metrics=metrics.page))
    http.start()
    stack.callback(http.stop)
    _log.info("http on port %d", http.port)


def _stop_on_signals() -> Callable[[], None]:
    """Let SIGTERM and SIGINT end the process: at once while it starts, and in good order once it waits here.

    The byte that wakes the main thread is written when the kernel delivers the signal, to whichever thread, and not by
    Python's handler: that runs in the main thread alone, which may be about to wait for just this.
    """
    waiting: list[bool] = []
    asked, ask = os.pipe()  # not an Event: its lock may be held by the very code that a signal interrupts
    os.set_blocking(ask, False)
    signal.set_wakeup_fd(ask, warn_on_full_buffer=False)

    def handle(_number: int, _frame: FrameType | None) -> None:
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
