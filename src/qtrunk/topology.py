"""The network as one immutable graph: nodes, links, equipment, SAEs, demands. No I/O; `to_dict` and `from_dict` are
JSON.

A link has a direction: `alice` is the node with the transmitter, `bob` the one with the receiver. Link IDs are the two
node IDs joined by a hyphen.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from itertools import pairwise

import msgspec

from qtrunk.base.ids import LinkId, NodeId, SaeId


@dataclass(frozen=True, slots=True, kw_only=True)
class Equipment:
    """The two modules of a link and how they are run. Defaults: Faraday-Michelson at 1.25 GHz.

    Names after ETSI GS QKD 011. With the defaults the receiver sees 3.14 % of the photons that reach it.
    """

    clock_hz: float = 1.25e9
    intensities: tuple[float, float, float] = (0.46, 0.20, 0.0002)
    """Mean photon numbers of signal, decoy and vacuum; the last is what the modulator lets through."""
    probabilities: tuple[float, float, float] = (0.48, 0.42, 0.10)
    key_basis_probability: float = 0.78
    visibility: float = 0.99
    residual_phase_rad: float = 0.11
    """Phase noise that is too fast for the control loop, rms."""
    receiver_loss_db: float = 6.0
    """Receiver optics, the 3 dB of the time slots included."""
    detector_efficiency: float = 0.125
    dark_count_probability: float = 1e-6
    """Per gate and detector."""
    afterpulse_probability: float = 0.015
    """Total, per click."""
    dead_time_s: float = 100e-9
    gate_mismatch_s: float = 0.0
    """Between the middles of the two detectors' gates."""
    intensity_fluctuation: float = 0.01
    """From pulse to pulse, relative, rms."""
    added_noise_probability: float = 0.0
    """Per gate and detector: light of other channels in the same fibre."""
    temperature_rms_k: float = 0.02
    """Of the difference between the two interferometers: what lets their phase drift."""
    control_period_s: float = 0.1
    """How often the phase is scanned and corrected."""
    reference_fraction: float = 0.01
    """Share of the time that such scans take from the key."""
    fibre_db_per_km: float = 0.21
    connector_loss_db: float = 1.0
    block_s: float = 4.0
    """Seconds of light in one block of key."""
    clock_fraction: float = 1.0
    """Share of the pulses that the simulated fibre really runs; 1 is real time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Distillation:
    """How both ends of a link make key of what they saw, and what the operator asks of it."""

    latency_s: float = 4.0
    """The longest block, seconds of light: blocks grow from `block_s` to this where a longer one gives clearly more."""
    is_adaptive: bool = False
    """Whether intensities, their probabilities and the key basis's follow the link between blocks."""
    epsilon_secret: float = 1e-10
    """Of each block."""
    epsilon_total: float = 1e-2
    """What all blocks of the link may add up to, secrecy, correctness and authentication together."""
    bounds: str = "exact"
    """Tail bounds of the key length: `exact` or `hoeffding`."""
    reconciliation: str = "auto"
    """`auto`, `ldpc`, `fast` or `cascade`."""
    bootstrap: str = "preshared"
    """What authenticates blocks while there is no key for it: a `preshared` secret, or signatures, `ml-dsa`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """A trusted site. Ports of 0 are chosen free when a lab starts."""

    id: NodeId
    name: str = ""
    name_local: str = ""
    latitude_deg: float | None = None
    longitude_deg: float | None = None
    key_api_port: int = 0
    admin_api_port: int = 0
    inter_node_port: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """Two modules, a quantum channel and a classical channel."""

    id: LinkId
    alice: NodeId
    bob: NodeId
    length_km: float
    loss_db: float
    equipment: Equipment = field(default_factory=Equipment)
    distillation: Distillation = field(default_factory=Distillation)

    def other(self, node: NodeId) -> NodeId:
        """The node at the other end."""
        assert node in (self.alice, self.bob)
        return self.bob if node == self.alice else self.alice


@dataclass(frozen=True, slots=True, kw_only=True)
class Sae:
    """A secure application entity and the node that serves it."""

    id: SaeId
    node: NodeId


@dataclass(frozen=True, slots=True, kw_only=True)
class Demand:
    """How much end-to-end key two SAEs are expected to use."""

    between: tuple[SaeId, SaeId]
    rate_bps: float


@dataclass(frozen=True, kw_only=True)
class Topology:
    """A whole network. Built once, never changed."""

    name: str
    title: str = ""
    nodes: tuple[Node, ...] = ()
    links: tuple[Link, ...] = ()
    saes: tuple[Sae, ...] = ()
    demands: tuple[Demand, ...] = ()

    @cached_property
    def _node_by_id(self) -> dict[NodeId, Node]:
        return {node.id: node for node in self.nodes}

    @cached_property
    def _link_by_id(self) -> dict[LinkId, Link]:
        return {link.id: link for link in self.links}

    @cached_property
    def _link_by_ends(self) -> dict[frozenset[NodeId], Link]:
        return {frozenset((link.alice, link.bob)): link for link in self.links}

    @cached_property
    def _sae_by_id(self) -> dict[SaeId, Sae]:
        return {sae.id: sae for sae in self.saes}

    def node(self, node: NodeId) -> Node:
        """A node by ID; KeyError if there is none."""
        return self._node_by_id[node]

    def link(self, link: LinkId) -> Link:
        """A link by ID; KeyError if there is none."""
        return self._link_by_id[link]

    def sae(self, sae: SaeId) -> Sae | None:
        """An SAE by ID."""
        return self._sae_by_id.get(sae)

    def link_between(self, a: NodeId, b: NodeId) -> Link:
        """The link that joins two neighbours; KeyError if they are none."""
        return self._link_by_ends[frozenset((a, b))]

    def links_of(self, node: NodeId) -> tuple[Link, ...]:
        """The links that end at a node."""
        return tuple(link for link in self.links if node in (link.alice, link.bob))

    def kme_id(self, node: NodeId) -> str:
        """The KME ID of a node's key manager: the node ID itself."""
        return self.node(node).id

    def to_dict(self) -> dict[str, object]:
        """Plain JSON values; `from_dict` gives an equal topology."""
        value: dict[str, object] = msgspec.to_builtins(
            {entry.name: getattr(self, entry.name) for entry in fields(self)}
        )
        return value

    @staticmethod
    def from_dict(value: dict[str, object]) -> "Topology":
        """The inverse of `to_dict`; msgspec.ValidationError where a field is wrong."""
        return msgspec.convert(value, Topology)


