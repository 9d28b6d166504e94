"""Whether what is in the pools fits together: from what was seen to findings, and to what may safely be mended.

Nothing here touches anything. A finding with operations is one that ``csi-local doctor --repair`` mends; whatever
might be the only copy of somebody's data, or of what is known about it, never has any.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from csi_local.backends import directory, luks
from csi_local.model.observed import FileKind
from csi_local.model.operations import Detach, Operation, RemoveTree, ResizeImage, RestoreHeader
from csi_local.model.pool import Abilities, PoolKind
from csi_local.model.quantity import format_bytes
from csi_local.model.volume import BackendKind, FormatState, QuotaMode, VolumeRecord
from csi_local.plan.findings import Finding, LimitSeen, LoopSeen, PoolSeen, Seen, Severity, TakeOver, VolumeSeen
from csi_local.plan.staging import lost
from csi_local.store.layout import DATA, HEADER_COPY, IMAGE, NEW, POOL_FILE, RECORD_FILE, TRASH, UNFINISHED, is_leftover

_KNOWN = frozenset({POOL_FILE, "volumes", "snapshots", "groups", "lost+found"})
_PRIVATE_DIRECTORY, _PRIVATE_FILE = 0o700, 0o600


def judge(pools: Sequence[PoolSeen], others: Iterable[Finding] = ()) -> list[Finding]:
    """Everything that is not as it should be, and what *others* found, pool by pool, the worst first."""
    order = list(Severity)
    found = [*(finding for pool in pools for finding in (*_pool(pool), *_twice(pool, pools))), *others]
    names = [pool.name for pool in pools]
    return sorted(found, key=lambda one: (names.index(one.pool), order.index(one.severity)))


def _pool(pool: PoolSeen) -> Iterator[Finding]:
    if pool.problem:
        yield say(pool, Severity.ERROR, "", pool.problem, "see the message; nothing in this pool was looked at")
        return
    if pool.damage:
        fix = "restore pool.json from a backup; --repair never writes it"
        yield say(pool, Severity.ERROR, pool.layout.pool_file, pool.damage, fix)
    for seen in pool.names:
        yield from _top(pool, seen)
    if not any(seen.name == "volumes" for seen in pool.names):
        fix = "restore it, or take the pool's disk out and make another pool"
        yield say(pool, Severity.ERROR, pool.layout.volumes, "the directory of all volumes is gone", fix)
    for seen in pool.strays:
        yield unknown(pool, seen, Severity.WARNING)
    for volume in pool.volumes:
        for finding in _volume(pool, volume):
            yield replace(finding, volume=volume.id)
    yield from _loops(pool)
    yield from _binds(pool)


def say(
    pool: PoolSeen, severity: Severity, where: str, found: str, fix: str, mend: tuple[Operation, ...] = ()
) -> Finding:
    """A finding in a pool."""
    return Finding(severity=severity, pool=pool.name, where=where, found=found, fix=fix, mend=mend)


# --- names and owners


def _top(pool: PoolSeen, seen: Seen) -> Iterator[Finding]:
    if is_leftover(seen.name):
        yield _leftover(pool, seen)
    elif seen.name == POOL_FILE + UNFINISHED:
        yield unfinished(pool, seen)
    elif seen.name not in _KNOWN:
        yield unknown(pool, seen, Severity.INFO if pool.kind is PoolKind.PATH else Severity.WARNING)
    elif seen.name in (POOL_FILE, "volumes", "snapshots", "groups"):
        yield from owned(pool, seen)


def _leftover(pool: PoolSeen, seen: Seen) -> Finding:
    of = seen.name.removeprefix(NEW).removeprefix(TRASH).partition(":")[0]
    kind = of if of in ("snapshot", "group") else "volume"
    if seen.name.startswith(NEW):
        what = f"a {kind} whose making was cut short: nobody was ever told that it exists"
    elif seen.name.startswith(TRASH):
        what = f"a {kind} that was deleted, and whose blocks were not given back yet"
    else:
        what = "left from trying out what the pool's filesystem can do"
    if pool.busy:
        return say(pool, Severity.INFO, seen.path, f"{what}; perhaps this moment", "nothing: the driver removes it")
    users = [loop.device.path for loop in pool.loops if loop.file.startswith(f"{seen.path}/")]
    users += [bind.point for bind in pool.binds if bind.inside.startswith(f"{seen.name}/")]
    if users:
        return say(pool, Severity.WARNING, seen.path, f"{what}; {', '.join(users)} still uses it", "see there")
    fix = "--repair removes it; so does the driver when it starts"
    return say(pool, Severity.WARNING, seen.path, what, fix, (RemoveTree(path=seen.path),))


def unfinished(pool: PoolSeen, seen: Seen) -> Finding:
    """What is left of a file whose writing was cut short."""
    what = "left from writing a file, which was cut short: the file itself is whole, as it was before"
    if pool.busy:
        return say(pool, Severity.INFO, seen.path, f"{what}; perhaps this moment", "nothing, unless it stays")
    if seen.info.kind is not FileKind.FILE:
        return unknown(pool, seen, Severity.WARNING)
    return say(pool, Severity.WARNING, seen.path, what, "--repair removes it", (RemoveTree(path=seen.path),))


def unknown(pool: PoolSeen, seen: Seen, severity: Severity) -> Finding:
    """What is not the driver's."""
    found = f"a {seen.info.kind} that csi-local did not make"
    return say(pool, severity, seen.path, found, "move it out of the pool if nobody needs it here; it is never touched")


