"""etcd, API server, controller manager and scheduler of one cluster, as processes of this machine."""

from __future__ import annotations

import secrets
import ssl
import urllib.request
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.error import URLError

import yaml

from tests.e2e.processes import Daemon, eventually, run

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

NODE_NET = "10.89.0"
ADDRESS, PORT = f"{NODE_NET}.254", 6443
SERVER = f"https://{ADDRESS}:{PORT}"
SERVICE_NET = "10.96.0"
SERVICE_ADDRESS = f"{SERVICE_NET}.1"
"""Where pods find the API server; every node translates it, for there is no kube-proxy."""
ETCD, ETCD_PEERS = "http://127.0.0.1:2379", "http://127.0.0.1:2380"
READY_SECONDS = 90.0
KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "30")
BUSY = ("--kube-api-qps=200", "--kube-api-burst=400")
"""Controllers of a cluster with two cores are not to be what a test waits for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ControlPlane:
    """What it needs lies in `folder`: keys, tokens, kubeconfigs, etcd's data, logs."""

    folder: Path
    programs: Path
    etcd: Daemon
    api: Daemon
    controllers: Daemon
    scheduler: Daemon
    snapshots: Daemon
    """The snapshot-controller, which a cluster has or has not; it starts after its custom resources."""

    @property
    def daemons(self) -> tuple[Daemon, ...]:
        """All that every cluster has, in the order in which they start."""
        return self.etcd, self.api, self.controllers, self.scheduler

    def start(self) -> None:
        """Start all, and return when the API server says that it is ready."""
        for daemon in self.daemons:
            daemon.start()
        self.wait_ready()

    def wait_ready(self) -> None:
        """Wait until the API server answers /readyz."""

        def ready() -> bool:
            self.api.check()
            return answers(f"{SERVER}/readyz", self.folder / "ca.crt", token(self.folder, "admin"))

        eventually("the API server is ready", READY_SECONDS, ready)

    def stop(self) -> None:
        """End all of them; nothing of theirs is kept, so there is no need to be gentle."""
        for daemon in (self.snapshots, *reversed(self.daemons)):
            daemon.kill()


def make(folder: Path, programs: Path, logs: Path, nodes: list[str]) -> ControlPlane:
    """Make keys and tokens for a cluster with these nodes, and say how its programs are started."""
    folder.mkdir(parents=True)
    _make_keys(folder)
    _make_users(folder, nodes)

    def daemon(program: str, *flags: str) -> Daemon:
        return Daemon(name=program, argv=[programs / program, *flags], log=logs / f"{program}.log")

    return ControlPlane(
        folder=folder,
        programs=programs,
        etcd=daemon("etcd", *_etcd_flags(folder)),
        api=daemon("kube-apiserver", *_api_flags(folder)),
        controllers=daemon(
            "kube-controller-manager",
            f"--kubeconfig={folder}/controllers.kubeconfig",
            f"--service-account-private-key-file={folder}/sa.key",
            f"--root-ca-file={folder}/ca.crt",
            "--leader-elect=false",
            "--bind-address=127.0.0.1",
            *BUSY,
        ),
        scheduler=daemon(
            "kube-scheduler",
            f"--kubeconfig={folder}/scheduler.kubeconfig",
            "--leader-elect=false",
            "--bind-address=127.0.0.1",
            *BUSY,
        ),
        snapshots=daemon(
            "snapshot-controller",
            f"--kubeconfig={folder}/controllers.kubeconfig",
            "--feature-gates=CSIVolumeGroupSnapshot=true",
            "--retry-interval-start=200ms",
            *BUSY,
        ),
    )


def _etcd_flags(folder: Path) -> Iterator[str]:
    yield f"--data-dir={folder}/etcd"
    yield f"--listen-client-urls={ETCD}"
    yield f"--advertise-client-urls={ETCD}"
    yield f"--listen-peer-urls={ETCD_PEERS}"
    yield "--unsafe-no-fsync"  # power cuts are not what this tier is about


