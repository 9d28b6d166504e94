"""Another key for a volume of a cluster: the claim is annotated, its node does it, and the claim is told."""

from __future__ import annotations

import base64
import json
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest

from csi_local.kube import resources
from csi_local.kube.api import Api
from csi_local.kube.cache import Cache
from csi_local.kube.claims import Claims
from csi_local.kube.desired import Desired
from csi_local.kube.nodes import Nodes
from csi_local.kube.resources import CLAIMS, PERSISTENT_VOLUMES, VOLUMES
from csi_local.kube.rotation_resource import ANNOTATION
from csi_local.kube.rotations import KeyRotations
from tests.observe import until
from tests.unit.rig import key
from tests.unit.test_agent import CLAIM, MIB, Scene
from tests.unit.test_rotation import NEW, OLD, both, keys_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from csi_local.engine.api import VolumeView
    from csi_local.kube.agent import Agent
    from csi_local.kube.api import Object
    from csi_local.kube.events import Events
    from tests.fake.kubernetes import Kubernetes
    from tests.unit.rig import Rig

SECRETS = resources.secrets("keys")
LUKS = {**CLAIM, "encryption": "luks2"}
NAME = "data"


class Both(Scene):
    """A node that changes keys, its volume in use, and controllers that hear of claims."""

    def __init__(self, cluster: Kubernetes, rig: Rig, stack: ExitStack) -> None:
        super().__init__(cluster, rig)
        self._stack = stack
        self._rotations: list[KeyRotations] = []

    def beside(self, agent: Agent[VolumeView], events: Events) -> None:
        """Change keys."""
        told, rotator = self._told, self.rig.rotator
        made = KeyRotations(self.api, agent.cache, rotator, events, told=told, crash_point=self._pass)
        made.start()
        self._rotations.append(made)

    def _told(self, operation: str, result: str, _seconds: float) -> None:
        self.told.append((operation, result))

    def stop(self) -> None:
        """Stop all of it."""
        super().stop()
        for one in self._rotations:
            one.stop()
        self._rotations.clear()

    def controller(self) -> Claims:
        """Add a controller."""
        api = Api(self.cluster.credentials)
        volumes, pools, leases = (Cache(api, one) for one in (VOLUMES, resources.POOLS, resources.leases("csi-local")))
        claims = Claims(api, Desired(api, VOLUMES, volumes, Nodes(leases, pools, lambda _node: True), noun="volume"))
        self._stack.callback(api.close)
        for part in (volumes, claims):
            self._stack.callback(part.stop)
            part.start()
        return claims

    def use(self, parameters: dict[str, str] = LUKS) -> None:
        """Make a volume that a pod uses, with its claim."""
        self.answer(self.want(NAME, 64 * MIB, parameters))
        self.stage(NAME, key(OLD))
        claim = {"metadata": {"namespace": "shop", "name": "db"}, "spec": {"volumeName": f"pv-{NAME}"}}
        uid = self.cluster.create(CLAIMS, claim)["metadata"]["uid"]
        where = {"namespace": "keys", "name": "one"}
        source = {"driver": "csi-local.io", "volumeHandle": NAME, "nodeStageSecretRef": where}
        spec = {"csi": source, "claimRef": {"namespace": "shop", "name": "db", "uid": uid}}
        self.cluster.create(PERSISTENT_VOLUMES, {"metadata": {"name": f"pv-{NAME}"}, "spec": spec})

    def keys(self, **keys: str) -> None:
        """Put keys into the Secret."""
        data = {name: base64.b64encode(value.encode()).decode() for name, value in keys.items()}
        if not self.cluster.all(SECRETS):
            self.cluster.create(SECRETS, {"metadata": {"name": "one"}})
        self.cluster.patch(SECRETS, "one", {"data": None})
        self.cluster.patch(SECRETS, "one", {"data": data})

    def annotate(self, value: str) -> None:
        """Ask for another key."""
        self.cluster.patch(CLAIMS, "db", {"metadata": {"annotations": {ANNOTATION: value}}})

    def outcome(self, request: str) -> str:
        """Wait for the answer, which is final; return its code."""
        told: dict[str, Any] = {}

        def answered(now: Object | None) -> bool:
            assert now is not None
            told.clear()
            told.update(now.get("status", {}).get("keyRotation", {}))
            return told.get("request") == request and told.get("error", {}).get("code") != "UNAVAILABLE"

        self.cluster.until(VOLUMES, NAME, answered)
        return str(told.get("error", {}).get("code", "OK"))

    def reasons(self) -> list[str]:
        """Return why the claim was told something."""
        assert all(kind == "PersistentVolumeClaim" for kind, _ in self.events())
        return [reason for _, reason in self.events()]

    def rotation(self) -> Object:
        """Return what the LocalVolume asks for."""
        return dict(self.cluster.get(VOLUMES, NAME)["spec"].get("keyRotation", {}))


