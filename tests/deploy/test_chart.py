from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from csi_local import cli, config
from csi_local.model import parameters, pool
from csi_local.model.parameters import parse_parameters
from tests.deploy.manifests import CHART, ROOT, Manifest, check, container, helm, of_kind, pods, rendered

if TYPE_CHECKING:
    from collections.abc import Iterator

VALUES = sorted((Path(__file__).parent / "values").glob("*.yaml"))
GROUPS, EVERYTHING = (next(one for one in VALUES if one.stem == name) for name in ("groups", "everything"))
each = pytest.mark.parametrize("values", [None, *VALUES], ids=lambda one: one.stem if one else "defaults")
PLACES = {"$(NODE_NAME)": "node-1", "$(NAMESPACE)": "csi-local"}


def _given(values: Path | None) -> tuple[str | Path, ...]:
    return ("--values", values) if values else ()


@each
def test_kubernetes_takes_all_of_it(values: Path | None) -> None:
    check(rendered(*_given(values)))


def test_an_older_kubernetes_gets_no_policy_that_it_cannot_follow() -> None:
    assert not of_kind(rendered(kubernetes="1.31.0"), "ValidatingAdmissionPolicy")
    assert of_kind(rendered(), "ValidatingAdmissionPolicy")


@each
def test_the_driver_understands_what_it_is_told(values: Path | None, tmp_path: Path) -> None:
    """The chart's arguments and configuration files, read by the driver's own parsers."""
    manifests = rendered(*_given(values))
    credentials = tmp_path / "kubeconfig"
    credentials.write_text(KUBECONFIG)
    seen = []
    for name, pod in pods(manifests):
        arguments = [_filled(one) for one in container(pod)["args"]]
        seen.append(arguments[0])
        files = {volume["configMap"]["name"] for volume in pod["volumes"] if "configMap" in volume}
        flags = vars(cli._parser().parse_args([*arguments, "--kubeconfig", str(credentials)]))
        if arguments[0] == "node":
            assert files == {name}
            flags["config"] = str(tmp_path / name)
            Path(flags["config"]).write_text(of_kind(manifests, "ConfigMap")[name]["data"]["config.yaml"])
        loaded = config.load({key: flags.get(key) for key in SETTINGS}, config.Role(arguments[0]))
        assert loaded.namespace == "csi-local"
        assert loaded.node_id == "node-1" or arguments[0] == "controller"
    assert set(seen) == {"node", "controller"}


SETTINGS = (
    *("config", "endpoint", "node_id", "run_dir", "kubelet_dir", "registration", "http_address", "namespace"),
    *("kubeconfig", "log_level", "log_format", "pool", "max_volumes"),
)
KUBECONFIG = json.dumps(
    {
        "clusters": [{"name": "one", "cluster": {"server": "https://127.0.0.1:6443"}}],
        "users": [{"name": "one", "user": {"token": "none"}}],
        "contexts": [{"name": "one", "context": {"cluster": "one", "user": "one"}}],
        "current-context": "one",
    }
)


def _filled(argument: str) -> str:
    for name, value in PLACES.items():
        argument = argument.replace(name, value)
    return argument


def test_each_group_has_its_pools_and_their_directories() -> None:
    manifests = rendered("--values", GROUPS)
    sets = of_kind(manifests, "DaemonSet")
    assert set(sets) == {"csi-local-node-fast", "csi-local-node-slow"}
    fast, slow = (_host_paths(sets[f"csi-local-node-{name}"]) for name in ("fast", "slow"))
    anyway = {"/var/lib/k0s/kubelet", "/run/csi-local", "/dev"}
    assert fast == anyway | {"/srv/images"}  # once for two images
    assert slow == anyway | {"/mnt/hdd", "/srv/photos"}


def _host_paths(one: Manifest) -> set[str]:
    """What is mounted from the host: each at its own path, or it would not be found."""
    pod = one["spec"]["template"]["spec"]
    paths = {volume["name"]: volume["hostPath"]["path"] for volume in pod["volumes"] if "hostPath" in volume}
    mounts = {mount["name"]: mount["mountPath"] for mount in container(pod)["volumeMounts"] if mount["name"] in paths}
    assert mounts == paths
    return set(paths.values())


def test_what_the_node_mounts_is_seen_by_the_host_and_outlives_the_container() -> None:
    pod = dict(pods(rendered()))["csi-local-node"]
    propagation = {one["mountPath"]: one.get("mountPropagation") for one in container(pod)["volumeMounts"]}
    assert propagation["/var/lib/kubelet"] == propagation["/run/csi-local"] == "Bidirectional"
    assert propagation["/var/lib/csi-local"] == "HostToContainer"


