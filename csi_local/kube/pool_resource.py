"""LocalPool, pure: between its dictionary and the model's values. Enough is in it for a :class:`PoolView`."""

from csi_local.kube.api import Object
from csi_local.kube.resources import conditions, news, pool_resource_name, resource
from csi_local.model.pool import Abilities, Media, PoolKind, PoolSpec, PoolView, QuotaSupport
from csi_local.model.quantity import Bytes, format_bytes


def new_pool(spec: PoolSpec, node: str) -> Object:
    """The resource of a pool of *node*."""
    fields = {"nodeName": node, "poolName": spec.name, "kind": str(spec.kind), "target": spec.target}
    return resource("LocalPool", pool_resource_name(node, spec.name), node, fields)


def pool_status(found: Object, view: PoolView, *, uuid: str, promised: int, volumes: int, now: str) -> Object:
    """The patch of ``status`` that says how a pool is; *promised* in bytes, *volumes* how many there are.

    *now* is a :func:`csi_local.kube.resources.timestamp`: a condition's time is that of its last change.
    """
    abilities = view.abilities
    reason = "Unavailable" if view.unavailable else "Usable"
    ready = news("Ready", true=not view.unavailable, reason=reason, message=view.unavailable)
    return {
        "status": {
            "uuid": uuid,
            "media": str(view.media),
            "filesystem": abilities.filesystem,
            "totalBytes": view.total,
            "roomBytes": view.room,
            "thinRoomBytes": view.thin_room,
            "promisedBytes": promised,
            "total": format_bytes(view.total),
            "room": format_bytes(view.room),
            "volumes": volumes,
            "unavailable": view.unavailable,
            "abilities": {
                "reflink": abilities.reflink,
                "quota": str(abilities.quota),
                "quotaReason": abilities.quota_reason,
                "subvolumes": abilities.subvolumes,
                "discard": abilities.discard,
                "directIo": abilities.direct_io,
                "sectorSize": abilities.sector_size,
                "preallocate": abilities.preallocate,
                "encryption": abilities.encryption,
                "encryptionReason": abilities.encryption_reason,
            },
            "conditions": conditions(found, [ready], now),
        }
    }


def pool_view(found: Object) -> PoolView:
    """A pool as placement sees it."""
    spec, status = found["spec"], found.get("status", {})
    able = status.get("abilities", {})
    return PoolView(
        name=spec["poolName"],
        kind=PoolKind(spec["kind"]),
        media=Media(status.get("media", Media.UNKNOWN)),
        abilities=Abilities(
            filesystem=status.get("filesystem", ""),
            reflink=able.get("reflink", False),
            quota=QuotaSupport(able.get("quota", QuotaSupport.NONE)),
            subvolumes=able.get("subvolumes", False),
            discard=able.get("discard", False),
            direct_io=able.get("directIo", False),
            sector_size=able.get("sectorSize", 0),
            preallocate=able.get("preallocate", False),
            quota_reason=able.get("quotaReason", ""),
            encryption=able.get("encryption", False),
            encryption_reason=able.get("encryptionReason", ""),
        ),
        total=Bytes(status.get("totalBytes", 0)),
        room=Bytes(status.get("roomBytes", 0)),
        thin_room=Bytes(status.get("thinRoomBytes", 0)),
        unavailable=status.get("unavailable", "") if "totalBytes" in status else "its node has not said yet how it is",
    )
