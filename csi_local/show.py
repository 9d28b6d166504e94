"""``csi-local pools``, ``volumes`` and ``explain``: looking at the pools without disturbing a driver that runs."""

import json
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime

from tabulate import tabulate

from csi_local.app import Engine
from csi_local.config import Config
from csi_local.engine.api import SnapshotView, VolumeView
from csi_local.engine.observe import Observer
from csi_local.engine.pools import Pools
from csi_local.host.linux import LinuxHost
from csi_local.model.errors import DriverError
from csi_local.model.pool import PoolSpec, PoolView
from csi_local.model.quantity import format_bytes
from csi_local.model.volume import BackendKind
from csi_local.plan.request import VolumeRequest

Row = Mapping[str, object]


@contextmanager
def visiting(config: Config) -> Iterator[Engine]:
    """The engine over the pools as they are, nothing made or tidied up."""
    logging.getLogger("csi_local").addHandler(logging.NullHandler())  # what is wrong stands in the rows
    engine = Engine(LinuxHost(), config, visiting=True)
    try:
        engine.pools.retry()
        yield engine
    finally:
        engine.pools.close()


def pools(config: Config, output: str) -> int:
    """Show each pool: its room and what it can do. Returns 1 where one cannot be used."""
    with visiting(config) as engine:
        engine.pools.sample()
        rows = [_pool_row(spec, view) for spec, view in zip(config.pools, engine.pools.views(), strict=True)]
    show(rows, output, empty="no pools")
    return 1 if any(row["problem"] for row in rows) else 0


def _pool_row(spec: PoolSpec, view: PoolView) -> Row:
    can = view.abilities
    return {
        "pool": view.name,
        "kind": str(view.kind),
        "target": spec.target,
        "filesystem": can.filesystem,
        "media": str(view.media),
        "total": view.total,
        "room": view.room,
        "thinRoom": view.thin_room,
        "reflink": can.reflink,
        "quota": str(can.quota),
        "subvolumes": can.subvolumes,
        "discard": can.discard,
        "directIO": can.direct_io,
        "problem": view.unavailable,
    }


def volumes(config: Config, output: str) -> int:
    """Show each volume: what it is, how full, and where it is mounted. Returns 1 where one has a problem."""
    with visiting(config) as engine:
        observer = Observer(LinuxHost())
        views, _ = engine.volumes.list("", 0, ephemeral=True)
        rows = [_volume_row(engine.pools, observer, view) for view in views]
    show(rows, output, empty="no volumes")
    return 1 if any(row["problem"] for row in rows) else 0


def _volume_row(pools_: Pools, observer: Observer, view: VolumeView) -> Row:
    pool = pools_.get(view.pool)
    record = view.record
    used: object = None
    if record is not None:
        try:
            used = pool.used_by(record)
        except DriverError:
            used = None
    return {
        "volume": view.id,
        "pool": view.pool,
        "backend": str(record.backend) if record else "",
        "as": _kind(view),
        "size": record.size if record else None,
        "used": used,
        "allocation": str(record.allocation) if record and record.backend is BackendKind.LOOPFILE else "",
        "claim": _claim(view),
        "pod": _named(view, "csi.storage.k8s.io/pod."),
        "mounted": list(observer.mount_points(pool.layout, view.id, observer.stack(pool.layout, view.id))),
        "adopted": record.adopted if record else "",
        "problem": view.problem,
    }


def _kind(view: VolumeView) -> str:
    record = view.record
    if record is None:
        return ""
    if record.block:
        return "block"
    return str(record.filesystem or "directory")


def _claim(view: VolumeView) -> str:
    return _named(view, "csi.storage.k8s.io/pvc/")


def _named(view: VolumeView, prefix: str) -> str:
    """The object of Kubernetes that a volume belongs to, as its labels have it."""
    labels = view.record.labels if view.record else {}
    namespace, name = (labels.get(f"{prefix}{part}", "") for part in ("namespace", "name"))
    return f"{namespace}/{name}" if name else ""


def snapshots(config: Config, output: str) -> int:
    """Show each snapshot: of what volume, when, and what it holds. Returns 1 where one has a problem."""
    with visiting(config) as engine:
        views, _ = engine.snapshots.list("", 0)
        rows = [_snapshot_row(view) for view in views]
    show(rows, output, empty="no snapshots")
    return 1 if any(row["problem"] for row in rows) else 0


def _snapshot_row(view: SnapshotView) -> Row:
    record = view.record
    taken = datetime.fromtimestamp(record.created / 1e9, UTC).isoformat(timespec="seconds") if record else ""
    return {
        "snapshot": view.id,
        "pool": view.pool,
        "volume": record.source if record else "",
        "group": record.group if record else "",
        "backend": str(record.volume.backend) if record else "",
        "size": record.volume.size if record else None,
        "held": record.held or None if record else None,
        "taken": taken,
        "problem": view.problem,
    }


def explain(config: Config, request: VolumeRequest, output: str) -> int:
    """Show for a request why each pool is taken or passed over. Returns 1 where none fits."""
    with visiting(config) as engine:
        placement = engine.volumes.explain(request)
    rows: list[Row] = [
        {"pool": one.pool, "taken": one.taken, "fits": one.fits, "reason": one.reason} for one in placement.verdicts
    ]
    show(rows, output, empty="no pools")
    return 0 if placement.pool else 1


_SIZES = frozenset({"total", "room", "thinRoom", "size", "used", "held"})


def show(rows: Sequence[Row], output: str, *, empty: str) -> None:
    """Print rows as JSON, with plain numbers of bytes, or as a table for people."""
    if output == "json":
        print(json.dumps(rows, indent=2))
    elif not rows:
        print(empty)
    else:
        columns = [name for name in rows[0] if any(row[name] not in ("", None, []) for row in rows)]
        cells = [[_cell(name, row[name]) for name in columns] for row in rows]
        headers = [re.sub("(?<=[a-z])(?=[A-Z])", " ", name).upper() for name in columns]
        print(tabulate(cells, headers=headers, tablefmt="plain", disable_numparse=True))


def _cell(name: str, value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return "\n".join(map(str, value)) or "-"
    if name in _SIZES and isinstance(value, int):
        return format_bytes(value)
    return str(value) or "-"
