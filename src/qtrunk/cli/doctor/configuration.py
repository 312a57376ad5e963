"""Configurations: they can be read, fit the topology and each other, and promise what the links can carry."""

from collections.abc import Iterator
from pathlib import Path

from qtrunk.base.ids import LinkId
from qtrunk.cli.doctor.finding import Finding, error, warning
from qtrunk.cli.doctor.ports import services
from qtrunk.cli.doctor.site import Site, links_of, restart_of
from qtrunk.node.config import NodeConfig
from qtrunk.node.lab import Lab, NodePorts
from qtrunk.plan import guarantees


def check_configuration(site: Site) -> Iterator[Finding]:
    """Files that could not be read, then what they say."""
    yield from site.problems
    for config in site.nodes:
        yield from _links(config)
        if site.lab is not None:
            yield from _of_lab(config, site.lab)
    yield from _pairs(site)
    yield from _ports(site)
    for topology in [config.load_topology() for config in site.nodes][:1]:
        for text in guarantees.warnings(topology):
            why = "tenants will wait for what they were promised"
            yield warning(f"topology {topology.name}", text, why, "lower the guarantees, or add links")
        if topology.key_api.loopback_test:
            what = "key_api.loopback_test is on"
            yield warning(
                f"topology {topology.name}", what, "keys of an SAE with itself protect nothing", "switch it off"
            )


def check_preshared(site: Site) -> Iterator[Finding]:
    """A pre-shared secret is taken into the sealed store at the first start; what stays behind is in the clear."""
    for config in site.nodes:
        answer = site.answers.get(config.node)
        for entry in config.links:
            path = Path(entry.preshared_file)
            if path.exists() and answer is not None and not answer.problem:
                what = f"{path} is still there though the node runs"
                fix = "start the node again: it takes and shreds it; if it was taken before, shred it (shred -u)"
                yield warning(f"node {config.node}, link {entry.link}", what, "a secret lies in the clear", fix)


def _links(config: NodeConfig) -> Iterator[Finding]:
    topology = config.load_topology()
    wanted = {link.id for link in topology.links_of(config.node_id)}
    given = [LinkId(entry.link) for entry in config.links]
    for link in sorted(wanted - set(given)):
        what = f"its configuration lacks the link {link}, which ends at it in the topology"
        yield error(f"node {config.node}", what, "the link gives no key", "add the link to `links`")
    for link in sorted(set(given) - wanted):
        what = f"its configuration has the link {link}, which does not end at it in the topology"
        yield error(f"node {config.node}", what, "the node cannot start", "correct `links` or `topology`")
    for entry, found in links_of(config):
        has_keys = config.signing_key is not None and entry.peer_verifying_key is not None
        if found.distillation.bootstrap == "ml-dsa" and not has_keys:
            what = f"link {entry.link} has bootstrap = ml-dsa, without signing_key and peer_verifying_key"
            yield error(f"node {config.node}", what, "the node cannot start", "name both files in its configuration")


def _of_lab(config: NodeConfig, lab: Lab) -> Iterator[Finding]:
    """A lab's own files say the same thing."""
    fix = f"{restart_of(lab)}: it is written anew"
    if config.load_topology() != lab.topology:
        yield error(f"node {config.node}", "its topology is not that of lab.json", "nodes disagree on routes", fix)
    ports = lab.ports.get(config.node)
    told = {name: getattr(config, name) for name in NodePorts.__struct_fields__}
    if ports != NodePorts(**{name: address.port if address else 0 for name, address in told.items()}):
        what = "it is told other ports than lab.json has"
        yield error(f"node {config.node}", what, "commands and clients look for it elsewhere", fix)


def _pairs(site: Site) -> Iterator[Finding]:
    """Nodes whose configurations are both here agree about the network and about each other's address."""
    by_node = {config.node: config for config in site.nodes}
    first = next(iter(site.nodes), None)
    for config in site.nodes:
        topology = config.load_topology()
        assert first is not None
        if topology != first.load_topology():
            what = f"its topology differs from that of node {first.node}"
            yield error(
                f"node {config.node}", what, "they disagree on routes, SAEs or tenants", "give all the same one"
            )
            continue
        for entry, link in links_of(config):
            peer = by_node.get(link.other(config.node_id))
            if peer is not None and peer.inter_node.port != entry.peer.port:
                what = f"it looks for {peer.node} at port {entry.peer.port}, which listens at {peer.inter_node.port}"
                yield error(f"node {config.node}, link {entry.link}", what, "the link gives no key", "correct `peer`")


def _ports(site: Site) -> Iterator[Finding]:
    """No two services of this machine have one port."""
    owners: dict[tuple[str, int], str] = {}
    for config in site.nodes:
        for service in services(config):
            owner = owners.setdefault((service.address.host, service.address.port), service.on)
            if owner != service.on:
                yield error(service.on, f"the port is also that of {owner}", "one of them cannot start", "change one")