def owned(pool: PoolSeen, seen: Seen) -> Iterator[Finding]:
    """Records, images and their directories are the driver's alone; what is in a volume is its pods'."""
    allowed = {FileKind.DIRECTORY: _PRIVATE_DIRECTORY, FileKind.FILE: _PRIVATE_FILE}.get(seen.info.kind)
    if allowed is None:
        return
    wrong = []
    if seen.owner != pool.us:
        wrong.append(f"belongs to user {seen.owner} instead of {pool.us}")
    if seen.info.mode & ~allowed:
        wrong.append(f"has mode {seen.info.mode:04o} instead of {allowed:04o}")
    if wrong:
        found = f"it {' and '.join(wrong)}: others may read or change what is the driver's alone"
        if seen.name == RECORD_FILE and seen.owner != pool.us:
            found += "; so it is not believed, and its volume cannot be used"
        fix = "find out who did that; --repair takes it back and changes nothing in it"
        mend = TakeOver(path=seen.path, owner=pool.us, mode=allowed)
        yield say(pool, Severity.WARNING, seen.path, found, fix, (mend,))


# --- volumes


def _volume(pool: PoolSeen, volume: VolumeSeen) -> Iterator[Finding]:
    yield from owned(pool, volume.files[0])
    record = volume.record
    bytes_name = {BackendKind.DIRECTORY: (DATA,), BackendKind.LOOPFILE: (IMAGE,)}
    expected = bytes_name[record.backend] if record else (DATA, IMAGE, HEADER_COPY)
    expected = (*expected, HEADER_COPY) if record and record.encryption else expected
    for seen in volume.files[1:]:
        if seen.name in (RECORD_FILE + UNFINISHED, HEADER_COPY + UNFINISHED):
            yield unfinished(pool, seen)
        elif seen.name in (RECORD_FILE, IMAGE, HEADER_COPY) and seen.name in (RECORD_FILE, *expected):
            yield from owned(pool, seen)
        elif seen.name not in expected:
            yield unknown(pool, seen, Severity.WARNING)
    said = volume.file(RECORD_FILE)
    if record is None and said is not None and said.owner != pool.us:
        return  # its owner is why it is not believed, and told of already
    if record is None:
        newer = "upgrade" in volume.damage
        fix = (
            "upgrade the driver"
            if newer
            else "restore volume.json from a backup, or save the data and move the directory out of the pool"
        )
        path = pool.layout.record(volume.id)
        what = volume.damage.removesuffix(": upgrade the driver")
        yield say(pool, Severity.ERROR, path, f"{what}; the volume cannot be used and is left as it is", fix)
    else:
        yield from _pod(pool, volume, record)
        if record.adopted:
            yield from _adopted(pool, volume, record)
        else:
            yield from (_directory if record.backend is BackendKind.DIRECTORY else _image)(pool, volume, record)


def _pod(pool: PoolSeen, volume: VolumeSeen, record: VolumeRecord) -> Iterator[Finding]:
    if volume.pod_gone:
        severity = Severity.INFO if pool.busy else Severity.WARNING
        found = f"an inline volume whose pod is gone: {record.ephemeral} is not there any more"
        fix = "nothing: a driver that runs removes it within minutes"
        yield say(pool, severity, pool.layout.volume(record.id), found, fix)


