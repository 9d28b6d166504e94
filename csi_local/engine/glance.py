"""What is looked at before a volume is staged or published."""

import dataclasses
from collections.abc import Mapping

from csi_local.engine.crypt import Opened
from csi_local.engine.observe import Observer, mount_under
from csi_local.engine.pool import Pool
from csi_local.host.api import Host
from csi_local.model.errors import CommandFailed, FailedPrecondition
from csi_local.model.observed import Stack
from csi_local.model.volume import BackendKind, Capability, VolumeRecord
from csi_local.plan import publishing
from csi_local.plan.publishing import Publication, PublishSeen
from csi_local.plan.staging import StagingSeen


class Glance:
    """Puts together what plans want to know."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._observer = Observer(host)

    def at_staging(
        self, pool: Pool, record: VolumeRecord, path: str, opened: Opened | None, staged_as: Capability | None
    ) -> StagingSeen:
        """What there is before staging; *opened* where the volume is encrypted.

        Raises:
            FailedPrecondition: what is on the volume cannot be told.
        """
        layout = pool.layout
        at = self._host.stat(path)
        directory = record.backend is BackendKind.DIRECTORY
        devices = Stack() if directory else self._observer.stack(layout, record.id)
        if self._observer.is_volume(layout, record.id, path, at):
            return StagingSeen(
                path=at,
                bytes_there=None if directory else self._host.stat(layout.image(record.id)),
                ours=True,
                staged_as=staged_as,
                flags=self._own_flags(path),
                inherited=self._own_flags(record.adopted or layout.root) if directory else frozenset(),
                grows_mounted=any(self._grows_mounted(record, device.path) for device in devices.top),
            )
        where = record.adopted or (layout.data(record.id) if directory else layout.image(record.id))
        there = self._host.stat(where)
        device = opened.device if opened else None
        if directory or there is None or record.block:
            return StagingSeen(path=at, bytes_there=there, loops=devices.loops, opened=device)
        carrier = device.path if device else where
        try:
            signature = self._host.probe(carrier)
        except CommandFailed as error:
            raise FailedPrecondition(
                f"volume {record.id}: what is on it cannot be told, and so it is left as it is: {error}"
            ) from error
        seen = StagingSeen(path=at, bytes_there=there, loops=devices.loops, opened=device, signature=signature)
        if signature is None or signature.type != record.filesystem:
            return seen
        if devices.loops and self._observer.mount_points(layout, record.id, devices):
            return seen
        size = self._host.filesystem_size(carrier, record.filesystem)
        return dataclasses.replace(seen, filesystem_size=size, grows_mounted=self._grows_mounted(record, carrier))

    def _grows_mounted(self, record: VolumeRecord, carrier: str) -> bool:
        return record.filesystem is not None and self._host.grows_mounted(carrier, record.filesystem)

    def _own_flags(self, path: str) -> frozenset[str]:
        """Those of the mount that *path* is in; not those of its filesystem, which errors make read-only."""
        mount = mount_under(self._host.real_path(path), self._host.mounts())
        return mount.options if mount else frozenset()

    def at_target(
        self,
        pool: Pool,
        record: VolumeRecord,
        paths: tuple[str, str],
        wanted: Publication,
        known: Mapping[str, Publication],
    ) -> PublishSeen:
        """What there is before publishing; *paths* are staging and target, *known* how the volume is published."""
        staged, target = paths
        at = self._host.stat(target)
        devices = self._observer.stack(pool.layout, record.id)
        if self._observer.is_volume(pool.layout, record.id, target, at):
            flags = frozenset() if record.block else self._host.mount_flags(target)
            writable = "ro" not in flags
            if record.block and at is not None:
                writable = any(device.device == at.special for device in devices.writable)
            below = frozenset() if record.block else self._host.mount_flags(staged)
            return PublishSeen(
                path=at,
                ours=True,
                writable=writable,
                published_as=known.get(target),
                flags=flags,
                staging_flags=below,
            )
        others: tuple[str, ...] = ()
        modes = {one.capability.mode for one in known.values()} | {wanted.capability.mode}
        exclusive = modes - publishing.SHARED_MODES
        if exclusive:
            points = self._observer.mount_points(pool.layout, record.id, devices)
            others = tuple(point for point in points if point not in (staged, target))
        return PublishSeen(path=at, devices=devices, others=others, exclusive=bool(exclusive))