def _api_flags(folder: Path) -> Iterator[str]:
    yield f"--etcd-servers={ETCD}"
    yield f"--bind-address={ADDRESS}"
    yield f"--advertise-address={ADDRESS}"
    yield f"--secure-port={PORT}"
    yield f"--service-cluster-ip-range={SERVICE_NET}.0/24"
    yield f"--tls-cert-file={folder}/api.crt"
    yield f"--tls-private-key-file={folder}/api.key"
    yield f"--client-ca-file={folder}/ca.crt"
    yield f"--token-auth-file={folder}/tokens.csv"
    yield "--authorization-mode=Node,RBAC"
    yield "--enable-admission-plugins=NodeRestriction"
    yield "--service-account-issuer=https://kubernetes.default.svc"
    yield f"--service-account-key-file={folder}/sa.pub"
    yield f"--service-account-signing-key-file={folder}/sa.key"
    yield "--allow-privileged=true"
    yield f"--kubelet-client-certificate={folder}/kubelet-client.crt"
    yield f"--kubelet-client-key={folder}/kubelet-client.key"
    yield "--kubelet-preferred-address-types=InternalIP"
    yield "--endpoint-reconciler-type=none"
    yield "--max-requests-inflight=2000"
    yield "--max-mutating-requests-inflight=1000"


def _make_keys(folder: Path) -> None:
    run("openssl", "genrsa", "-out", folder / "sa.key", "2048")
    run("openssl", "rsa", "-in", folder / "sa.key", "-pubout", "-out", folder / "sa.pub")
    run("openssl", "req", "-x509", *KEY, "-subj", "/CN=e2e", "-keyout", folder / "ca.key", "-out", folder / "ca.crt")
    names = "DNS:localhost,DNS:kubernetes,DNS:kubernetes.default,DNS:kubernetes.default.svc"
    _sign(folder, "api", "/CN=kube-apiserver", f"{names},IP:127.0.0.1,IP:{ADDRESS},IP:{SERVICE_ADDRESS}")
    _sign(folder, "kubelet-client", "/O=system:masters/CN=kube-apiserver-kubelet-client", "DNS:kube-apiserver")


def _sign(folder: Path, name: str, subject: str, alternatives: str) -> None:
    signer = ("-CA", folder / "ca.crt", "-CAkey", folder / "ca.key")
    files = ("-keyout", folder / f"{name}.key", "-out", folder / f"{name}.crt")
    extensions = ("-addext", f"subjectAltName={alternatives}", "-addext", "basicConstraints=critical,CA:FALSE")
    run("openssl", "req", "-x509", *signer, *KEY, "-subj", subject, *extensions, *files)


def _make_users(folder: Path, nodes: list[str]) -> None:
    users = {
        "admin": ("admin", "system:masters"),
        "controllers": ("system:kube-controller-manager", "system:masters"),
        "scheduler": ("system:kube-scheduler", "system:masters"),
        **{node: (f"system:node:{node}", "system:nodes") for node in nodes},
    }
    lines = []
    for number, (name, (user, group)) in enumerate(users.items()):
        made = secrets.token_hex(16)
        lines.append(f"{made},{user},{number},{group}\n")
        (folder / f"{name}.token").write_text(made)
        (folder / f"{name}.kubeconfig").write_text(_kubeconfig(folder, made))
    (folder / "tokens.csv").write_text("".join(lines))


def _kubeconfig(folder: Path, bearer: str) -> str:
    return yaml.safe_dump(
        {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [
                {"name": "e2e", "cluster": {"server": SERVER, "certificate-authority": str(folder / "ca.crt")}}
            ],
            "users": [{"name": "e2e", "user": {"token": bearer}}],
            "contexts": [{"name": "e2e", "context": {"cluster": "e2e", "user": "e2e"}}],
            "current-context": "e2e",
        }
    )


def token(folder: Path, user: str) -> str:
    """Return the bearer token of a user of the cluster whose keys are in `folder`."""
    return (folder / f"{user}.token").read_text()


def answers(url: str, ca: Path, bearer: str) -> bool:
    """Whether something answers 200 there."""
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {bearer}"})  # noqa: S310 - our own URL
    trusted = ssl.create_default_context(cafile=str(ca))
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=trusted))
    try:
        with opener.open(request, timeout=2) as response:
            return bool(response.status == 200)
    except (URLError, TimeoutError, ConnectionError):
        return False
