"""Adopting a directory: which may become a volume where it is, and which must not."""

import re

from csi_local.store.layout import NEW, POOL_FILE, PROBE, TRASH

_OF_THE_SYSTEM = """/bin /boot /dev /etc /lib /lib32 /lib64 /libx32 /proc /run /sbin /sys /usr /var/cache
    /var/lib/containerd /var/lib/containers /var/lib/docker /var/lib/etcd /var/lib/kubelet /var/log"""
_SYSTEM = tuple(_OF_THE_SYSTEM.split())
"""Nothing in these is anybody's data."""

_OFTEN_MOUNTED = "/ /home /media /mnt /opt /root /srv /tmp /var /var/lib /var/tmp"
_TOPS = frozenset(_OFTEN_MOUNTED.split())
"""Nor are these themselves, but what is in them may be."""

_WITHOUT_DATA = """autofs bpf cgroup cgroup2 configfs debugfs devpts devtmpfs efivarfs fusectl hugetlbfs mqueue nsfs
    overlay proc pstore ramfs securityfs selinuxfs squashfs sysfs tmpfs tracefs"""
_OF_THE_KERNEL = frozenset(_WITHOUT_DATA.split())
"""Filesystems that hold no data, or none that outlives the node's next start, or a container's."""

_OF_A_POD = re.compile(r"/pods/[^/]+/(volumes|volume-subpaths)/|/plugins/kubernetes\.io/")
_OF_A_POOL = re.compile(
    rf"({re.escape(POOL_FILE)}|volumes|snapshots|({re.escape(NEW)}|{re.escape(TRASH)}|{re.escape(PROBE)}).*)"
)


def unadoptable(path: str, filesystem: str, places: dict[str, str], adopted: dict[str, str]) -> str:
    """Why a directory must not become a volume, or "" where it may. *path* has no links in it.

    *filesystem* is the type of the one that it is on, *places* the top directories and images of pools, each with the
    pool's name, and *adopted* the directories that are volumes already, by their ids.
    """
    if path in _TOPS or any(_within(path, place) for place in _SYSTEM):
        return "it belongs to the system"
    if filesystem in _OF_THE_KERNEL:
        return f"it is on a {filesystem}, which is no place for data that must last"
    if _OF_A_POD.search(path):
        return "it belongs to a pod, or to a volume of one"
    for root, name in places.items():
        if _within(root, path):
            return f"pool {name} is in it, or is it"
        if _within(path, root) and _OF_A_POOL.fullmatch(path[len(root) :].lstrip("/").partition("/")[0]):
            return f"it is pool {name}'s own"
    for volume, place in adopted.items():
        if _within(path, place) or _within(place, path):
            return f"{place} is volume {volume} already"
    return ""


def _within(path: str, place: str) -> bool:
    return path == place or path.startswith(f"{place.rstrip('/')}/")
