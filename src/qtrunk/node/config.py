"""What one node process is told: a JSON file that the supervisor (or an operator) writes. No secrets in it."""

from pathlib import Path
from typing import Literal

import msgspec

from qtrunk.base.errors import ConfigError
from qtrunk.base.ids import LinkId, NodeId
from qtrunk.stages import Role
from qtrunk.topology import Link, Topology


class Address(msgspec.Struct, frozen=True):
    """Where a service listens."""

    host: str
    port: int


class VendorCredentials(msgspec.Struct, frozen=True):
    """PEM files by which this node is an SAE at a vendor's KME; they go before those of the topology."""

    certificate: str
    private_key: str
    ca_certificate: str


def vendor_files(link: Link, role: Role, credentials: VendorCredentials | None) -> tuple[Path, Path, Path]:
    """Certificate, key and CA of one end at its vendor's KME; ConfigError where neither place names them."""
    assert link.vendor is not None
    end = link.vendor.alice if role is Role.ALICE else link.vendor.bob
    named = credentials or end
    if not (named.certificate and named.private_key and named.ca_certificate):
        where = f"in links.{link.id}.vendor.{role.value} or as vendor of the node's link"
        what = f"certificate, private_key and ca_certificate of SAE {end.sae}"
        raise ConfigError([f"link {link.id}: source = {link.vendor.interface} needs {what}, {where}"])
    return Path(named.certificate), Path(named.private_key), Path(named.ca_certificate)


class EnclosureConfig(msgspec.Struct, frozen=True):
    """The contact of a node's enclosure (`node.tamper`)."""

    contact: str
    """A file that says whether it is shut, such as /sys/class/gpio/gpio17/value."""
    closed: Literal["0", "1"] = "1"
    """What it says then. A loop that opens when it is cut says so with an input that is pulled to the other value."""
    seals: bool = False
    """Whether the node seals itself when the enclosure is opened; needs a vault."""


class LinkConfig(msgspec.Struct, frozen=True):
    """One link as seen from this node."""

    link: str
    device_socket: str
    """Unix socket of this end's QKD module."""
    peer: Address
    """The other node's inter-node listener."""
    preshared_file: str
    """The pre-shared secret of the first authentication; read once into the key store, then shredded."""
    vendor: VendorCredentials | None = None
    """For a link with source = etsi014 or etsi004 whose topology names no files."""
    peer_verifying_key: str | None = None
    """The ML-DSA-65 public key of the peer's signatures (PEM), for links with bootstrap = ml-dsa."""


class NodeConfig(msgspec.Struct, frozen=True):
    """Everything a node process needs to start."""

    node: str
    directory: str
    key_api: Address
    admin_api: Address
    inter_node: Address
    certificate: str
    private_key: str
    ca_certificate: str
    links: list[LinkConfig]
    topology: dict[str, object]
    signing_key: str | None = None
    """This node's ML-DSA-65 private key (PEM)."""
    verifying_keys: dict[str, str] = {}
    """The ML-DSA-65 public keys of all nodes, by node (PEM files): for hybrid keys and signed notes."""
    kem: str = "ml-kem-768"
    """What this node offers for hybrid keys: `ml-kem-768` or `ml-kem-1024`."""
    revocation_list: str | None = None
    """The authority's signed revocation list (PEM), watched; None where the network has none."""
    stream_api: Address | None = None
    """Where key streams (ETSI GS QKD 004) are served; None: nowhere."""
    skip_api: Address | None = None
    """Where SKIP is served to routers; None: nowhere."""
    sdn_api: Address | None = None
    """Where the agent of ETSI GS QKD 015 serves controllers by RESTCONF; None: nowhere."""
    vault: str | None = None
    """The vault file; None: vault.json in the node's directory."""
    enclosure: EnclosureConfig | None = None
    """The contact of the enclosure; None: there is none."""
    pool_octets_max: int = 64 << 20
    random_device: str | None = None
    """A hardware generator's file, such as /dev/hwrng, whose octets are mixed with the operating system's."""
    parent_pid: int | None = None

    @property
    def node_id(self) -> NodeId:
        """This node."""
        return NodeId(self.node)

    def load_topology(self) -> Topology:
        """The network this node is part of."""
        return Topology.from_dict(self.topology)

    def link(self, link: LinkId) -> LinkConfig | None:
        """This node's view of a link, or None if the link does not end here."""
        return next((entry for entry in self.links if entry.link == link), None)


def check_same_node(old: NodeConfig, new: NodeConfig) -> None:
    """ConfigError where more is changed than a node in service can take: the network, links that come and go."""
    named = ("links", "topology", "verifying_keys")
    wrong = [
        f"{name}: a node in service keeps it; start the node anew"
        for name in NodeConfig.__struct_fields__
        if name not in named and getattr(old, name) != getattr(new, name)
    ]
    before = {entry.link: entry for entry in old.links}
    wrong += [
        f"links.{entry.link}: a link in service keeps its configuration; start the node anew"
        for entry in new.links
        if before.get(entry.link, entry) != entry
    ]
    if wrong:
        raise ConfigError(wrong)


def load(path: Path) -> NodeConfig:
    """Read a node's configuration; ConfigError says which field is wrong."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=NodeConfig)
    except (OSError, msgspec.MsgspecError) as error:
        raise ConfigError([f"{path}: {error}"]) from error
