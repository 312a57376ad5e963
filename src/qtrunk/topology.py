"""The network as one immutable graph: nodes, links, equipment, SAEs, tenants, demands. No I/O; `to_dict` and
`from_dict` are JSON.

A link has a direction: `alice` is the node with the transmitter, `bob` the one with the receiver. Link IDs are the two
node IDs joined by a hyphen.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields, replace
from fnmatch import fnmatchcase
from functools import cached_property
from itertools import pairwise

import msgspec

from qtrunk.base.ids import LinkId, NodeId, SaeId

VENDOR_PROOF = "vendor: "
"""Begins the statement of what stands behind a vendor's keys, where other blocks name the rule of their length."""
HOP_BY_HOP, ANNOUNCED = "hop-by-hop", "announced"
"""How keys pass relays."""
DEFAULT_TENANT = "default"
"""ID of the tenant of every SAE that no other tenant names."""


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
class VendorEnd:
    """How one end of a link reaches the key manager (KME) of a vendor's QKD system, ETSI GS QKD 014 or 004."""

    kme_url: str
    sae: SaeId
    """Who this end is at that KME. The other end's is its peer there."""
    uri: str = ""
    """GS QKD 004: the URI by which both KMEs know this end; empty: `qkd://` and the SAE ID."""
    certificate: str = ""
    """PEM files of that SAE, and of the CA of the KME's certificate; empty where the node's configuration says."""
    private_key: str = ""
    ca_certificate: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class VendorSource:
    """A vendor's QKD system that gives a link its keys, and what its keys are worth, by the vendor's own word."""

    trust: str
    """Vendor, model, what is claimed and by which certificate: the operator's text, part of every receipt."""
    alice: VendorEnd
    bob: VendorEnd
    interface: str = "etsi014"
    """How the two KMEs give keys: `etsi014`, by key ID, or `etsi004`, by key stream and index."""
    keys: int = 128
    """Vendor's keys in one block of link key."""
    key_bits: int = 256
    poll_s: float = 2.0
    """Pause before the KME is asked again that had no key."""
    timeout_s: float = 10.0
    """For one answer of the KME."""
    epsilon_per_key: float | None = None
    """As the vendor states it; None: nothing is stated, each block counts with the link's `epsilon_secret`."""
    tls: str = "1.3"
    """The lowest version of TLS that is spoken with the KME, `1.2` or `1.3`."""

    @property
    def statement(self) -> str:
        """What stands behind the blocks of the link, for their records and for receipts."""
        whose = "operator's, none is stated" if self.epsilon_per_key is None else "vendor's"
        return f"{VENDOR_PROOF}{self.trust} [stated by the vendor, not proven here; epsilon: the {whose}]"


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
    stream_api_port: int = 0
    skip_api_port: int = 0
    sdn_api_port: int = 0
    trust: float = 1.0
    """Routes count a hop into this node as 1 / trust hops."""


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
    vendor: VendorSource | None = None
    """The vendor's system that gives the keys; None: light that is distilled here."""

    def other(self, node: NodeId) -> NodeId:
        """The node at the other end."""
        assert node in (self.alice, self.bob)
        return self.bob if node == self.alice else self.alice