def link_id(alice: NodeId, bob: NodeId) -> LinkId:
    """The ID of the link between two nodes."""
    return LinkId(f"{alice}-{bob}")


def trunk(name: str, nodes: Sequence[Node], spans: Iterable[tuple[float, float]], **equipment: float) -> Topology:
    """A row of nodes; `spans` gives (length_km, loss_db) of each hop in order."""
    links = _row(list(pairwise(nodes)), spans, **equipment)
    return Topology(name=name, nodes=tuple(nodes), links=links)


def ring(name: str, nodes: Sequence[Node], spans: Iterable[tuple[float, float]], **equipment: float) -> Topology:
    """A closed row of nodes; the last span joins the last node to the first."""
    links = _row(list(zip(nodes, [*nodes[1:], nodes[0]], strict=True)), spans, **equipment)
    return Topology(name=name, nodes=tuple(nodes), links=links)


def _row(pairs: list[tuple[Node, Node]], spans: Iterable[tuple[float, float]], **equipment: float) -> tuple[Link, ...]:
    return tuple(
        Link(
            id=link_id(a.id, b.id),
            alice=a.id,
            bob=b.id,
            length_km=length_km,
            loss_db=loss_db,
            equipment=Equipment(**equipment),  # type: ignore[arg-type]
        )
        for (a, b), (length_km, loss_db) in zip(pairs, spans, strict=True)
    )
