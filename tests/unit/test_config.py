"""Configuration from flags, a file and the environment."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from csi_local import config
from csi_local.app import crash_point
from csi_local.model.errors import InvalidArgument
from csi_local.model.pool import PoolKind, parse_pool
from csi_local.model.quantity import GIB

if TYPE_CHECKING:
    from pathlib import Path

POOL = "fast=path:/mnt/fast,media=ssd"
FULL = """
endpoint: unix:///run/x.sock
nodeId: node-7
runDir: /run/other
maxVolumes: 12
logLevel: debug
logFormat: json
httpAddress: 127.0.0.1:9000
registration: no
pools:
  - fast=path:/mnt/fast,media=ssd
  - {name: own, path: /mnt/own, mounted: yes}
  - {name: slow, image: /srv/slow.img, size: 20Gi, fs: btrfs, reserve: 5%, overcommit: 1.5}
  - {name: disk, device: /dev/disk/by-id/x}
"""
KUBECONFIG = """
current-context: here
contexts: [{name: here, context: {cluster: one, user: me}}]
clusters: [{name: one, cluster: {server: "https://127.0.0.1:6443"}}]
users: [{name: me, user: {token: hush}}]
"""


@pytest.fixture(autouse=True)
def _bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (
        "CSI_LOCAL_CONFIG",
        "CSI_ENDPOINT",
        "NODE_ID",
        "NODE_NAME",
        "NAMESPACE",
        "KUBERNETES_SERVICE_HOST",
        "CSI_LOCAL_CRASH_POINT",
    ):
        monkeypatch.delenv(name, raising=False)


def load(**flags: Any) -> config.Config:  # noqa: ANN401
    """Read the configuration with these flags, and with one pool unless told otherwise."""
    return config.load({"pool": [POOL], "node_id": "node-1"} | flags)


def from_file(folder: Path, text: str, **flags: Any) -> config.Config:  # noqa: ANN401
    """Read the configuration from a file."""
    path = folder / "config.yaml"
    path.write_text(text, encoding="utf-8")
    return config.load({"config": str(path)} | flags)


class TestFlags:
    def test_defaults(self) -> None:
        found = load()
        assert found.pools == (parse_pool(POOL),)
        assert (found.endpoint, found.run_dir) == (config.DEFAULT_ENDPOINT, config.DEFAULT_RUN_DIR)
        assert (found.max_volumes, found.log_level, found.log_format) == (1000, "info", "text")
        assert found.crash_point == ""

    def test_what_is_not_given_is_not_there(self) -> None:
        assert load(endpoint=None, max_volumes=None, log_level=None) == load()

    def test_given(self) -> None:
        found = load(endpoint="unix:///x.sock", max_volumes="0", run_dir="/run/x/", log_level="error")
        assert (found.endpoint, found.max_volumes, found.run_dir) == ("unix:///x.sock", 0, "/run/x")
        assert found.log_level == "error"

    @pytest.mark.parametrize(
        ("flags", "message"),
        [
            ({"pool": []}, "no pools"),
            ({"pool": None}, "no pools"),
            ({"pool": [POOL, POOL]}, "same name"),
            ({"pool": ["nonsense"]}, "write NAME=KIND"),
            ({"node_id": "x" * 64}, "node id"),
            ({"node_id": "-x"}, "node id"),
            ({"node_id": "a/b"}, "node id"),
            ({"run_dir": "relative"}, "absolute"),
            ({"run_dir": "/run/../etc"}, "absolute"),
            ({"max_volumes": "-1"}, "max volumes"),
            ({"max_volumes": "many"}, "max volumes"),
            ({"max_volumes": str(1 << 21)}, "max volumes"),
            ({"log_level": "loud"}, "log level"),
            ({"log_format": "xml"}, "log format"),
            ({"http_address": "9808"}, "http address"),
            ({"http_address": "x:99999"}, "http address"),
            ({"kubelet_dir": "kubelet"}, "kubelet directory"),
            ({"registration": "perhaps"}, "registration"),
            ({"config": "/none.yaml"}, "No such file"),
        ],
    )
    def test_refused(self, flags: dict[str, Any], message: str) -> None:
        with pytest.raises(InvalidArgument, match=message):
            load(**flags)


class TestKubernetes:
    def test_alone_nothing_is_served_over_http(self) -> None:
        assert load().http_address is None
        assert load(http_address="[::1]:0").http_address == ("::1", 0)

    def test_a_node(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("NODE_NAME", "node-3")
        monkeypatch.setenv("NAMESPACE", "storage")
        monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
        found = config.load({"pool": [POOL], "kubelet_dir": "/var/snap/kubelet/"}, config.Role.NODE)
        assert (found.node_id, found.namespace) == ("node-3", "storage")
        assert found.credentials is not None
        assert found.credentials.server == "https://10.0.0.1:443"
        assert found.endpoint == "unix:///var/snap/kubelet/plugins/csi-local.io/csi.sock"
        assert (found.http_address, found.registration) == (("0.0.0.0", 9808), True)  # noqa: S104 (the default)

    def test_a_node_told_otherwise(self, tmp_path: Path) -> None:
        (tmp_path / "kubeconfig").write_text(KUBECONFIG)
        flags = {"pool": [POOL], "node_id": "n", "http_address": "", "registration": "no", "namespace": "x"}
        flags |= {"kubeconfig": str(tmp_path / "kubeconfig"), "endpoint": "unix:///x.sock"}
        found = config.load(flags, config.Role.NODE)
        assert (found.http_address, found.registration, found.namespace) == (None, False, "x")
        assert found.endpoint == "unix:///x.sock"
        assert found.credentials is not None
        assert found.credentials.server == "https://127.0.0.1:6443"
        assert "hush" not in repr(found)

    def test_a_controller_has_no_pools(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
        assert config.load({}, config.Role.CONTROLLER).pools == ()
        with pytest.raises(InvalidArgument, match="no pools"):
            config.load({}, config.Role.NODE)

    @pytest.mark.parametrize(
        ("content", "message"), [("{[", "not YAML"), ("{}", "no context"), (None, "No such file")], ids=str
    )
    def test_no_way_to_the_api(self, tmp_path: Path, content: str | None, message: str) -> None:
        if content is not None:
            (tmp_path / "kubeconfig").write_text(content)
        with pytest.raises(InvalidArgument, match=message):
            config.load({"kubeconfig": str(tmp_path / "kubeconfig")}, config.Role.CONTROLLER)

    def test_outside_a_cluster(self) -> None:
        with pytest.raises(InvalidArgument, match="--kubeconfig"):
            config.load({}, config.Role.CONTROLLER)


class TestFile:
    def test_full(self, tmp_path: Path) -> None:
        found = from_file(tmp_path, FULL)
        assert (found.endpoint, found.node_id, found.run_dir) == ("unix:///run/x.sock", "node-7", "/run/other")
        assert (found.max_volumes, found.log_level, found.log_format) == (12, "debug", "json")
        assert (found.http_address, found.registration) == (("127.0.0.1", 9000), False)
        fast, own, slow, disk = found.pools
        assert own == parse_pool("own=path:/mnt/own,mounted=yes")
        assert fast == parse_pool(POOL)
        assert slow == parse_pool("slow=image:/srv/slow.img,size=20Gi,fs=btrfs,reserve=5%,overcommit=1.5")
        assert slow.size == 20 * GIB
        assert (disk.kind, disk.target) == (PoolKind.DEVICE, "/dev/disk/by-id/x")

    def test_a_flag_beats_it(self, tmp_path: Path) -> None:
        found = from_file(tmp_path, FULL, node_id="node-8", pool=[POOL])
        assert found.node_id == "node-8"
        assert len(found.pools) == 1

    @pytest.mark.parametrize("name", ["maxVolumes", "max-volumes", "max_volumes", "MAXVOLUMES"])
    def test_names_as_people_write_them(self, tmp_path: Path, name: str) -> None:
        assert from_file(tmp_path, f"pools: ['{POOL}']\n{name}: 3\nnodeId: n").max_volumes == 3

    @pytest.mark.parametrize(
        "text",
        [
            "",
            "pools: []",
            "pools:",
            f"pools: {POOL}",
            "- a list",
            "just text",
            "{",
            "pools: [5]",
            "pools: [{name: a}]",
            "pools: [{path: /x}]",
            "pools: [{name: a, path: /x, image: /y}]",
            "pools: [{name: a, path: /x, media: [ssd]}]",
            "pools: [{name: a, path: /x, colour: red}]",
            "pools: [{name: a, path: null}]",
            f"pools: ['{POOL}']\ncolour: red",
            f"pools: ['{POOL}']\npool: ['{POOL}']",
            f"pools: ['{POOL}']\nmaxVolumes: 1.5",
            f"pools: ['{POOL}']\nmaxVolumes: true",
            f"pools: ['{POOL}']\nlogLevel: [info]",
            f"pools: ['{POOL}']\nnodeId: [x]",
            "a: !!python/object/apply:os.system ['true']",
        ],
    )
    def test_refused(self, tmp_path: Path, text: str) -> None:
        with pytest.raises(InvalidArgument):
            from_file(tmp_path, text, node_id=None if "nodeId" in text else "node-1")

    def test_not_text(self, tmp_path: Path) -> None:
        (tmp_path / "config.yaml").write_bytes(b"\xff\xfe\x00")
        with pytest.raises(InvalidArgument, match="not YAML"):
            config.load({"config": str(tmp_path / "config.yaml")})


class TestEnvironment:
    def test_in_place_of_flags(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        (tmp_path / "config.yaml").write_text(FULL, encoding="utf-8")
        monkeypatch.setenv("CSI_LOCAL_CONFIG", str(tmp_path / "config.yaml"))
        assert config.load({}).node_id == "node-7"

    def test_after_flags_and_file(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("CSI_ENDPOINT", "unix:///env.sock")
        monkeypatch.setenv("NODE_ID", "node-env")
        assert load(node_id=None).node_id == "node-env"
        assert load().node_id == "node-1"
        assert load().endpoint == "unix:///env.sock"
        assert load(endpoint="unix:///flag.sock").endpoint == "unix:///flag.sock"


class TestCrashPoint:
    def test_nothing(self) -> None:
        crash_point("")("create:0:MakeDirectory")

    def test_trace(self, tmp_path: Path) -> None:
        passed = crash_point(f"trace:{tmp_path}/trace")
        passed("one")
        passed("two")
        assert (tmp_path / "trace").read_text() == "one\ntwo\n"

    def test_kill_elsewhere(self) -> None:
        crash_point("kill:create:1:WriteRecord")("create:0:MakeDirectory")

    def test_nonsense(self) -> None:
        with pytest.raises(ValueError, match="explode"):
            crash_point("explode")