@dataclass(frozen=True, slots=True, kw_only=True)
class Sae:
    """A secure application entity and the node that serves it."""

    id: SaeId
    node: NodeId
    identities: tuple[str, ...] = ()
    """Names and fingerprints by which certificates speak for this SAE (`base.ids.parse_identity`); where there are
    none, its ID as a URI, DNS or common name does. `urn:…:sae:ID` always does."""

    def claims(self) -> tuple[str, ...]:
        """The identities that count: those given, else the ID's own."""
        return self.identities or (f"uri:{self.id}", f"dns:{self.id.lower()}", f"cn:{self.id}")


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyApi:
    """How the nodes' ETSI GS QKD 014 interface reads what the standard leaves open. Names are those of the file."""

    strict: bool = False
    """Refuse an empty additional_slave_SAE_IDs."""
    not_found_status: int = 400
    """400, as the standard has it, or 404, as some clients expect."""
    edition2: bool = False
    """Serve the draft of Edition 2 under /kdapi/v2 as well."""
    loopback_test: bool = False
    """Let an SAE be its own slave. Keys under it protect nothing: a standing alarm says so."""
    retry_window_s: float = 0.0
    """How long a repeated request with the same X-Request-ID gets the same keys; 0: never."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tenant:
    """A group of SAEs, what they are promised and what they may use. docs/tenants.md says how each field acts.

    Rates, burst and quotas hold at each node by itself, for what SAEs of the tenant at that node ask for. A request for
    several targets counts once for each. None is no limit.
    """

    id: str
    title: str = ""
    saes: tuple[str, ...] = ()
    """SAE IDs, or patterns in which `*` stands for any characters."""
    guaranteed_bps: float = 0.0
    """Key that is there whatever others ask for."""
    burst_bps: float | None = None
    """The most over a longer time, guaranteed part included."""
    burst_bits: int = 1_048_576
    """The most at once; the default is the largest request of GS QKD 014: 128 keys of 8192 bits."""
    quota_bits_per_day: int | None = None
    quota_bits_per_month: int | None = None
    """Days and months are those of UTC."""
    priority: int = 0
    """0 to 7; where key is short, higher goes first beyond the guarantees."""
    key_lifetime_s: float = 90 * 86400.0
    """How long a target may come for its key."""
    epsilon_max: float = 1.0
    """Of the QKD under a key, all hops together."""
    hops_max: int | None = None
    avoid: tuple[str, ...] = ()
    """IDs of nodes that keys of this tenant may not pass; one may begin or end there."""
    routes_min: int = 1
    """Disjoint routes whose shares make a key: who has fewer of them knows nothing of it."""
    routes_spare: int = 0
    """Disjoint routes more, as far as there are so many: shares on so many of them may be wrong or missing."""
    relay: str = HOP_BY_HOP
    """How keys that its SAEs ask for pass relays: `hop-by-hop`, or by XORs that are `announced`."""
    hybrid: str = "hybrid"
    """What keys must be made of: `qkd`, `hybrid` (QKD and post-quantum) or `fallback` (one of them)."""

    def names(self, sae: str) -> int:
        """How closely this tenant names an SAE: 0 not at all, else longer patterns more, its own ID most."""
        if sae in self.saes:
            return 1 << 16
        # Only `*` has a meaning: the other signs of fnmatch cannot be in an SAE ID.
        return max((len(one) for one in self.saes if fnmatchcase(sae, one)), default=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class ForeignNetwork:
    """Another network whose key manager stands in the room of one of our nodes, ETSI GS QKD 020."""

    id: str
    kme: str
    """The KME ID in the certificate of its key manager."""
    node: NodeId
    """Our node in that room."""
    address: str
    """HOST:PORT of its key manager; its callback URLs have the same."""
    listen: str
    """HOST:PORT at which our node listens for it; our callback URLs have the same."""
    ca_certificate: str
    """PEM file of the CA of its certificate, or of the certificate itself where it is self-signed."""
    fingerprint: str = ""
    """SHA-256 of its certificate, 64 hexadecimal digits; empty: any of that CA with the KME ID."""
    saes: tuple[str, ...] = ()
    """The SAEs that are reached through it: IDs, or patterns in which `*` stands for any characters."""
    protection: str = "unknown"
    """What its operator states of keys on their way there: `qkd`, `hybrid` or `unknown`. Nobody here can know."""

    def names(self, sae: str) -> int:
        """How closely this network names an SAE: 0 not at all, else longer patterns more, its own ID most."""
        if sae in self.saes:
            return 1 << 16
        return max((len(one) for one in self.saes if fnmatchcase(sae, one)), default=0)


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
    tenants: tuple[Tenant, ...] = ()
    key_api: KeyApi = field(default_factory=KeyApi)
    neighbours: tuple[ForeignNetwork, ...] = ()

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
    def _links_by_node(self) -> dict[NodeId, tuple[Link, ...]]:
        found: dict[NodeId, list[Link]] = {}
        for link in self.links:
            found.setdefault(link.alice, []).append(link)
            found.setdefault(link.bob, []).append(link)
        return {node: tuple(links) for node, links in found.items()}

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

    def at_clock_fraction(self, fraction: float) -> "Topology":
        """This network with every simulated fibre at this share of its clock."""
        links = (replace(one, equipment=replace(one.equipment, clock_fraction=fraction)) for one in self.links)
        return replace(self, links=tuple(links))

    @cached_property
    def default_tenant(self) -> Tenant:
        """The tenant of the SAEs that no other one names; unless the file says otherwise, without promise or limit."""
        given = (tenant for tenant in self.tenants if tenant.id == DEFAULT_TENANT)
        return next(given, Tenant(id=DEFAULT_TENANT))

    def tenant_of(self, sae: SaeId) -> Tenant:
        """The tenant of an SAE, known to this topology or not: who names it most closely, of equals the first."""
        best = max(self.tenants, key=lambda tenant: tenant.names(sae), default=self.default_tenant)
        return best if best.names(sae) else self.default_tenant

    def foreign(self, sae: SaeId) -> ForeignNetwork | None:
        """The foreign network of an SAE: which names it most closely, of equals the first; None for our own SAEs."""
        if sae in self._sae_by_id:
            return None
        best = max(self.neighbours, key=lambda network: network.names(sae), default=None)
        return best if best is not None and best.names(sae) else None

    def end_of(self, sae: SaeId) -> NodeId | None:
        """Where keys of an SAE begin or end in this network: its own node, or the one beside its foreign network."""
        known = self.sae(sae)
        if known is not None:
            return known.node
        network = self.foreign(sae)
        return None if network is None else network.node

    def link_between(self, a: NodeId, b: NodeId) -> Link:
        """The link that joins two neighbours; KeyError if they are none."""
        return self._link_by_ends[frozenset((a, b))]

    def links_of(self, node: NodeId) -> tuple[Link, ...]:
        """The links that end at a node."""
        return self._links_by_node.get(node, ())

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


class LiveTopology(Topology):
    """The network as a running node sees it: it reads like any Topology, and `adopt` puts another one in its place.

    Everything in a node that looks at the network holds this one object, so all of it sees a change at the same moment.
    What is worked out from a topology and kept is kept for its parts (`nodes`, `links`), which never change.
    """

    def __init__(self, topology: Topology) -> None:
        self.adopt(topology)

    def adopt(self, topology: Topology) -> None:
        """From now on this is `topology`. One store, so no other thread sees a mixture of two networks."""
        object.__setattr__(self, "__dict__", {entry.name: getattr(topology, entry.name) for entry in fields(topology)})


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