@pytest.mark.parametrize("run", ["/var/lib/kubelet/plugins/csi-local.io/run", "/var/lib/kubelet/run"])
def test_what_is_in_the_kubelet_s_directory_is_mounted_once(run: str) -> None:
    """Twice, with what is mounted there propagated to the host, it would be covered on the host itself."""
    one = of_kind(rendered("--set", f"runDir={run}"), "DaemonSet")["csi-local-node"]
    assert _host_paths(one) == {"/var/lib/kubelet", "/dev", "/var/lib/csi-local"}
    assert "run" not in str(container(one["spec"]["template"]["spec"])["volumeMounts"]).replace("/run/cryptsetup", "")


def test_what_is_in_another_directory_is_mounted_once() -> None:
    pools = '[{"name": "a", "path": "/srv/a"}, {"name": "b", "image": "/srv/b/b.img", "size": "1Gi"}]'
    group = f'nodeGroups=[{{"name": "", "pools": {pools}, "directories": ["/srv/b/x", "/srv/b-x", "/srv/a//y"]}}]'
    one = of_kind(rendered("--set-json", group), "DaemonSet")["csi-local-node"]
    assert _host_paths(one) == {"/var/lib/kubelet", "/run/csi-local", "/dev", "/srv/a", "/srv/b", "/srv/b-x"}


@each
def test_probes_ask_a_port_that_their_container_has(values: Path | None) -> None:
    """The kubelet looks a port's name up in the same container; a number is the pod's."""
    for _, pod in pods(rendered(*_given(values))):
        numbers = {port["containerPort"] for one in pod["containers"] for port in one.get("ports", [])}
        for one in pod["containers"]:
            names = {port["name"] for port in one.get("ports", [])}
            probes = [one[name] for name in ("startupProbe", "livenessProbe", "readinessProbe") if name in one]
            assert len(probes) == 3 or one["name"] != "csi-local"
            assert all(probe["httpGet"]["port"] in names | numbers for probe in probes), one["name"]


@each
def test_only_the_driver_on_a_node_is_privileged(values: Path | None) -> None:
    for name, pod in pods(rendered(*_given(values))):
        for one in pod["containers"]:
            if (name.startswith("csi-local-node"), one["name"]) == (True, "csi-local"):
                assert one["securityContext"]["privileged"]
            else:
                assert one["securityContext"]["capabilities"] == {"drop": ["ALL"]}
                assert not one["securityContext"]["allowPrivilegeEscalation"]
            assert one["securityContext"]["readOnlyRootFilesystem"]


def test_the_controller_has_nothing_of_the_host() -> None:
    pod = dict(pods(rendered()))["csi-local-controller"]
    assert not pod["hostNetwork"]
    assert not any("hostPath" in volume for volume in pod["volumes"])
    assert pod["securityContext"]["runAsNonRoot"]
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}


def test_an_account_may_do_nothing_to_everything() -> None:
    """No wildcard, no secrets but those named, and the controller cannot write what nodes answer."""
    manifests = rendered("--values", EVERYTHING)
    roles = of_kind(manifests, "ClusterRole") | of_kind(manifests, "Role")
    for role in roles.values():
        for rule in role["rules"]:
            assert "*" not in [*rule["apiGroups"], *rule["resources"], *rule["verbs"]]
            assert "secrets" not in rule["resources"] or (rule["verbs"] == ["get"] and rule["resourceNames"])
            assert role["metadata"]["name"] == "csi-local-node" or not _answers(rule)


def test_the_controller_may_ask_whether_a_node_has_left() -> None:
    rules = of_kind(rendered(), "ClusterRole")["csi-local-controller"]["rules"]
    assert {"apiGroups": [""], "resources": ["nodes"], "verbs": ["get"]} in rules


def test_nodes_read_those_secrets_that_are_named_and_no_others() -> None:
    roles = [one for one in rendered("--values", EVERYTHING) if one["kind"] == "Role"]
    rules = [(one["metadata"]["namespace"], rule) for one in roles for rule in one["rules"]]
    named = {where: rule["resourceNames"] for where, rule in rules if rule["resources"] == ["secrets"]}
    assert named == {"csi-local": ["volume-key"], "shop": ["a", "b"]}
    bindings = [one for one in rendered("--values", EVERYTHING) if one["kind"] == "RoleBinding"]
    subjects = {one["roleRef"]["name"]: one["subjects"] for one in bindings}
    assert [one["name"] for one in subjects["csi-local-node-rotation"]] == ["csi-local-node"]
    assert "secrets" not in str([one for one in rendered() if one["kind"] in ("Role", "ClusterRole")])


