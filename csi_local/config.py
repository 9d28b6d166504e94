"""The only reader of flags, environment and configuration files. What comes out is one frozen value."""

import os
import re
import socket
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from reprlib import repr as shortly
from typing import Any

from csi_local.kube.credentials import Credentials, from_kubeconfig, in_cluster
from csi_local.model.encryption import KeySources
from csi_local.model.errors import InvalidArgument
from csi_local.model.pool import PoolKind, PoolSpec, parse_pool, pool_spec
from csi_local.model.text import DNS_LABEL

DEFAULT_ENDPOINT = "unix:///run/csi-local/csi.sock"
DEFAULT_RUN_DIR = "/run/csi-local"
DEFAULT_FILE = "/etc/csi-local/config.yaml"
DEFAULT_MAX_VOLUMES = 1000
DEFAULT_KUBELET_DIR = "/var/lib/kubelet"
DEFAULT_HTTP_ADDRESS = "0.0.0.0:9808"
"""In Kubernetes. Elsewhere nothing is served unless an address is given."""
DEFAULT_KEY_DIR = "/etc/csi-local/keys"
DEFAULT_NAMESPACE = "csi-local"
LOG_LEVELS = ("debug", "info", "warning", "error")
LOG_FORMATS = ("text", "json")

_NODE = re.compile(r"[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?")
_MAX_FILE = 1 << 20
_MAX_LIMIT = 1 << 20
_MAX_PORT = 65535


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """How the driver is to run.

    Attributes:
        node_id: this node's name; also its topology value, so at most 63 characters.
        run_dir: where pools of kind image and device are mounted.
        max_volumes: how many volumes may be staged here at once; 0 for no limit.
        get_snapshot: whether GetSnapshot is offered, which older side-cars and csi-sanity do not know.
        http_address: host and port of /healthz, /readyz and /metrics; None: they are not served.
        kubelet_dir: where the kubelet keeps its things, on the host and here.
        registration: whether the driver registers itself with the kubelet.
        namespace: where its Leases are.
        credentials: how to reach the Kubernetes API; None where there is no need to.
        keys: where keys of encrypted volumes are had from.
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
    http_address: tuple[str, int] | None = None
    kubelet_dir: str = DEFAULT_KUBELET_DIR
    registration: bool = True
    namespace: str = DEFAULT_NAMESPACE
    credentials: Credentials | None = None
    keys: KeySources = KeySources()  # noqa: RUF009 (frozen)
    crash_point: str = ""


class Role(StrEnum):
    """What the process is to be: who does all by itself, or a part of a Kubernetes cluster."""

    ALONE = "serve"
    NODE = "node"
    CONTROLLER = "controller"


def load(flags: Mapping[str, Any], role: Role = Role.ALONE) -> Config:
    """Put flags, the file they or the environment name, and the defaults together. A flag beats the file.

    Raises:
        InvalidArgument: something is missing or wrong; the message says where.
    """
    if flags.get("config") == "":
        raise InvalidArgument("--config is empty: say which file")
    path = flags.get("config") or os.environ.get("CSI_LOCAL_CONFIG") or _default_file(flags)
    values = _read(path) if path else {}
    values |= {key: value for key, value in flags.items() if value not in (None, []) and key != "config"}
    pools = tuple(_pool(item) for item in values.get("pool", []))
    names = [pool.name for pool in pools]
    if not pools and role is not Role.CONTROLLER:
        raise InvalidArgument("no pools: give --pool NAME=KIND:ARG, or --config FILE with a list of pools")
    if len(set(names)) != len(names):
        raise InvalidArgument(f"two pools have the same name among {', '.join(names)}")
    kubelet_dir = _directory(values.get("kubelet_dir", DEFAULT_KUBELET_DIR), "kubelet directory")
    endpoint = f"unix://{kubelet_dir}/plugins/csi-local.io/csi.sock" if role is Role.NODE else DEFAULT_ENDPOINT
    node = values.get("node_id") or os.environ.get("NODE_ID") or os.environ.get("NODE_NAME") or socket.gethostname()
    address = "" if role is Role.ALONE else DEFAULT_HTTP_ADDRESS
    return Config(
        endpoint=str(values.get("endpoint") or os.environ.get("CSI_ENDPOINT") or endpoint),
        node_id=_node(str(node)),
        pools=pools,
        run_dir=_directory(values.get("run_dir", DEFAULT_RUN_DIR), "run directory"),
        max_volumes=_limit(values.get("max_volumes", DEFAULT_MAX_VOLUMES)),
        log_level=_choice(values.get("log_level", "info"), LOG_LEVELS, "log level"),
        log_format=_choice(values.get("log_format", "text"), LOG_FORMATS, "log format"),
        get_snapshot=_choice(_plain(values.get("get_snapshot", "no")), ("yes", "no"), "get snapshot") == "yes",
        http_address=_address(str(values.get("http_address", address))),
        kubelet_dir=kubelet_dir,
        registration=_choice(_plain(values.get("registration", "yes")), ("yes", "no"), "registration") == "yes",
        namespace=_namespace(str(values.get("namespace") or os.environ.get("NAMESPACE") or DEFAULT_NAMESPACE)),
        credentials=None if role is Role.ALONE else _credentials(str(values.get("kubeconfig", ""))),
        keys=_keys(values),
        crash_point=os.environ.get("CSI_LOCAL_CRASH_POINT", ""),
    )


def _keys(values: Mapping[str, Any]) -> KeySources:
    program = str(values.get("key_program", ""))
    return KeySources(
        directory=_directory(values.get("key_dir", DEFAULT_KEY_DIR), "key directory"),
        program=_directory(program, "key program") if program else "",
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
    "httpaddress": "http_address",
    "kubeletdir": "kubelet_dir",
    "keydir": "key_dir",
    "keyprogram": "key_program",
    "registration": "registration",
    "namespace": "namespace",
    "kubeconfig": "kubeconfig",
}
_KNOWN = (
    "endpoint, nodeId, pools, runDir, maxVolumes, getSnapshot, logLevel, logFormat, httpAddress, kubeletDir,"
    " keyDir, keyProgram, registration, namespace, kubeconfig"
)


def _yaml(path: str) -> object:
    """What is in a YAML file.

    Raises:
        OSError: it cannot be read.
        ValueError: it is not YAML, too long, too deep, or gives a key of a mapping twice. It quotes the file.
    """
    import yaml  # noqa: PLC0415 (a driver that is run by flags need not carry it in memory)

    class Loader(yaml.SafeLoader):
        def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:  # noqa: ANN401, FBT001, FBT002 (its)
            """As it was, but no key twice: the last of them would be taken without a word."""
            keys = Counter((key.tag, key.value) for key, _ in node.value if isinstance(key, yaml.ScalarNode))
            if twice := [name for (_, name), times in keys.items() if times > 1]:
                raise ValueError(f"{twice[0]!r} is given twice")
            return super().construct_mapping(node, deep=deep)

    with Path(path).open("rb") as file:
        data = file.read(_MAX_FILE + 1)
    if len(data) > _MAX_FILE:
        raise ValueError(f"it is longer than {_MAX_FILE >> 20} MiB")
    try:
        return yaml.load(data.decode(), Loader)  # noqa: S506 (a safe one)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except (yaml.YAMLError, AttributeError, LookupError, TypeError) as error:  # the others: !!timestamp x and such
        raise ValueError(" ".join(str(error).split())) from None


def _read(path: str) -> dict[str, Any]:
    try:
        content = _yaml(path) or {}
    except OSError as error:
        raise InvalidArgument(f"configuration {path}: {error.strerror}") from None
    except ValueError as error:
        raise InvalidArgument(f"configuration {path} is not YAML as it is needed: {error}") from None
    if not isinstance(content, dict):
        raise InvalidArgument(f"configuration {path} must be a mapping")
    values: dict[str, Any] = {}
    for name, value in content.items():
        key = _KEYS.get(str(name).replace("-", "").replace("_", "").lower())
        if key is None or key in values:
            raise InvalidArgument(f"configuration {path}: {name!r} is unknown or given twice; there are {_KNOWN}")
        if key != "pool" and not isinstance(value, str | int | float):
            raise InvalidArgument(f"configuration {path}: {name} is not a plain value: {shortly(value)}")
        values[key] = value
    if not isinstance(values.get("pool", []), list):
        raise InvalidArgument(f"configuration {path}: pools must be a list")
    return values


def _pool(item: object) -> PoolSpec:
    """A pool as a string, as on the command line, or as a mapping such as ``{name: fast, path: /mnt, media: ssd}``."""
    if isinstance(item, str):
        return parse_pool(item)
    if not isinstance(item, dict):
        raise InvalidArgument(f"pool {shortly(item)} must be a string or a mapping")
    options = {str(key): _plain(value) for key, value in item.items()}
    kinds = [str(kind) for kind in PoolKind if kind in options]
    name = options.pop("name", "")
    if not name or len(kinds) != 1:
        raise InvalidArgument(f"pool {shortly(item)} needs a name, and one of path, image and device")
    return pool_spec(name, kinds[0], options.pop(kinds[0]), options)


def _plain(value: object) -> str:
    if isinstance(value, bool):  # what YAML makes of yes and no
        return "yes" if value else "no"
    if not isinstance(value, str | int | float):
        raise InvalidArgument(f"not a plain value: {shortly(value)}")
    return str(value)


def _node(name: str) -> str:
    if not _NODE.fullmatch(name):
        raise InvalidArgument(
            f"node id {name!r}: it becomes a topology value, so it is at most 63 letters, digits, '-', '_' and '.',"
            " beginning and ending with a letter or digit"
        )
    return name


def _namespace(name: str) -> str:
    if not DNS_LABEL.fullmatch(name):
        raise InvalidArgument(f"namespace {name!r}: it has lower-case letters, digits and '-', at most 63")
    return name


def _directory(value: object, what: str) -> str:
    path = str(value)
    if not path.startswith("/") or ".." in path.split("/") or not path.isprintable():
        raise InvalidArgument(f"{what} {path!r} must be an absolute path, without '..' or what cannot be printed")
    return path.rstrip("/") or "/"


def _credentials(path: str) -> Credentials:
    """What a kubeconfig says, or what every pod is given."""
    if path:
        try:
            return from_kubeconfig(_yaml(path), str(Path(path).parent))
        except OSError as error:
            raise InvalidArgument(f"kubeconfig {path}: {error.strerror}") from None
        except ValueError:  # none of its text: it holds secrets
            raise InvalidArgument(f"kubeconfig {path} is not YAML") from None
        except InvalidArgument as error:
            raise InvalidArgument(f"kubeconfig {path}: {error}") from None
    host, port = os.environ.get("KUBERNETES_SERVICE_HOST", ""), os.environ.get("KUBERNETES_SERVICE_PORT", "443")
    if not host:
        raise InvalidArgument("this is no pod of a Kubernetes cluster: say with --kubeconfig FILE how to reach the API")
    return in_cluster(host, port)


def _address(text: str) -> tuple[str, int] | None:
    if not text:
        return None
    host, colon, port = text.rpartition(":")
    if not colon or not re.fullmatch(r"[0-9]{1,5}", port) or int(port) > _MAX_PORT:
        raise InvalidArgument(f"http address {text!r}: write HOST:PORT, for example {DEFAULT_HTTP_ADDRESS}")
    return host.removeprefix("[").removesuffix("]"), int(port)


def _limit(value: object) -> int:
    if not re.fullmatch(r"[0-9]{1,7}", str(value)) or int(str(value)) > _MAX_LIMIT:
        raise InvalidArgument(f"max volumes {value!r} must be a number from 0 to {_MAX_LIMIT}")
    return int(str(value))


def _choice(value: object, allowed: tuple[str, ...], what: str) -> str:
    if value not in allowed:
        raise InvalidArgument(f"{what} {value!r} does not exist; there are {', '.join(allowed)}")
    return str(value)
