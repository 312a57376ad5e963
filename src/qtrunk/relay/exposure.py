"""What an adversary knows of a key who has one node: while the key was relayed, or now. Pure functions."""

from collections.abc import Sequence
from enum import StrEnum

from qtrunk.base.ids import NodeId, SaeId
from qtrunk.topology import Topology


class Fate(StrEnum):
    """What becomes of an end-to-end key where one node falls, the worst first."""

    HELD = "held"
    """It lies at that node, or lay there: one of its SAEs is there."""
    RELAYED = "relayed"
    """That node relayed all of it, and nothing was added to it: it falls."""
    HYBRID = "hybrid"
    """That node relayed all of its QKD part; the ML-KEM part protects it."""
    SHARE = "share"
    """That node relayed one share of several that are needed, which says nothing."""
    APART = "apart"
    """It never passed that node."""


FALLS = frozenset({Fate.HELD, Fate.RELAYED})


def fate(
    topology: Topology,
    node: NodeId,
    saes: Sequence[str],
    routes: Sequence[Sequence[str]],
    needed: int,
    protection: str,
) -> Fate:
    """What becomes of a key of these SAEs; the rest is as its receipt has it (`relay.cargo.receipt`)."""
    ends = {known.node for sae in saes if (known := topology.sae(SaeId(sae))) is not None}
    if node in ends:
        return Fate.HELD
    if not any(node in nodes for nodes in routes):
        return Fate.APART
    if needed > 1:
        # Routes of one key to one node share no node, so that this one has a single share of it.
        return Fate.SHARE
    return Fate.HYBRID if "ml-kem" in protection else Fate.RELAYED