def _answers(rule: dict[str, Any]) -> bool:
    return rule["apiGroups"] == ["csi-local.io"] and any(one.endswith("/status") for one in rule["resources"])


def test_every_sidecar_may_ask_more_than_five_times_a_second() -> None:
    pod = dict(pods(rendered("--values", EVERYTHING)))["csi-local-controller"]
    sidecars = [one for one in pod["containers"] if one["name"] != "csi-local"]
    assert len(sidecars) == 3
    for one in sidecars:
        assert {"--kube-api-qps=200", "--kube-api-burst=400"} <= set(one["args"]), one["name"]


def test_snapshots_are_on_and_groups_are_off() -> None:
    """csi-snapshotter does nothing where it is to handle groups and their CRDs are not there."""
    assert _snapshotter() == {"snapshot.storage.k8s.io"}
    assert _snapshotter("--values", EVERYTHING) == {"snapshot.storage.k8s.io", "groupsnapshot.storage.k8s.io"}
    off = rendered("--set", "sidecars.snapshotter.enabled=false")
    assert "csi-local-snapshotter" not in of_kind(off, "ClusterRole")
    assert all(one["name"] != "csi-snapshotter" for one in dict(pods(off))["csi-local-controller"]["containers"])


def _snapshotter(*arguments: str | Path) -> set[str]:
    """The API groups of snapshots that csi-snapshotter may speak to; its gates say the same."""
    manifests = rendered(*arguments)
    sidecar = container(dict(pods(manifests))["csi-local-controller"], "csi-snapshotter")
    rules = of_kind(manifests, "ClusterRole")["csi-local-snapshotter"]["rules"]
    found = {group for rule in rules for group in rule["apiGroups"] if group}
    gate = "--feature-gates=CSIVolumeGroupSnapshot=true" in sidecar["args"]
    assert gate == ("groupsnapshot.storage.k8s.io" in found)
    return found


def test_the_classes_of_the_chart_are_the_drivers_own() -> None:
    for one in of_kind(rendered(), "StorageClass").values():
        parse_parameters(one.get("parameters", {}))
        assert one["volumeBindingMode"] == "WaitForFirstConsumer"
        assert one["allowVolumeExpansion"]


def test_values_are_held_to_what_the_driver_knows() -> None:
    """The schema of the values names the parameters and the keys of pools that there are."""
    schema = json.loads((CHART / "values.schema.json").read_text())["definitions"]
    assert set(schema["storageClass"]["properties"]["parameters"]["properties"]) == set(parameters.NAMES)
    known = {str(kind) for kind in pool.PoolKind}.union(*pool._KEYS.values())
    assert set(schema["pool"]["properties"]) - {"name"} >= known


def test_the_reference_has_every_value() -> None:
    page = (ROOT / "docs/reference/chart.md").read_text()
    missing = [name for name in _names(yaml.safe_load((CHART / "values.yaml").read_text())) if f"`{name}`" not in page]
    assert not missing


def _names(values: dict[str, Any]) -> Iterator[str]:
    """The values' names, two words deep at most."""
    for name, value in values.items():
        deeper = isinstance(value, dict) and value
        yield from (f"{name}.{one}" for one in value) if deeper else (name,)


