"""The only reader of flags, environment and configuration files. What comes out is one frozen value."""

import os
import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from csi_local.model.errors import InvalidArgument
from csi_local.model.pool import PoolKind, PoolSpec, parse_pool, pool_spec

DEFAULT_ENDPOINT = "unix:///run/csi-local/csi.sock"
DEFAULT_RUN_DIR = "/run/csi-local"
DEFAULT_FILE = "/etc/csi-local/config.yaml"
DEFAULT_MAX_VOLUMES = 1000
LOG_LEVELS = ("debug", "info", "warning", "error")
LOG_FORMATS = ("text", "json")

_NODE = re.compile(r"[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?")
_MAX_LIMIT = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """How the driver is to run.

    Attributes:
        node_id: this node's name; also its topology value, so at most 63 characters.
        run_dir: where pools of kind image and device are mounted.
        max_volumes: how many volumes may be staged here at once; 0 for no limit.
        get_snapshot: whether GetSnapshot is offered, which older side-cars and csi-sanity do not know.
        crash_point: for tests: ``trace:FILE`` or ``kill:NAME`` (``app.crash_point``).
    """

    endpoint: str
    node_id: str
    pools: tuple[PoolSpec, ...]
    run_dir: str
    max_volumes: int
    log_level: str
    log_format: str
    get_snapshot: bool = False
    crash_point: str = ""


def load(flags: Mapping[str, Any]) -> Config:
    """Put flags, the file they or the environment name, and the defaults together. A flag beats the file.

    Raises:
        InvalidArgument: something is missing or wrong; the message says where.
    """
    path = flags.get("config") or os.environ.get("CSI_LOCAL_CONFIG") or _default_file(flags)
    values = _read(path) if path else {}
    values |= {key: value for key, value in flags.items() if value not in (None, []) and key != "config"}
    pools = tuple(_pool(item) for item in values.get("pool", []))
    names = [pool.name for pool in pools]
    if not pools:
        raise InvalidArgument("no pools: give --pool NAME=KIND:ARG, or --config FILE with a list of pools")
    if len(set(names)) != len(names):
        raise InvalidArgument(f"two pools have the same name among {', '.join(names)}")
    return Config(
        endpoint=str(values.get("endpoint") or os.environ.get("CSI_ENDPOINT") or DEFAULT_ENDPOINT),
        node_id=_node(str(values.get("node_id") or os.environ.get("NODE_ID") or socket.gethostname())),
        pools=pools,
        run_dir=_directory(str(values.get("run_dir", DEFAULT_RUN_DIR))),
        max_volumes=_limit(values.get("max_volumes", DEFAULT_MAX_VOLUMES)),
        log_level=_choice(values.get("log_level", "info"), LOG_LEVELS, "log level"),
        log_format=_choice(values.get("log_format", "text"), LOG_FORMATS, "log format"),
        get_snapshot=_choice(values.get("get_snapshot", "no"), ("yes", "no"), "get snapshot") == "yes",
        crash_point=os.environ.get("CSI_LOCAL_CRASH_POINT", ""),
    )


def names_pools(flags: Mapping[str, Any]) -> bool:
    """Whether flags, environment or the default file say which pools there are."""
    return any((flags.get("pool"), flags.get("config"), os.environ.get("CSI_LOCAL_CONFIG"), _default_file(flags)))


def _default_file(flags: Mapping[str, Any]) -> str:
    return "" if flags.get("pool") or not Path(DEFAULT_FILE).exists() else DEFAULT_FILE


_KEYS = {
    "endpoint": "endpoint",
    "nodeid": "node_id",
    "pool": "pool",
    "pools": "pool",
    "rundir": "run_dir",
    "maxvolumes": "max_volumes",
    "getsnapshot": "get_snapshot",
    "loglevel": "log_level",
    "logformat": "log_format",
}


def _read(path: str) -> dict[str, Any]:
    import yaml  # noqa: PLC0415 (a driver that is run by flags need not carry it in memory)

    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8")) or {}
    except OSError as error:
        raise InvalidArgument(f"configuration {path}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InvalidArgument(f"configuration {path} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise InvalidArgument(f"configuration {path} must be a mapping")
    values: dict[str, Any] = {}
    for name, value in content.items():
        key = _KEYS.get(str(name).replace("-", "").replace("_", "").lower())
        if key is None or key in values:
            known = "endpoint, nodeId, pools, runDir, maxVolumes, getSnapshot, logLevel, logFormat"
            raise InvalidArgument(f"configuration {path}: {name!r} is unknown or given twice; there are {known}")
        values[key] = value
    if not isinstance(values.get("pool", []), list):
        raise InvalidArgument(f"configuration {path}: pools must be a list")
    return values


def _pool(item: object) -> PoolSpec:
    """A pool as a string, as on the command line, or as a mapping such as ``{name: fast, path: /mnt, media: ssd}``."""
    if isinstance(item, str):
        return parse_pool(item)
    if not isinstance(item, dict):
        raise InvalidArgument(f"pool {item!r} must be a string or a mapping")
    options = {str(key): _plain(value) for key, value in item.items()}
    kinds = [str(kind) for kind in PoolKind if kind in options]
    name = options.pop("name", "")
    if not name or len(kinds) != 1:
        raise InvalidArgument(f"pool {item!r} needs a name, and one of path, image and device")
    return pool_spec(name, kinds[0], options.pop(kinds[0]), options)


def _plain(value: object) -> str:
    if isinstance(value, bool):  # what YAML makes of yes and no
        return "yes" if value else "no"
    if isinstance(value, dict | list) or value is None:
        raise InvalidArgument(f"{value!r} is not a plain value")
    return str(value)


def _node(name: str) -> str:
    if not _NODE.fullmatch(name):
        raise InvalidArgument(
            f"node id {name!r}: it becomes a topology value, so it is at most 63 letters, digits, '-', '_' and '.',"
            " beginning and ending with a letter or digit"
        )
    return name


def _directory(path: str) -> str:
    if not path.startswith("/") or ".." in path.split("/"):
        raise InvalidArgument(f"run directory {path!r} must be an absolute path")
    return path.rstrip("/") or "/"


def _limit(value: object) -> int:
    if not re.fullmatch(r"[0-9]{1,7}", str(value)) or int(str(value)) > _MAX_LIMIT:
        raise InvalidArgument(f"max volumes {value!r} must be a number from 0 to {_MAX_LIMIT}")
    return int(str(value))


def _choice(value: object, allowed: tuple[str, ...], what: str) -> str:
    if value not in allowed:
        raise InvalidArgument(f"{what} {value!r} does not exist; there are {', '.join(allowed)}")
    return str(value)
