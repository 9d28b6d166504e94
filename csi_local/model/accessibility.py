"""Where a volume may be."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Accessibility:
    """From which nodes a volume must be usable (CSI ``TopologyRequirement``).

    Attributes:
        nodes: names of nodes, the most wished for first.
        anywhere: whether every other node will do as well.
    """

    nodes: tuple[str, ...] = ()
    anywhere: bool = False

    @property
    def narrowed(self) -> "Accessibility":
        """The node most wished for, and no other."""
        return Accessibility(nodes=self.nodes[:1])

    def allows(self, node: str) -> bool:
        """Whether the volume may be on *node*."""
        return self.anywhere or node in self.nodes


ANYWHERE = Accessibility(anywhere=True)
