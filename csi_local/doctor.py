"""``csi-local doctor``: what this node has and lacks, with the fix for each lack."""

from csi_local.config import Config
from csi_local.host.features import features
from csi_local.model.pool import PoolView, QuotaSupport
from csi_local.show import Row, show, visiting


def doctor(config: Config | None, output: str) -> int:
    """Show each check. Returns 1 where something is missing that the driver cannot do without."""
    rows = [_row(one.name, "ok" if one.there else _bad(needed=one.needed), one.found, one.fix) for one in features()]
    if config is not None:
        with visiting(config) as engine:
            for view in engine.pools.views():
                rows += _pool_rows(view)
            views, _ = engine.volumes.list("", 0)
            rows += [_row(f"volume {one.id}", "bad", one.problem, "see the message") for one in views if one.problem]
    show(rows, output, empty="nothing to check")
    return 1 if any(row["state"] == "bad" for row in rows) else 0


def _bad(*, needed: bool) -> str:
    return "bad" if needed else "lacks"


def _row(check: str, state: str, found: str, fix: str) -> Row:
    return {"check": check, "state": state, "found": found, "fix": "" if state == "ok" else fix}


def _pool_rows(view: PoolView) -> list[Row]:
    name = f"pool {view.name}"
    if view.unavailable:
        return [_row(name, "bad", view.unavailable, "see the message")]
    can = view.abilities
    checks = [
        ("reserves blocks", can.preallocate, "thick volumes need it; use allocation: thin, or XFS, ext4 or btrfs"),
        ("direct I/O", can.direct_io, "loop devices need it; use a filesystem on a real disk"),
        ("limits directories", can.quota is not QuotaSupport.NONE, can.quota_reason + "; or use backend: loopfile"),
        ("clones files at once", can.reflink, "quick snapshots need it: XFS (reflink=1) or btrfs"),
        ("gives blocks back", can.discard, "thin volumes do not shrink on it"),
    ]
    found = [_row(f"{name} {what}", "ok" if there else "lacks", can.filesystem, fix) for what, there, fix in checks]
    return [_row(name, "ok", f"{can.filesystem}, {view.media}", ""), *found]
