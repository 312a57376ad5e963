"""What can be refused in a request or a relay message before any key is spent on it. Pure functions.

Errors: RequestRefused for what the own SAE asks, WireError for what a neighbour says.
"""

from collections.abc import Sequence
from itertools import pairwise

from qtrunk.base.errors import RequestRefused, WireError
from qtrunk.base.ids import LinkId, NodeId, SaeId, parse_key_id
from qtrunk.kms.keyid import UNIT_OCTETS
from qtrunk.kms.poolstate import HEAD_OCTETS
from qtrunk.relay import messages as wire
from qtrunk.relay.cargo import CONFIRM_OCTETS
from qtrunk.relay.shares import overhead_octets
from qtrunk.topology import Topology


def check_request(
    topology: Topology,
    node: NodeId,
    initiator: SaeId,
    targets: Sequence[SaeId],
    number: int,
    key_bits: int,
    *,
    is_given: bool = False,
) -> None:
    """Refuse what no neighbour would take, so that it fails at once and spends nothing.

    `is_given`: the keys are there already. They come from a foreign network or go to one, never both.
    """
    is_ours = topology.sae(initiator) is not None
    if topology.end_of(initiator) != node or not (is_ours or is_given):
        raise RequestRefused(f"SAE {initiator} is not registered at node {node}; ask at its own node")
    if not targets:
        raise RequestRefused("targets: name at least one SAE")
    for target in targets:
        is_foreign = topology.foreign(target) is not None
        if is_foreign != (is_given and is_ours) or topology.end_of(target) is None:
            raise RequestRefused(f"SAE {target} is not known in this network")
    if not 1 <= number <= wire.KEYS_MAX:
        raise RequestRefused(f"number: {number} keys asked for; from 1 to {wire.KEYS_MAX} at a time")
    if not _is_key_size(key_bits):
        raise RequestRefused(f"size: {key_bits} bits asked for; whole octets, at most {wire.KEY_BITS_MAX} bits")


def check_route(topology: Topology, node: NodeId, link: LinkId, nodes: Sequence[str]) -> tuple[LinkId, ...]:
    """The links of a route that came to `node` over `link`; WireError where it cannot have."""
    if len(nodes) > wire.HOPS_MAX or len(set(nodes)) != len(nodes) or node not in nodes[1:]:
        raise WireError(f"route: distinct nodes, this one behind the first, at most {wire.HOPS_MAX}")
    try:
        links = tuple(topology.link_between(NodeId(a), NodeId(b)).id for a, b in pairwise(nodes))
    except KeyError as error:
        raise WireError("route: two nodes in it are not neighbours") from error
    if links[nodes.index(node) - 1] != link:
        raise WireError(f"route: does not come to {node} over this link")
    return links


def check_order(topology: Topology, node: NodeId, order: wire.Order) -> None:
    """Everything about an order for announced XORs that its own words give away at any node of its route."""
    nodes = order.relay.route
    if len(nodes) < 3 or node not in nodes[1:]:
        raise WireError("route: distinct nodes, relays among them, this one behind the first")
    place = nodes.index(node)
    try:
        link = topology.link_between(NodeId(nodes[place - 1]), NodeId(node)).id
    except KeyError as error:
        raise WireError("route: two nodes in it are not neighbours") from error
    check_route(topology, node, link, nodes)
    if topology.end_of(SaeId(order.relay.initiator)) != nodes[0]:
        raise WireError("initiator: must be an SAE of the route's first node, or of a foreign network beside it")
    if order.relay.pad or len(order.relay.ciphertext) not in (0, order.octets):
        raise WireError("ciphertext: as long as the order says, or none; and no pad")


def check_relay(
    topology: Topology, node: NodeId, link: LinkId, body: wire.KeyRelay, announced_octets: int | None = None
) -> None:
    """Everything about a relay that its own words give away; `announced_octets` came of it by announced XORs."""
    links = check_route(topology, node, link, body.route)
    check_hops(body.hops, body.route, links[: body.route.index(node)])
    octets = len(body.ciphertext) if announced_octets is None else announced_octets
    if body.share is not None:
        share = body.share
        if not 1 <= share.number <= share.count or share.needed > share.count:
            raise WireError("share: number and needed are from 1 to count")
        octets -= overhead_octets(share.count)
    if body.segment:
        _check_segment(body, octets)
    else:
        _check_keys(body, octets)
    if not body.targets:
        raise WireError("targets: none")
    ends = [SaeId(sae) for sae in (body.initiator, *body.targets)]
    foreign = [sae for sae in ends if topology.sae(sae) is None]
    if topology.end_of(ends[0]) != body.route[0] or (foreign and body.segment):
        raise WireError("initiator: must be an SAE of the route's first node, or of a foreign network beside it")
    if ends[0] in foreign and len(foreign) > 1:
        raise WireError("targets: of a foreign network, as their initiator; nothing passes through")
    if any(topology.end_of(target) != body.route[-1] or target not in body.all_targets for target in ends[1:]):
        raise WireError("targets: must be SAEs of the route's last node, or of a foreign network beside it")


def _check_keys(body: wire.KeyRelay, octets: int) -> None:
    if not 1 <= len(body.key_ids) <= wire.KEYS_MAX or len(set(body.key_ids)) != len(body.key_ids):
        raise WireError(f"key_ids: from 1 to {wire.KEYS_MAX}, each once")
    if not _is_key_size(body.key_bits):
        raise WireError(f"key_bits: whole octets, at most {wire.KEY_BITS_MAX} bits")
    if octets != CONFIRM_OCTETS + len(body.key_ids) * body.key_bits // 8:
        raise WireError("ciphertext: not as long as the keys")
    for key_id in body.key_ids:
        parse_key_id(key_id)


def _check_segment(body: wire.KeyRelay, octets: int) -> None:
    if body.key_ids or body.key_bits or len(body.targets) != 1 or body.all_targets != body.targets:
        raise WireError("segment: has one target and no key_ids")
    if not is_segment_size(octets):
        raise WireError("ciphertext: not as long as a segment can be")


def is_segment_size(octets: int) -> bool:
    """Whether a segment may have so many octets."""
    return HEAD_OCTETS < octets <= wire.SEGMENT_OCTETS_MAX and octets % UNIT_OCTETS == 0


def check_hops(hops: Sequence[wire.Hop], nodes: Sequence[str], links: Sequence[LinkId]) -> None:
    """Hop records must tell of these links, each used in the direction of the route: receipts are made of them."""
    # A route has one node more than links: the last one sends nothing on.
    if [(hop.link, hop.sender) for hop in hops] != list(zip(links, nodes, strict=False)):
        raise WireError("hops: do not tell of the links of the route")


def check_answer_hops(topology: Topology, hops: Sequence[wire.Hop], routes: Sequence[Sequence[str]]) -> None:
    """The same of an answer: all hops of several routes, one route after the other."""
    at = 0
    for nodes in routes:
        try:
            links = tuple(topology.link_between(NodeId(a), NodeId(b)).id for a, b in pairwise(nodes))
        except KeyError as error:
            # The route was good when the relay began.
            raise WireError("hops: over a link that is not in the network any more") from error
        check_hops(hops[at : at + len(links)], nodes, links)
        at += len(links)
    if at != len(hops):
        raise WireError("hops: more than the links of the routes")


def _is_key_size(key_bits: int) -> bool:
    return 8 <= key_bits <= wire.KEY_BITS_MAX and key_bits % 8 == 0
