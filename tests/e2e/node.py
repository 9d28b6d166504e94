"""A node: namespaces with their own kubelet, container runtime, mounts and network on this machine.

with the mounts of the machine, but its own     /var/lib/kubelet  /var/lib/cni  /run  /var/log  /mnt/disks
with its own pid 1: when that is killed, every process, mount and pod network of the node goes with it
eth0 in NODE_NET; pods in POD_NET.INDEX.0/24; no default route, so that nothing leaves the machine
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from tests.e2e import control_plane, disks
from tests.e2e.control_plane import NODE_NET, SERVICE_ADDRESS, SERVICE_NET
from tests.e2e.processes import DIES_WITH_US, STOP_SECONDS, Daemon, eventually, remove_cgroups, run

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.e2e.disks import Disk

BRIDGE = "nodes"
POD_NET = "10.88"
KUBELET_DIR = Path("/var/lib/kubelet")
RUNTIME_SOCKET = Path("/run/containerd/containerd.sock")
CNI_PLUGINS = Path("/usr/lib/cni")
PAUSE_IMAGE = "localhost/e2e-pause:1"
OWN_FOLDERS = ("/var/lib", "/run", "/var/log", "/mnt")
"""Empty in a node: what belongs to the machine's own Kubernetes, if it has one, is none of ours."""
START_SECONDS = 60.0
ROUTES = range(1, 5)
"""The indices of nodes that have a route; there are never more."""

FIRST_PROCESS = """
import os, signal
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
print(os.getpid(), flush=True)
while True:
    signal.pause()
"""
"""Pid 1 of a node: all it does is let the kernel reap what is orphaned there (SIGCHLD ignored, wait(2))."""


