"""Pods with inline volumes that come and go in any order, with crashes, errors and reboots at any moment."""

from __future__ import annotations

import errno
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from csi_local.model.errors import ResourceExhausted
from csi_local.model.volume import ephemeral_id
from csi_local.plan import sizes
from tests.unit.rig import PATIENCE_S, Rig
from tests.unit.test_engine_machine import Trouble, troubles
from tests.unit.test_ephemeral import KINDS, asked

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.fake.tree import FakeFilesystem

HANDLES = ("csi-one", "csi-two")
handles = st.sampled_from(HANDLES)
kinds = st.sampled_from(sorted(KINDS))


@dataclass(slots=True)
class Pod:
    """A pod that has an inline volume, as the kubelet knows it."""

    handle: str
    kind: str
    mounted: bool = True
    marked: bool = False

    @property
    def directory(self) -> str:
        return f"/kubelet/pods/{self.handle}"

    @property
    def target(self) -> str:
        return f"{self.directory}/volumes/kubernetes.io~csi/scratch/mount"


class EphemeralMachine(RuleBasedStateMachine):
    """What a kubelet asks for, and what becomes of a node."""

    @initialize()
    def begin(self) -> None:
        self.rig = Rig()
        self.rig.host.make_dirs("/kubelet/pods")
        self.rig.start()
        self.pods: dict[str, Pod] = {}
        self.used = {pool.spec.name: self._filesystem(pool.root).used for pool in self.rig.pools.all()}
        self.points = len(self.rig.host.points)

    def _filesystem(self, root: str) -> FakeFilesystem:
        return self.rig.host.walk(root, "test").mount.filesystem

    def _tried(self, trouble: Trouble, action: Callable[[], object]) -> bool:
        """Whether it was acknowledged in spite of the trouble."""
        kind, number = trouble or ("", 0)
        if kind == "point":
            self.rig.die_at_point(number)
        elif kind == "moment":
            self.rig.host.die(number)
        elif kind == "error":
            self.rig.host.fail("", errno.EIO, nth=number)
        return self.rig.acknowledged(action)

    def _publish(self, pod: Pod) -> None:
        self.rig.host.make_dirs(pod.target.rpartition("/")[0])
        wanted = asked(KINDS[pod.kind], pod.handle, pod.target)
        self.rig.ephemeral.publish(wanted, PATIENCE_S, read_only=False)

    def _unpublish(self, pod: Pod) -> None:
        if not self.rig.ephemeral.unpublish(pod.handle, pod.target, PATIENCE_S):
            self.rig.publisher.unpublish(pod.handle, pod.target, PATIENCE_S)
        assert self.rig.host.look(pod.target) is None

    @rule(handle=handles, kind=kinds, trouble=troubles, give_up=st.booleans())
    def publish(self, handle: str, kind: str, trouble: Trouble, *, give_up: bool) -> None:
        pod = self.pods.get(handle, Pod(handle, kind))
        while not self._tried(trouble, partial(self._publish, pod)):
            trouble = None
            if give_up and handle not in self.pods:
                self._unpublish(pod)
                self.rig.host.remove_tree(pod.directory)
                return
        self.pods[handle] = pod
        pod.mounted = True
        marker = f"{pod.target}/marker"
        if pod.marked:
            assert self.rig.host.read_file(marker) == handle.encode()
        self.rig.host.replace_file(marker, handle.encode())
        pod.marked = True

    @rule(handle=handles, kind=kinds)
    def publish_more_than_there_is(self, handle: str, kind: str) -> None:
        """The kubelet takes that for the end; nothing may be left for which it would have to ask."""
        if handle in self.pods:
            return
        wanted = asked({**KINDS[kind], "size": "1Ti"}, handle, Pod(handle, kind).target)
        try:
            self.rig.ephemeral.publish(wanted, PATIENCE_S, read_only=False)
        except ResourceExhausted:
            return
        raise AssertionError

    @rule(handle=handles, trouble=troubles)
    def unpublish(self, handle: str, trouble: Trouble) -> None:
        pod = self.pods.get(handle)
        if pod is None:
            return
        while not self._tried(trouble, partial(self._unpublish, pod)):
            trouble = None
        self.rig.host.remove_tree(pod.directory)
        del self.pods[handle]

    @rule(handle=handles, trouble=troubles)
    def lose_the_pod(self, handle: str, trouble: Trouble) -> None:
        """After a reboot the kubelet cleans up without a word; the second look removes the volume."""
        pod = self.pods.get(handle)
        if pod is None:
            return
        self.reboot()
        self.rig.host.remove_tree(pod.directory)
        self._tried(trouble, self.rig.ephemeral.sweep)
        self.rig.ephemeral.sweep()
        self.rig.ephemeral.sweep()
        del self.pods[handle]

    @rule()
    def look_for_lost_pods(self) -> None:
        self.rig.ephemeral.sweep()

    @rule()
    def kill(self) -> None:
        self.rig.crash()

    @rule()
    def reboot(self) -> None:
        self.rig.reboot()
        for pod in self.pods.values():
            pod.mounted = False

    @invariant()
    def each_pod_has_its_volume_and_nobody_else_any(self) -> None:
        there = [view.id for view in self.rig.volumes.list("", 0, ephemeral=True)[0]]
        assert there == sorted(ephemeral_id(handle) for handle in self.pods)
        mounted = {mount.point for mount in self.rig.host.mounts() if mount.point.startswith("/kubelet")}
        assert mounted == {pod.target for pod in self.pods.values() if pod.mounted}
        assert set(self.rig.publisher._staged.volumes()) == {
            ephemeral_id(pod.handle) for pod in self.pods.values() if pod.mounted
        }
        for pool in self.rig.pools.all():
            weights = [sizes.weight(pool.store.load(volume)).total for volume in pool.store.volumes()]
            assert pool._sum.total == sum(weights)

    def teardown(self) -> None:
        if not hasattr(self, "pods"):
            return
        for pod in list(self.pods.values()):
            self._unpublish(pod)
        self.rig.host.remove_tree("/kubelet/pods")
        self.rig.sweeper.drain()
        for pool in self.rig.pools.all():
            assert pool.store.leftovers() == []
            assert self._filesystem(pool.root).used == self.used[pool.spec.name], "not all room came back"
        assert len(self.rig.host.points) == self.points
        self.rig.pools.close()
        assert not self.rig.host.attached


EphemeralMachine.TestCase.settings = settings(
    max_examples=200, stateful_step_count=20, deadline=None, suppress_health_check=list(HealthCheck)
)
TestEphemeral = EphemeralMachine.TestCase
