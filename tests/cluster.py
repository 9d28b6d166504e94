"""The driver as a Kubernetes cluster runs it: a controller, and a node with its agent, over an API server for tests.

    with in_cluster("pool=image:{root}/pool.img,size=6Gi") as driver:
        volume = driver.create("data", 64 * MIB, fs="ext4")

To a test it is a driver like any other: calls of the controller go to the one process, all others to the other.
"""

from __future__ import annotations

import json
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.driver import PROGRAM, Driver
from tests.fake.kubernetes import Kubernetes

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Iterator


class Member(Driver):
    """One program of a cluster: ``controller``, or ``node`` with its pools."""

    def __init__(self, root: Path, api: Kubernetes, command: str, *pools: str, **options: Any) -> None:  # noqa: ANN401
        super().__init__(root, *pools, **options)
        self.command = command
        self.kubeconfig = root / "kubeconfig"
        self.kubeconfig.write_text(json.dumps(kubeconfig(api)))
        (root / "kubelet").mkdir()

    @property
    def argv(self) -> list[str]:
        """The command line."""
        common = ["--endpoint", f"unix://{self.socket}", "--kubeconfig", str(self.kubeconfig), "--http-address", ""]
        node = [
            *("--node-id", self.node_id, "--run-dir", str(self.root / "run"), "--registration", "no"),
            *("--kubelet-dir", str(self.root / "kubelet")),
            *(word for pool in self.pools for word in ("--pool", pool)),
        ]
        return [*self.before, str(PROGRAM), self.command, *common, *(node if self.pools else []), *self.args]


class InCluster(Member):
    """A node, and the controller that its volumes are asked for at."""

    def __init__(self, root: Path, api: Kubernetes, *pools: str, **options: Any) -> None:  # noqa: ANN401
        super().__init__(root, api, "node", *pools, **options)
        self.api = api
        (root / "controller").mkdir()
        self.head = Member(root / "controller", api, "controller")

    def launch(self) -> subprocess.Popen[bytes]:
        """Start the node; the controller too where it does not run."""
        if not self.head.running:
            self.head.start()
        process = super().launch()
        self.controller = self.head.controller
        return process

    def is_ready(self) -> bool:
        """Whether the node is, and the controller knows of its room."""
        return super().is_ready() and self.capacity(node=self.node_id).available_capacity > 0

    def stop(self) -> None:
        """Stop both."""
        super().stop()
        if self.head.running:
            self.head.stop()

    def destroy(self) -> None:
        """Kill both, and remove all."""
        if self.head.running:
            self.head.kill()
        super().destroy()


def kubeconfig(api: Kubernetes) -> dict[str, Any]:
    """How to reach *api*."""
    named: dict[str, Any] = {
        "clusters": {"cluster": {"server": api.credentials.server}},
        "users": {"user": {}},
        "contexts": {"context": {"cluster": "test", "user": "test"}},
    }
    lists = {kind: [{"name": "test", **content}] for kind, content in named.items()}
    return {**lists, "current-context": "test"}


@contextmanager
def in_cluster(*pools: str, **options: Any) -> Iterator[InCluster]:  # noqa: ANN401
    """Run such a driver in a new folder, with a short path because a socket's must fit into 108 bytes."""
    with (
        Kubernetes() as api,
        InCluster(Path(tempfile.mkdtemp(prefix="csi-", dir="/tmp")), api, *pools, **options) as driver,
    ):
        yield driver