@pytest.fixture
def both_sides(cluster: Kubernetes, rig: Rig) -> Iterator[Both]:
    with ExitStack() as stack:
        made = Both(cluster, rig, stack)
        stack.callback(made.stop)
        made.start()
        yield made


def test_while_a_pod_uses_it(both_sides: Both) -> None:
    both_sides.controller()
    both_sides.use()
    both_sides.keys(encryptionKey=NEW, previousEncryptionKey=OLD)
    both_sides.annotate("2026-11-26")
    assert both_sides.outcome("2026-11-26") == "OK"
    assert keys_of(both_sides.rig) == both(NEW)
    until(lambda: both_sides.reasons() == ["KeyRotated"], "the claim is told")
    (event,) = both_sides.cluster.all(resources.events("shop"))
    assert (event["type"], event["involvedObject"]["name"]) == ("Normal", "db")
    until(lambda: ("rotate", "OK") in both_sides.told, "it is counted")
    status = both_sides.answer(NAME)
    assert (status["phase"], status.get("error")) == ("Ready", None)


def test_no_key_is_written_anywhere(both_sides: Both, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")
    both_sides.controller()
    both_sides.use()
    both_sides.keys(encryptionKey=NEW, previousEncryptionKey="wrong")
    both_sides.annotate("1")
    assert both_sides.outcome("1") == "UNAUTHENTICATED"
    both_sides.keys(encryptionKey=NEW, previousEncryptionKey=OLD)
    both_sides.annotate("2")
    assert both_sides.outcome("2") == "OK"
    until(lambda: sorted(both_sides.reasons()) == ["KeyRotated", "KeyRotationFailed"], "the claim is told")
    objects = {name: found for name, found in both_sides.cluster.objects.items() if name != SECRETS}
    written = json.dumps([objects, both_sides.cluster.requests]) + caplog.text
    assert NAME in written
    for one in (OLD, NEW):
        assert one not in written
        assert base64.b64encode(one.encode()).decode() not in written


@pytest.mark.parametrize(
    ("keys", "code"),
    [
        ({}, "UNAUTHENTICATED"),
        ({"encryptionKey": NEW}, "UNAUTHENTICATED"),
        ({"encryptionKey": OLD}, "OK"),
        ({"encryptionKey": OLD, "previousEncryptionKey": "wrong"}, "OK"),
    ],
)
def test_what_is_in_the_secret(both_sides: Both, keys: dict[str, str], code: str) -> None:
    both_sides.controller()
    both_sides.use()
    both_sides.keys(**keys)
    both_sides.annotate("1")
    assert both_sides.outcome("1") == code
    assert keys_of(both_sides.rig) == both(OLD)


def test_a_secret_that_is_not_there(both_sides: Both) -> None:
    both_sides.controller()
    both_sides.use()
    both_sides.annotate("1")
    assert both_sides.outcome("1") == "NOT_FOUND"


def test_a_volume_that_is_not_encrypted(both_sides: Both) -> None:
    both_sides.controller()
    both_sides.use(CLAIM)
    both_sides.keys(encryptionKey=NEW)
    both_sides.annotate("1")
    assert both_sides.outcome("1") == "FAILED_PRECONDITION"
    until(lambda: both_sides.reasons() == ["KeyRotationFailed"], "the claim is told")


def test_a_secret_that_the_node_may_not_read_yet(both_sides: Both) -> None:
    both_sides.use()
    both_sides.keys(encryptionKey=NEW, previousEncryptionKey=OLD)
    both_sides.change(NAME)
    both_sides.answer(NAME)  # its watch is there: the next that reads is who changes keys
    both_sides.cluster.refuse("GET", 403)
    secret = {"namespace": "keys", "name": "one"}
    claim = {"namespace": "shop", "name": "db", "uid": "u"}
    both_sides.change(NAME, keyRotation={"request": "1", "claim": claim, "secret": secret})
    assert both_sides.outcome("1") == "OK"
    until(lambda: sorted(both_sides.reasons()) == ["KeyRotated", "KeyRotationFailed"], "the claim is told of both")
    told = "".join(event["message"] for event in both_sides.cluster.all(resources.events("shop")))
    assert "node.rotationSecrets" in told


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # that is how it dies
@pytest.mark.parametrize("point", ["agent-rotate:done", "agent-rotate:answered"])
def test_a_node_that_dies_on_the_way(both_sides: Both, point: str) -> None:
    died: list[str] = []

    def die(passed: str) -> None:
        if passed == point:
            died.append(passed)
            raise SystemExit

    both_sides.controller()
    both_sides.use()
    both_sides.keys(encryptionKey=NEW, previousEncryptionKey=OLD)
    both_sides.at_point = die
    both_sides.annotate("1")
    until(lambda: died, "it dies")
    both_sides.at_point = lambda _point: None
    both_sides.keys(encryptionKey=NEW)
    both_sides.start()
    assert both_sides.outcome("1") == "OK"
    assert keys_of(both_sides.rig) == both(NEW)


def test_growing_is_answered_whatever_becomes_of_the_key(both_sides: Both) -> None:
    both_sides.controller()
    both_sides.use()
    both_sides.annotate("1")
    both_sides.outcome("1")
    both_sides.change(NAME, capacity={"requiredBytes": 96 * MIB, "limitBytes": 0})
    status = both_sides.answer(NAME)
    assert (status["capacityBytes"], status.get("error")) == (96 * MIB, None)
    assert both_sides.outcome("1") == "NOT_FOUND", "it is still told"


# --- what claims ask for


def test_each_request_is_passed_on_once(both_sides: Both) -> None:
    both_sides.use()
    for _ in range(2):
        both_sides.controller()
    both_sides.annotate("1")
    both_sides.outcome("1")
    assert both_sides.rotation()["request"] == "1"
    assert both_sides.rotation()["secret"] == {"namespace": "keys", "name": "one"}
    before = both_sides.cluster.get(VOLUMES, NAME)["metadata"]["generation"]
    both_sides.controller()  # one that starts later
    both_sides.annotate("x" * 1000)
    both_sides.outcome("x" * 253)
    assert both_sides.cluster.get(VOLUMES, NAME)["metadata"]["generation"] == before + 1


def test_only_the_claim_that_has_the_volume_may_ask(both_sides: Both) -> None:
    both_sides.use()
    both_sides.controller()
    for name, volume in (("thief", f"pv-{NAME}"), ("early", ""), ("lost", "pv-gone")):
        metadata = {"namespace": "other", "name": name, "annotations": {ANNOTATION: "1"}}
        both_sides.cluster.create(CLAIMS, {"metadata": metadata, "spec": {"volumeName": volume} if volume else {}})
    both_sides.cluster.patch(PERSISTENT_VOLUMES, f"pv-{NAME}", {"spec": {"csi": {"driver": "other.io"}}})
    both_sides.annotate("1")
    asked = [("GET", f"{PERSISTENT_VOLUMES}/pv-{one}") for one in (NAME, "gone", NAME)]
    until(lambda: all(both_sides.cluster.requests.count(one) >= asked.count(one) for one in asked), "all are seen")
    both_sides.cluster.patch(PERSISTENT_VOLUMES, f"pv-{NAME}", {"spec": {"csi": {"driver": "csi-local.io"}}})
    both_sides.annotate("2")
    both_sides.outcome("2")
    assert both_sides.cluster.get(VOLUMES, NAME)["spec"]["attempt"] == 1


def test_keys_of_the_node_need_no_secret(both_sides: Both) -> None:
    both_sides.controller()
    both_sides.rig.host.make_dirs("/keys")
    both_sides.rig.host.replace_file("/keys/fast", OLD.encode())
    both_sides.use({**LUKS, "keyProvider": "file", "keyName": "fast"})
    both_sides.rig.host.replace_file("/keys/fast.previous", OLD.encode())
    both_sides.rig.host.replace_file("/keys/fast", NEW.encode())
    both_sides.annotate("1")
    assert both_sides.outcome("1") == "OK"
    assert keys_of(both_sides.rig) == both(NEW)
    assert "secret" not in both_sides.rotation()


def test_claims_of_the_same_name_are_told_apart(both_sides: Both) -> None:
    claims = both_sides.controller()
    for namespace in ("shop", "bank"):
        metadata = {"namespace": namespace, "name": "db", "uid": namespace, "resourceVersion": "7"}
        claims._cache.observe({"metadata": metadata, "spec": {"volumeName": "pv", "resources": {}}})
    assert [one["metadata"] for one in claims._cache.items()] == [
        {"namespace": one, "name": "db", "uid": one, "resourceVersion": "7"} for one in ("shop", "bank")
    ]
    assert not any("spec" in one for one in claims._cache.items()), "nothing is kept of those that ask for nothing"
