"""Whether the snapshots in the pools are whole: from what was seen to findings, as in ``plan.check``.

Nothing is ever mended here but owners and modes: a snapshot may be the only copy of somebody's data.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace

from csi_local.model.observed import FileKind
from csi_local.model.volume import BackendKind
from csi_local.plan.check import owned, say, unfinished, unknown
from csi_local.plan.findings import Finding, GroupSeen, PoolSeen, Seen, Severity, SnapshotSeen
from csi_local.store.layout import DATA, GROUP_FILE, IMAGE, SNAPSHOT_FILE, UNFINISHED


def judge(pools: Sequence[PoolSeen]) -> Iterator[Finding]:
    """Everything about snapshots and groups that is not as it should be."""
    for pool in pools:
        for snapshot in pool.snapshots:
            yield from _snapshot(pool, snapshot)
        for group in pool.groups:
            yield from _group(pool, group)


def _snapshot(pool: PoolSeen, snapshot: SnapshotSeen) -> Iterator[Finding]:
    yield from owned(pool, snapshot.files[0])
    record = snapshot.record
    names = {BackendKind.DIRECTORY: (DATA,), BackendKind.LOOPFILE: (IMAGE,)}
    expected = names[record.volume.backend] if record else (DATA, IMAGE)
    for seen in snapshot.files[1:]:
        yield from _file(pool, seen, SNAPSHOT_FILE, expected)
    top = snapshot.files[0].path
    if record is None:
        found = f"{snapshot.damage}; no volume can be made from the snapshot, and it is left as it is"
        fix = "restore snapshot.json from a backup, or save the data and move the directory out of the pool"
        yield say(pool, Severity.ERROR, f"{top}/{SNAPSHOT_FILE}", found, fix)
        return
    for finding in _bytes(pool, snapshot, expected[0]):
        yield replace(finding, volume=record.source)


def _bytes(pool: PoolSeen, snapshot: SnapshotSeen, name: str) -> Iterator[Finding]:
    assert snapshot.record is not None  # noqa: S101 (checked by the caller; for the type checker)
    path, seen, size = f"{snapshot.files[0].path}/{name}", snapshot.file(name), snapshot.record.volume.image_size
    kind = FileKind.DIRECTORY if name == DATA else FileKind.FILE
    if seen is None or seen.info.kind is not kind:
        yield say(pool, Severity.ERROR, path, "the snapshot's data is gone", "delete the snapshot, or restore its data")
    elif name == IMAGE and seen.info.size < size:
        found = f"the image was cut short: it has {seen.info.size} bytes instead of {size}"
        yield say(pool, Severity.ERROR, path, found, "restore it from a backup; it is left as it is")


def _group(pool: PoolSeen, group: GroupSeen) -> Iterator[Finding]:
    top = group.files[0]
    yield from owned(pool, top)
    there = {snapshot.id for snapshot in pool.snapshots if snapshot.group == group.id}
    for seen in group.files[1:]:
        if seen.name not in there:
            yield from _file(pool, seen, GROUP_FILE, ())
    if group.members is None:
        fix = "restore group.json from a backup; its snapshots can be used without it, and not be deleted"
        yield say(pool, Severity.ERROR, f"{top.path}/{GROUP_FILE}", group.damage, fix)
    elif missing := sorted(set(group.members) - there):
        found = f"the group has lost {', '.join(missing)}"
        yield say(pool, Severity.ERROR, top.path, found, "restore it from a backup, or delete the group")


def _file(pool: PoolSeen, seen: Seen, record: str, expected: tuple[str, ...]) -> Iterator[Finding]:
    if seen.name == record + UNFINISHED:
        yield unfinished(pool, seen)
    elif seen.name not in (record, *expected):
        yield unknown(pool, seen, Severity.WARNING)
    elif seen.name != DATA:
        yield from owned(pool, seen)