def _wrong() -> Iterator[tuple[str, str]]:
    """Settings that are mistakes, and a word of what helm says."""
    pools = "nodeGroups[0].pools[0]"
    yield "kubletDir=/var/lib/kubelet", "kubletDir"
    yield "kubeletDir=var/lib/kubelet", "kubeletDir"
    yield "kubeletDir=/var/../etc", "kubeletDir"
    yield "runDir=/", "runDir"
    yield "nodeGroups=[]", "nodeGroups"
    yield 'nodeGroups=[{"name": "Big", "pools": [{"name": "a", "path": "/a"}]}]', "name"
    yield 'nodeGroups=[{"name": "", "pools": []}]', "pools"
    yield 'nodeGroups=[{"name": "", "pools": [{"name": "a"}]}]', "oneOf"
    yield 'nodeGroups=[{"name": "", "pools": [{"name": "a", "path": "/a", "image": "/b"}]}]', "oneOf"
    yield 'nodeGroups=[{"name": "", "pools": [{"name": "a", "image": "/srv/a.img"}]}]', "oneOf"
    yield 'nodeGroups=[{"name": "", "pools": [{"name": "a", "device": "/srv/a"}]}]', "device"
    yield (
        'nodeGroups=[{"name": "", "pools": [{"name": "a", "image": "/a.img", "size": "1Gi"}]}]',
        "directory of its own",
    )
    yield from _misplaced()
    yield f"{pools}.medium=ssd", "medium"
    yield f"{pools}.media=floppy", "media"
    yield "storageClasses[0].parameters.meida=ssd", "meida"
    yield "storageClasses[0].volumeBindingMode=Later", "volumeBindingMode"
    yield "sidecars.kubeAPIQPS=0", "kubeAPIQPS"
    yield "sidecars.timeout=30", "timeout"
    yield "sidecars.leaderElection=false", "leaderElection"
    yield "metrics.port=70000", "port"
    yield "logLevel=verbose", "logLevel"
    yield "image.pullPolicy=Sometimes", "pullPolicy"
    yield "controller.replicas=-1", "replicas"


def _misplaced() -> Iterator[tuple[str, str]]:
    """Directories, pools and groups that get in each other's way."""
    for place in ("/var/lib", "/var/lib/kubelet"):
        yield f"runDir={place}", "holds kubeletDir"
    for place in ("/run", "/dev/shm", "/tmp/run", "/etc"):
        yield f"runDir={place}", "runDir"
    path, image = '{"name": "%s", "path": "%s"}', '{"name": "%s", "image": "%s", "size": "1Gi"}'
    system = "which is no place for data"
    for place in (
        "/etc/pool",
        "/var/lib/kubelet/pools",
        "/run/csi-local/x",
        "/usr//local/x",
        "/dev/x",
        "/opt/csi-local/x",
    ):
        yield _group(path % ("a", place)), system
        yield _group(image % ("a", f"{place}.img")), system
    more = "holds more than the pool"
    yield _group(path % ("a", "/opt")), more
    yield _group(path % ("a", "/var/lib")), more
    yield _group(image % ("a", "/var/lib/a.img")), more
    apart = 'pool "b": {} is that of pool "a", is in it or holds it'
    yield _group(path % ("a", "/srv/a"), path % ("b", "/srv//a")), apart.format("/srv/a")
    yield _group(path % ("a", "/srv/a"), path % ("b", "/srv/a/b")), apart.format("/srv/a/b")
    yield _group(path % ("a", "/srv/a/b"), path % ("b", "/srv/a")), apart.format("/srv/a")
    yield _group(path % ("a", "/srv/a"), image % ("b", "/srv/a/b")), apart.format("/srv/a/b")
    yield _group(image % ("a", "/srv/a/a"), image % ("b", "/srv/a/a")), apart.format("/srv/a/a")
    yield (
        _group('{"name": "a", "device": "/dev/a"}', '{"name": "b", "device": "/dev//a"}'),
        "another pool has the device",
    )
    yield _group(path % ("a", "/srv/a"), path % ("a", "/srv/b")), "two pools have that name"
    seen = 'nodeGroups=[{"name": "", "pools": [{"name": "a", "path": "/srv/a"}], "directories": ["%s"]}]'
    for place in ("/opt", "/etc", "/usr/local/bin", "/tmp", "/run"):
        yield seen % place, "which it would hide"
    one = '{"name": "%s", "pools": [{"name": "a", "path": "/srv/a"}]}'
    yield f"nodeGroups=[{one % 'x'}, {one % 'x'}]", 'two nodeGroups have the name "x"'
    yield f"nodeGroups=[{one % ''}, {one % 'default'}]", "two nodeGroups"


def _group(*pools: str) -> str:
    return f'nodeGroups=[{{"name": "", "pools": [{", ".join(pools)}]}}]'


@pytest.mark.parametrize(("setting", "said"), list(_wrong()))
def test_a_mistake_is_refused_and_named(setting: str, said: str) -> None:
    name, _, value = setting.partition("=")
    flag = "--set-json" if value.startswith("[") else "--set"
    done = helm(flag, f"{name}={value}")
    assert done.returncode != 0
    assert said.lower() in done.stderr.lower()


def test_the_kustomize_base_is_what_the_chart_makes() -> None:
    argv = [sys.executable, str(ROOT / "scripts/render_kustomize.py"), "--check"]
    done = subprocess.run(argv, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
