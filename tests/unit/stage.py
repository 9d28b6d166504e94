"""An agent on a node in memory, and the controller as a test plays it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Generic

from csi_local.kube import resources
from csi_local.kube.agent import Agent
from csi_local.kube.api import Api
from csi_local.kube.events import Events
from csi_local.kube.kind import V
from csi_local.kube.pools import Owner
from csi_local.kube.resources import NODE_LABEL, answered
from tests.observe import until

if TYPE_CHECKING:
    from collections.abc import Callable

    from csi_local.kube.api import Object
    from csi_local.kube.kind import Kind
    from tests.fake.kubernetes import Kubernetes
    from tests.unit.rig import Rig

NODE = "node-1"


class Stage(Generic[V]):
    """A node, its agent for one kind of resource, and the controller.

    Attributes:
        collection: where the resources are.
    """

    collection: str

    def __init__(self, cluster: Kubernetes, rig: Rig) -> None:
        self.cluster = cluster
        self.rig = rig
        self.told: list[tuple[str, str]] = []
        self.agents: list[Agent[V]] = []
        self.at_point: Callable[[str], None] = lambda _name: None

    def start(self) -> None:
        """Start an agent; one that runs already is told to stop."""
        self.stop()
        self.api = api = Api(self.cluster.credentials)
        events = Events(api, NODE)
        agent = Agent(
            api,
            Owner(api, NODE),
            self.kind(),
            events,
            told=lambda operation, result, _seconds: self.told.append((operation, result)),
            changed=lambda: None,
            crash_point=self._pass,
            workers=1,
        )
        self.beside(agent, events)
        agent.start()
        self.agents.append(agent)

    def beside(self, agent: Agent[V], events: Events) -> None:
        """Start what works beside an agent, if anything does."""

    def kind(self) -> Kind[V]:
        """What the agent does."""
        raise NotImplementedError

    def _pass(self, name: str) -> None:
        self.at_point(name)

    def stop(self) -> None:
        """Stop it."""
        for agent in self.agents:
            agent.stop()
            self.api.close()
        self.agents.clear()

    def wait_known(self) -> None:
        """Wait until the agent knows what there is."""
        cache = self.agents[0].cache
        until(lambda: cache.synced and cache.items() == self._mine(), "the agent knows what there is")

    def _mine(self) -> list[Object]:
        return self.cluster.all(self.collection, resources.selector(NODE))

    def ask(self, wanted: Object) -> str:
        """Make a resource; return its name."""
        return str(self.cluster.create(self.collection, wanted)["metadata"]["name"])

    def change(self, name: str, **spec: Any) -> None:  # noqa: ANN401
        """Want something else of it."""
        now = self.cluster.get(self.collection, name)
        patch: Object = {"spec": {"attempt": now["spec"]["attempt"] + 1, **spec}}
        if "nodeName" in spec:
            patch["metadata"] = {"labels": {NODE_LABEL: spec["nodeName"]}}
        self.cluster.patch(self.collection, name, patch)

    def answer(self, name: str) -> Object:
        """Wait for the answer; return the status."""
        found = self.cluster.until(self.collection, name, lambda now: now is not None and answered(now))
        return dict(found["status"])

    def wait_gone(self, name: str) -> None:
        """Wait until a resource is gone."""
        self.cluster.until(self.collection, name, lambda now: now is None)

    def events(self) -> list[tuple[str, str]]:
        """Return the Events: what about, and why."""
        spaces = (resources.events("shop"), resources.events("default"))
        found = [event for space in spaces for event in self.cluster.all(space)]
        return [(event["involvedObject"]["kind"], event["reason"]) for event in found]

    def writes(self) -> list[str]:
        """Return what the agent has written, in order."""
        return [f"{method} {path}" for method, path in self.cluster.requests if method != "GET"]