def _adopted(pool: PoolSeen, volume: VolumeSeen, record: VolumeRecord) -> Iterator[Finding]:
    path, link = pool.layout.data(record.id), volume.file("data")
    if link is None or link.info.kind is not FileKind.SYMLINK:
        found = f"the link to the directory {record.adopted}, which was adopted, is gone"
        yield say(pool, Severity.ERROR, path, found, f"ln -s {record.adopted} {path}")
    if not record.adopted_is(volume.adopted):
        fix = "or delete the volume, which touches no data, and adopt what is to be it"
        yield say(pool, Severity.ERROR, record.adopted, lost(record, volume.adopted), fix)


def _directory(pool: PoolSeen, volume: VolumeSeen, record: VolumeRecord) -> Iterator[Finding]:
    path, seen, limit = pool.layout.data(record.id), volume.file("data"), volume.limit
    if seen is None or seen.info.kind is not FileKind.DIRECTORY:
        yield say(pool, Severity.ERROR, path, "the volume's data is gone", "restore it from a backup")
    elif record.quota is not QuotaMode.HARD or limit is None:
        return
    elif limit.problem:
        found = f"nothing enforces the limit of {format_bytes(record.size)}: {limit.problem}"
        fix = "let the pool's filesystem limit directories again: mount option prjquota, or a btrfs with quota"
        yield say(pool, Severity.ERROR, path, found, fix)
    else:
        yield from _limit(pool, record, path, limit)


def _limit(pool: PoolSeen, record: VolumeRecord, path: str, limit: LimitSeen) -> Iterator[Finding]:
    abilities = Abilities(filesystem=pool.filesystem)
    wrong = []
    elsewhere = limit.project != record.project and not abilities.btrfs
    if elsewhere:
        wrong.append(f"it is in quota project {limit.project} instead of {record.project}: what it has is not counted")
    if limit.total != record.size:
        size = format_bytes(limit.total) if 0 < limit.total < 1 << 63 else "nothing"
        wrong.append(f"it is limited to {size} instead of {format_bytes(record.size)}")
    if not wrong:
        return
    mend = directory.limit(record, path, record.size, abilities)
    fix = "--repair sets it"
    if elsewhere:
        fix += "; files that are in it already stay in the project they are in"
    if limit.used > record.size:  # its pods would at once fail to write
        mend, fix = (), f"it holds {format_bytes(limit.used)}: grow the volume to at least that"
    severity = Severity.INFO if pool.busy and limit.total > record.size and len(wrong) == 1 else Severity.WARNING
    yield say(pool, severity, path, "; ".join(wrong), fix, mend)


def _image(pool: PoolSeen, volume: VolumeSeen, record: VolumeRecord) -> Iterator[Finding]:
    path, seen = pool.layout.image(record.id), volume.file("disk.img")
    if seen is None or seen.info.kind is not FileKind.FILE:
        yield say(pool, Severity.ERROR, path, "the volume's image is gone", "restore it from a backup")
        return
    size, blocks = seen.info.size, seen.info.allocated
    whole = record.image_size
    if size < whole:
        found = f"the image was cut short: it has {size} bytes instead of {whole}, and what was behind is lost"
        fix = "restore it from a backup; it is left as it is and cannot be staged"
        yield say(pool, Severity.ERROR, path, found, fix)
        return
    if size > whole:
        found = f"the image has {size} bytes, its record says {whole}: growing was cut short, which is harmless"
        yield say(pool, Severity.INFO, path, found, "nothing: growing it again completes it")
    if record.thick and blocks < whole:
        lacking = format_bytes(whole - blocks)
        found = f"{lacking} of its {format_bytes(whole)} have no blocks reserved: writes may meet a full pool"
        mend = ResizeImage(path=path, size=whole, thick=True)
        yield say(pool, Severity.WARNING, path, found, "--repair reserves them; so does staging it", (mend,))
    yield from _format(pool, volume, record, path)


def _format(pool: PoolSeen, volume: VolumeSeen, record: VolumeRecord, path: str) -> Iterator[Finding]:
    encryption = record.encryption
    state, made = (encryption.state, "header") if encryption else (record.format, "filesystem")
    expected = (luks.SIGNATURE, encryption.uuid) if encryption else (record.filesystem, record.fs_uuid)
    if state is FormatState.FORMATTING:
        found = f"staging was cut short while the {made} was made, which is harmless: nobody has used it yet"
        yield say(pool, Severity.INFO, path, found, "nothing: staging it again completes it")
    elif volume.unreadable:
        found = f"what is on the image cannot be found out: {volume.unreadable}"
        yield say(pool, Severity.ERROR, path, found, "look at the kernel's log and at the disk under the pool")
    elif state is FormatState.FORMATTED:
        there = volume.signature
        if there is None or (there.type, there.uuid) != expected:
            what = f"{there.type} (UUID {there.uuid or 'none'})" if there else "nothing"
            found = f"it was formatted as {expected[0]} (UUID {expected[1]}), and {what} is found on it"
            copy = volume.copied
            if there is None and copy is not None and (copy.type, copy.uuid) == expected:
                mend = RestoreHeader(path=path, source=pool.layout.header_copy(record.id))
                fix = f"--repair puts back the copy of its header, {HEADER_COPY}"
                yield say(pool, Severity.ERROR, path, found, fix, (mend,))
                return
            yield say(pool, Severity.ERROR, path, found, "restore it from a backup; it is never formatted again")


