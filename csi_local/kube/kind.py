"""What an agent must know of one kind of resource beside the protocol, which is the same for all."""

from typing import Protocol, TypeVar

from csi_local.kube.api import Object
from csi_local.kube.events import About

PATIENCE_S = 30.0
"""How long the work that a resource asks for waits for other work on the same data."""


class View(Protocol):
    """What an engine shows of something on a disk."""

    @property
    def id(self) -> str:
        """Its id."""

    @property
    def pool(self) -> str:
        """The pool that it is in."""

    @property
    def problem(self) -> str:
        """What is wrong with it, or ""."""


V = TypeVar("V", bound=View)


class Kind(Protocol[V]):
    """One kind of resource: how what it wants is done, and how the answer is written."""

    @property
    def collection(self) -> str:
        """Where its resources are."""

    @property
    def resource(self) -> str:
        """What its resources are called (``LocalVolume``)."""

    @property
    def noun(self) -> str:
        """What that which they stand for is called (``volume``)."""

    @property
    def goes_with(self) -> str:
        """When they go, for people."""

    # --- the resource

    def id_of(self, wanted: Object) -> str:
        """The id of what it stands for."""

    def acknowledged(self, wanted: Object) -> bool:
        """Whether somebody was ever told that it is there, whole: then it is never made again."""

    def pending(self, wanted: Object) -> bool:
        """Whether its node has answered that it is being made, and must say when it is."""

    def made(self, wanted: Object) -> bool:
        """Whether the node that is to have it has said that it has."""

    def about(self, wanted: Object) -> About | None:
        """Who is to be told what happens to it, None where nobody else than the node."""

    def ready_status(self, wanted: Object, view: V, *, now: str) -> Object:
        """The patch of ``status`` that says that it is as wanted, or on its way."""

    def failed_status(self, wanted: Object, error: Exception, *, now: str) -> Object:
        """The patch of ``status`` that says why it is not."""

    def adopted(self, view: V) -> Object | None:
        """The resource of what is on the disk and has none; None where nobody can read what it is."""

    # --- the data

    def operation(self, what: str) -> str:
        """What metrics and crash points call create, keep and delete."""

    def create(self, wanted: Object) -> V:
        """Make it, or find it made."""

    def keep(self, wanted: Object) -> V:
        """See that what was acknowledged is as wanted; it is never made again."""

    def get(self, identifier: str) -> V:
        """It, as it is."""

    def delete(self, identifier: str) -> None:
        """Remove it; no error where it is not there."""

    def is_empty(self, view: V) -> bool:
        """Whether it surely holds nothing that anybody has ever written."""
