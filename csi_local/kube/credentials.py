"""Where the Kubernetes API is, and who we are to it."""

import base64
import binascii
import posixpath
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from csi_local.model.errors import InvalidArgument

ACCOUNT = "/var/run/secrets/kubernetes.io/serviceaccount"
"""What the kubelet puts into every pod that has a service account."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Credentials:
    """How to reach and convince an API server.

    Attributes:
        server: ``https://host:port``, or ``http://`` for a test.
        ca: certificates (PEM) of who may vouch for the server; "" with *ca_file* "" for the system's.
        token_file: read again and again, since bound tokens are replaced while we run.
        cert_file, key_file: a client certificate, instead of a token.
        server_name: the name in the server's certificate, where it is not the host's.
        insecure: believe any server.
    """

    server: str
    ca: str = ""
    ca_file: str = ""
    token: str = ""
    token_file: str = ""
    cert: str = ""
    key: str = ""
    cert_file: str = ""
    key_file: str = ""
    server_name: str = ""
    insecure: bool = False

    def __repr__(self) -> str:
        return f"Credentials({self.server!r}, ***)"


def in_cluster(host: str, port: str) -> Credentials:
    """The credentials of the pod that we run in."""
    shown = f"[{host}]" if ":" in host else host
    return Credentials(
        server=f"https://{shown}:{port}",
        ca_file=f"{ACCOUNT}/ca.crt",
        token_file=f"{ACCOUNT}/token",
    )


def from_kubeconfig(content: object, folder: str) -> Credentials:
    """The credentials of a kubeconfig's current context; its relative paths begin at *folder*.

    Raises:
        InvalidArgument: it is no kubeconfig, or wants what is not supported here (exec and auth-provider plugins).
    """
    if not isinstance(content, dict):
        raise InvalidArgument("it must be a mapping")
    context = _named(content, "contexts", content.get("current-context"), "context")
    cluster = _named(content, "clusters", context.get("cluster"), "cluster")
    user = _named(content, "users", context.get("user"), "user")
    for plugin in ("exec", "auth-provider"):
        if plugin in user:
            raise InvalidArgument(f"users with {plugin} are not supported; use a token or a client certificate")
    return Credentials(
        server=str(cluster.get("server", "")).rstrip("/"),
        ca=_decoded(cluster, "certificate-authority-data"),
        ca_file=_path(cluster, "certificate-authority", folder),
        token=str(user.get("token", "")).strip(),
        token_file=_path(user, "tokenFile", folder),
        cert=_decoded(user, "client-certificate-data"),
        key=_decoded(user, "client-key-data"),
        cert_file=_path(user, "client-certificate", folder),
        key_file=_path(user, "client-key", folder),
        server_name=str(cluster.get("tls-server-name", "")),
        insecure=bool(cluster.get("insecure-skip-tls-verify", False)),
    )


def _named(content: Mapping[str, Any], plural: str, name: object, kind: str) -> Mapping[str, Any]:
    for entry in content.get(plural) or []:
        if isinstance(entry, dict) and entry.get("name") == name and isinstance(entry.get(kind), dict):
            return dict(entry[kind])
    raise InvalidArgument(f"it has no {kind} {name!r}")


def _decoded(values: Mapping[str, Any], key: str) -> str:
    try:
        return base64.b64decode("".join(str(values.get(key, "")).split()), validate=True).decode()
    except (binascii.Error, UnicodeDecodeError):
        raise InvalidArgument(f"{key} is not base64") from None


def _path(values: Mapping[str, Any], key: str, folder: str) -> str:
    text = str(values.get(key) or "")
    return posixpath.join(folder, text) if text else ""