# --- loop devices and mounts


def _loops(pool: PoolSeen) -> Iterator[Finding]:
    blocks = {volume.id: volume.record.block for volume in pool.volumes if volume.record}
    encrypted = {volume.id for volume in pool.volumes if volume.record and volume.record.encryption}
    for loop in pool.loops:
        if loop.volume is None:
            yield _orphan(pool, loop)
        elif not loop.points and blocks.get(loop.volume):
            found = f"attached for volume {loop.volume}, published nowhere: staged, or left by an unstaging cut short"
            fix = "nothing while its pod starts or stops; else unstage the volume"
            yield replace(say(pool, Severity.INFO, loop.device.path, found, fix), volume=loop.volume)
        elif not loop.points:
            severity = Severity.INFO if pool.busy else Severity.WARNING
            found = f"attached for volume {loop.volume}, mounted nowhere"
            close = f"losetup -d {loop.device.path}"
            if loop.volume in encrypted:
                close = f"cryptsetup close {luks.mapper_name(loop.volume)}"
            fix = f"staging takes it over; or see who has it open, then {close}"
            yield replace(say(pool, severity, loop.device.path, found, fix), volume=loop.volume)
    writable = defaultdict(list)
    for loop in pool.loops:
        if not loop.device.read_only:
            writable[loop.device.backing].append(loop)
    for several in writable.values():
        if len(several) > 1:
            devices = " and ".join(loop.device.path for loop in several)
            found = f"{devices} write to one image, each with a cache of its own: what one writes the other overwrites"
            fix = "stop the pods that use it, detach all but the one that is mounted, and check the filesystem"
            where = several[0].file or several[0].device.path
            yield replace(say(pool, Severity.ERROR, where, found, fix), volume=several[0].volume or "")


def _orphan(pool: PoolSeen, loop: LoopSeen) -> Finding:
    found = f"attached to {loop.file or 'a file'}, which is no volume's image: the volume was deleted"
    if loop.points:
        fix = f"it is mounted at {', '.join(loop.points)}: stop what uses it and unmount it"
        return say(pool, Severity.WARNING, loop.device.path, found, fix)
    if loop.users:
        return say(pool, Severity.WARNING, loop.device.path, found, f"{loop.users}: end that first")
    mend = (Detach(loop=loop.device),)
    return say(pool, Severity.WARNING, loop.device.path, found, "--repair detaches it: nobody has it open", mend)


def _binds(pool: PoolSeen) -> Iterator[Finding]:
    there = {volume.id for volume in pool.volumes}
    for bind in pool.binds:
        top, _, rest = bind.inside.partition("/")
        gone = top != "volumes" or rest.partition("/")[0] not in there or bind.inside.endswith("//deleted")
        if gone:
            found = f"{bind.inside.removesuffix('//deleted')} of the pool is mounted here, and no such volume exists"
            fix = f"stop what uses it, then umount {bind.point}"
            yield say(pool, Severity.WARNING, bind.point, found, fix)


# --- one pool beside another


def _twice(pool: PoolSeen, pools: Sequence[PoolSeen]) -> Iterator[Finding]:
    same = [other.name for other in pools if other.uuid == pool.uuid and other is not pool]
    if pool.uuid and same:
        found = f"it has the same uuid as pool {' and '.join(same)}: one is a copy of the other, or both are one"
        fix = "give the driver only one of them, and never write to both"
        yield say(pool, Severity.ERROR, "", found, fix)
    counts = Counter(volume.id for other in pools for volume in other.volumes)
    for volume in pool.volumes:
        if counts[volume.id] > 1:
            others = [
                other.name for other in pools if other is not pool and any(volume.id == v.id for v in other.volumes)
            ]
            found = f"volume {volume.id} is in pool {' and '.join(others)} too: the driver refuses to choose"
            fix = "find out which is right, and move the other's directory out of its pool"
            yield replace(say(pool, Severity.ERROR, pool.layout.volume(volume.id), found, fix), volume=str(volume.id))
