"""What Prometheus reads: docs/reference/metrics.md describes each."""

import logging
from collections.abc import Callable, Iterable, Sequence

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
)
from prometheus_client.core import GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.exposition import generate_latest
from prometheus_client.registry import Collector

from csi_local import __version__
from csi_local.engine.survey import Surveyed
from csi_local.model.pool import PoolView
from csi_local.rpc.http import Page

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_POOL = ("pool",)
_VOLUME = ("volume", "pool", "namespace", "persistentvolumeclaim", "persistentvolume")
_LABELS = ("csi.storage.k8s.io/pvc/namespace", "csi.storage.k8s.io/pvc/name", "csi.storage.k8s.io/pv/name")


disable_created_metrics()  # type: ignore[no-untyped-call]  # a second series for each, which nothing reads


class Metrics:
    """Counts what it is told of, and looks at pools and volumes when it is read."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        build = InfoMetricFamily("csi_local_build", "The version that runs.", value={"version": __version__})
        self._registry.register(_Fixed(build))
        self._rpcs = Histogram(
            "csi_local_rpc_duration_seconds",
            "How long CSI calls took, by method and by the name of the gRPC code they ended with.",
            ("method", "code"),
            buckets=_SECONDS,
            registry=self._registry,
        )
        self._operations = Histogram(
            "csi_local_operation_duration_seconds",
            "How long what custom resources asked of this node took, by operation and by how it ended.",
            ("operation", "result"),
            buckets=_SECONDS,
            registry=self._registry,
        )
        self._messages = Counter(
            "csi_local_log_messages",
            "Warnings and errors in the log.",
            ("level",),
            registry=self._registry,
        )
        for level in ("warning", "error"):
            self._messages.labels(level)

    def rpc(self, method: str, code: str, seconds: float) -> None:
        """A CSI call has ended."""
        self._rpcs.labels(method, code).observe(seconds)

    def operation(self, operation: str, result: str, seconds: float) -> None:
        """What a custom resource asked for has been done, or was refused."""
        self._operations.labels(operation, result).observe(seconds)

    def log_handler(self) -> logging.Handler:
        """What counts the messages of the log."""
        return _Counting(self._messages)

    def pools(self, views: Callable[[], Iterable[PoolView]]) -> None:
        """Show these pools, asked for each time."""
        self._registry.register(_Pools(views))

    def volumes(self, found: Callable[[], Sequence[Surveyed]]) -> None:
        """Show these volumes, as they were seen last."""
        self._registry.register(_Volumes(found))

    def page(self) -> Page:
        """All of it, as Prometheus reads it."""
        return Page(kind=CONTENT_TYPE_LATEST, content=generate_latest(self._registry))


class _Counting(logging.Handler):
    def __init__(self, counter: Counter) -> None:
        super().__init__(logging.WARNING)
        self._counter = counter

    def emit(self, record: logging.LogRecord) -> None:
        """One more."""
        self._counter.labels("error" if record.levelno >= logging.ERROR else "warning").inc()


class _Fixed(Collector):
    def __init__(self, metric: Metric) -> None:
        self._metric = metric

    def collect(self) -> Iterable[Metric]:
        """Always the same."""
        return (self._metric,)


class _Pools(Collector):
    def __init__(self, views: Callable[[], Iterable[PoolView]]) -> None:
        self._views = views

    def describe(self) -> Iterable[Metric]:
        """Nothing: else the disks would be asked while the driver starts."""
        return ()

    def collect(self) -> Iterable[Metric]:
        """The pools as they are now."""
        up = GaugeMetricFamily("csi_local_pool_ready", "Whether the pool can be used.", labels=_POOL)
        info = InfoMetricFamily("csi_local_pool", "What the pool is and can do.", labels=_POOL)
        amounts = {
            "total": GaugeMetricFamily("csi_local_pool_size_bytes", "The pool's filesystem.", labels=_POOL),
            "room": GaugeMetricFamily(
                "csi_local_pool_room_bytes", "What a new thick or directory volume could get.", labels=_POOL
            ),
            "thin_room": GaugeMetricFamily(
                "csi_local_pool_thin_room_bytes", "What a new thin volume could be promised.", labels=_POOL
            ),
            "promised": GaugeMetricFamily(
                "csi_local_pool_promised_bytes", "The sizes of the pool's volumes, added up.", labels=_POOL
            ),
            "volumes": GaugeMetricFamily("csi_local_pool_volumes", "How many volumes the pool has.", labels=_POOL),
        }
        for view in self._views():
            up.add_metric([view.name], 0 if view.unavailable else 1)
            info.add_metric([view.name], _described(view))
            for name, family in amounts.items():
                if view.total:  # else nobody knows
                    family.add_metric([view.name], getattr(view, name))
        return (up, info, *amounts.values())


def _described(view: PoolView) -> dict[str, str]:
    can = view.abilities
    flags = ("reflink", "subvolumes", "discard", "direct_io", "preallocate")
    return {
        "kind": str(view.kind),
        "media": str(view.media),
        "filesystem": can.filesystem,
        "quota": str(can.quota),
        **{name: "yes" if getattr(can, name) else "no" for name in flags},
    }


class _Volumes(Collector):
    def __init__(self, found: Callable[[], Sequence[Surveyed]]) -> None:
        self._found = found

    def describe(self) -> Iterable[Metric]:
        """Nothing, likewise."""
        return ()

    def collect(self) -> Iterable[Metric]:
        """The volumes as they were seen last."""
        size = GaugeMetricFamily("csi_local_volume_size_bytes", "What the volume was given.", labels=_VOLUME)
        used = GaugeMetricFamily("csi_local_volume_used_bytes", "What the volume takes of its pool.", labels=_VOLUME)
        healthy = GaugeMetricFamily("csi_local_volume_healthy", "Whether nothing is wrong with it.", labels=_VOLUME)
        for one in self._found():
            view, record = one.view, one.view.record
            claim = [record.labels.get(label, "") if record else "" for label in _LABELS]
            labels = [view.id, view.pool, *claim]
            healthy.add_metric(labels, 0 if view.problem else 1)
            if record is not None:
                size.add_metric(labels, record.size)
            if one.used is not None:
                used.add_metric(labels, one.used)
        return (size, used, healthy)