@dataclass(slots=True, kw_only=True)
class Node:
    """The node number `index`, with everything it writes in `folder`."""

    name: str
    index: int
    folder: Path
    keys: Path
    programs: Path
    logs: Path
    disks: tuple[Disk, ...]
    images: Sequence[Path] = ()
    _init: subprocess.Popen[bytes] | None = None
    pid: int = 0
    runtime: Daemon = field(init=False)
    kubelet: Daemon = field(init=False)
    _daemons: list[Daemon] = field(default_factory=list)

    @property
    def address(self) -> str:
        """The address of the node."""
        return f"{NODE_NET}.{self.index}"

    @property
    def inside(self) -> tuple[str, ...]:
        """The words before a command that make it run in the node."""
        return ("nsenter", "-t", str(self.pid), "-m", "-p", "-u", "-n", "--")

    def run(self, *argv: str | Path, seconds: float = 60.0) -> str:
        """Run a program in the node and return what it printed."""
        return run(*self.inside, *argv, seconds=seconds)

    def path(self, inside: Path | str) -> Path:
        """Return where a file of the node is seen from here."""
        return Path(f"/proc/{self.pid}/root") / str(inside).lstrip("/")

    def loop_devices(self) -> dict[str, str]:
        """Return the loop devices whose files are on the node's disks, with those files."""
        found = (disks.on_filesystem(self.path(disk.target)) for disk in self.disks)
        return {device: file for each in found for device, file in each.items()}

    # Start and end

    def start(self) -> None:
        """Make the namespaces, start containerd with its images, and the kubelet."""
        self._make_namespaces()
        self._make_mounts()
        self._make_network()
        self.runtime = self._daemon("containerd", "containerd", "-c", self._runtime_config())
        self.runtime.start()
        eventually(f"containerd of {self.name} answers", START_SECONDS, self._runtime_answers)
        for image in self.images:
            self.ctr("images", "import", str(image))
        self.kubelet = self._daemon(
            "kubelet",
            self.programs / "kubelet",
            f"--config={self._kubelet_config()}",
            f"--kubeconfig={self.keys}/{self.name}.kubeconfig",
            f"--hostname-override={self.name}",
            f"--node-ip={self.address}",
            f"--node-labels=topology.kubernetes.io/zone=zone-{self.name[-1]}",
            f"--root-dir={KUBELET_DIR}",
            f"--cert-dir={self.folder}/pki",
            "-v=2",
        )
        self.kubelet.start()

    def stop(self) -> None:
        """Kill pid 1, and with it all that runs or is mounted in the node."""
        if self._init is not None:
            self._init.kill()
            self._init.wait()
            assert self._init.stdout is not None
            self._init.stdout.close()
            for daemon in self._daemons:
                daemon.wait()
            eventually(f"all that ran in {self.name} is gone", STOP_SECONDS, self._has_ended)
            remove_cgroups()

    def _has_ended(self) -> bool:
        """Whether pid 1 is dead: the kernel kills the others first (pid_namespaces(7))."""
        try:
            return Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
        except (FileNotFoundError, ProcessLookupError):
            return True

    def ctr(self, *words: str) -> str:
        """Call containerd's own client on what belongs to Kubernetes."""
        return self.run("ctr", "--address", RUNTIME_SOCKET, "--namespace", "k8s.io", *words, seconds=180.0)

    def _runtime_answers(self) -> bool:
        self.runtime.check()
        argv = [*self.inside, "ctr", "--address", str(RUNTIME_SOCKET), "version"]
        return subprocess.run(argv, check=False, capture_output=True).returncode == 0

    def _daemon(self, name: str, *argv: str | Path) -> Daemon:
        log = self.logs / f"{name}-{self.name}.log"
        self._daemons.append(Daemon(name=name, argv=argv, log=log, within=self.inside))
        return self._daemons[-1]

    def _make_namespaces(self) -> None:
        for name in ("kubelet", "containerd", "cni", "pki"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        unshare = ("unshare", "--fork", "--kill-child", "--mount-proc", "--mount", "--pid", "--uts", "--net")
        argv = [*DIES_WITH_US, *unshare, sys.executable, "-c", FIRST_PROCESS]
        self._init = subprocess.Popen(argv, stdout=subprocess.PIPE, start_new_session=True)
        assert self._init.stdout is not None
        assert self._init.stdout.readline() == b"1\n"
        outer = self._init.pid
        self.pid = int(Path(f"/proc/{outer}/task/{outer}/children").read_text())

    def _make_mounts(self) -> None:
        self.run("hostname", self.name)
        for hidden in OWN_FOLDERS:
            self.run("mount", "-t", "tmpfs", "-o", "mode=0755", "tmpfs", hidden)
        for folder in (KUBELET_DIR, Path("/run/containerd"), Path("/run/netns"), Path("/var/lib/cni")):
            self.run("mkdir", "-p", folder)
        self.run("mount", "--bind", self.folder / "kubelet", KUBELET_DIR)
        for disk in self.disks:
            self.run("mkdir", "-p", disk.target)
            self.run("mount", disk.device, disk.target)
        self.run("mount", "--make-rshared", "/")  # what is mounted in a container is seen by the kubelet

    def _make_network(self) -> None:
        port = f"to-{self.name}"
        run("ip", "link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", str(self.pid))
        run("ip", "link", "set", port, "master", BRIDGE, "up")
        self.run("ip", "link", "set", "lo", "up")
        self.run("ip", "address", "add", f"{self.address}/24", "dev", "eth0")
        self.run("ip", "link", "set", "eth0", "up")
        self.run("ip", "route", "add", f"{SERVICE_NET}.0/24", "dev", "eth0")
        for other in ROUTES:
            if other != self.index:
                self.run("ip", "route", "add", f"{POD_NET}.{other}.0/24", "via", f"{NODE_NET}.{other}")
        server = f"{control_plane.ADDRESS}:{control_plane.PORT}"
        for chain in ("PREROUTING", "OUTPUT"):
            rule = ("-d", SERVICE_ADDRESS, "-p", "tcp", "--dport", "443", "-j", "DNAT", "--to-destination", server)
            self.run("iptables", "-t", "nat", "-A", chain, *rule)

    # Configurations

    def _runtime_config(self) -> Path:
        subnet = [[{"subnet": f"{POD_NET}.{self.index}.0/24"}]]
        network = {
            "cniVersion": "0.4.0",
            "name": "pods",
            "plugins": [
                {
                    "type": "bridge",
                    "bridge": "cni0",
                    "isGateway": True,
                    "ipam": {"type": "host-local", "ranges": subnet, "routes": [{"dst": "0.0.0.0/0"}]},
                }
            ],
        }
        (self.folder / "cni/pods.conflist").write_text(json.dumps(network))
        config = self.folder / "containerd.toml"
        config.write_text(f"""
version = 2
root = "{self.folder}/containerd"
state = "/run/containerd"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{PAUSE_IMAGE}"
  restrict_oom_score_adj = true # this may run where root has no CAP_SYS_RESOURCE
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "{CNI_PLUGINS}"
    conf_dir = "{self.folder}/cni"
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
""")
        return config

    def _kubelet_config(self) -> Path:
        config = self.folder / "kubelet.json"
        config.write_text(
            json.dumps(
                {
                    "apiVersion": "kubelet.config.k8s.io/v1beta1",
                    "kind": "KubeletConfiguration",
                    "authentication": {
                        "anonymous": {"enabled": False},
                        "webhook": {"enabled": False},
                        "x509": {"clientCAFile": f"{self.keys}/ca.crt"},
                    },
                    "authorization": {"mode": "AlwaysAllow"},
                    "containerRuntimeEndpoint": f"unix://{RUNTIME_SOCKET}",
                    "cgroupDriver": "cgroupfs",
                    "cgroupsPerQOS": False,
                    "enforceNodeAllocatable": [],
                    "failCgroupV1": False,
                    "failSwapOn": False,
                    "address": self.address,
                    "readOnlyPort": 0,
                    "resolvConf": "",
                    "podLogsDir": f"{self.logs}/pods-{self.name}",
                    "imageGCHighThresholdPercent": 100,
                    "evictionHard": {"memory.available": "100Mi"},
                    "maxPods": 250,
                    "syncFrequency": "10s",  # online growth waits for it; the default is a minute
                    "volumeStatsAggPeriod": "10s",
                    "nodeStatusUpdateFrequency": "5s",
                    "registryPullQPS": 0,
                    "eventRecordQPS": 0,
                    "kubeAPIQPS": 200,
                    "kubeAPIBurst": 400,
                }
            )
        )
        return config


def programs_missing() -> list[str]:
    """Name the programs of this machine that a node needs and that are not there."""
    needed = ("containerd", "ctr", "runc", "ip", "iptables", "nsenter", "unshare", "setpriv", "hostname")
    missing = [program for program in needed if shutil.which(program) is None]
    return missing + [str(path) for path in (CNI_PLUGINS / "bridge", CNI_PLUGINS / "host-local") if not path.exists()]
