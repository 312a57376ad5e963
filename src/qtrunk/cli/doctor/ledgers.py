"""Ledgers: at each end every octet is accounted for, and what the two ends of a link or pool tell fits together.

Both ends go on while they are asked, so amounts are compared by what may be: counters only grow, and all first readings
are older than all second ones (`site.Answer.ledgers`).
"""

import time
from collections.abc import Iterator
from typing import Any

from qtrunk.cli import ledger
from qtrunk.cli.doctor.finding import Finding, Level, error, warning
from qtrunk.cli.doctor.site import Site
from qtrunk.topology import Topology

SETTLE_S = 6.0
"""For a block or segment that is on its way between two ends."""
PAUSE_S = 0.5
Json = dict[str, Any]


def check_ledgers(site: Site, settle_s: float = SETTLE_S) -> Iterator[Finding]:
    """All links and pools. What may only be a block on its way counts if it is there each time for `settle_s`."""
    until_s = time.monotonic() + settle_s
    found = list(_compared(site))
    while any(finding.level is Level.WARNING for finding in found) and time.monotonic() < until_s:
        time.sleep(min(PAUSE_S, settle_s))
        site = site.again()
        again = list(_compared(site))
        still = {finding.on for finding in again}
        lasting = [finding for finding in found if finding.level is Level.ERROR or finding.on in still]
        known = {(finding.level, finding.on) for finding in lasting}
        new = [each for each in again if each.level is Level.ERROR and (each.level, each.on) not in known]
        found = lasting + new
    yield from found


def _compared(site: Site) -> Iterator[Finding]:
    answers = {node: answer for node, answer in site.answers.items() if not answer.problem}
    topology = site.nodes[0].load_topology()
    firsts: dict[str, Json | None] = {node: answer.ledgers[0] for node, answer in answers.items()}
    pools = {node: answer.status.get("pools", []) for node, answer in answers.items()}
    for row in [*ledger.link_rows(topology, firsts), *ledger.pool_rows(pools)]:
        if row["what"] == "unaccounted":
            yield from _unaccounted(row)
    yield from _links(topology, site)
    for row in ledger.pool_rows(pools):
        if row["what"] == "filled" and None not in (row["first"], row["second"]) and row["first"] != row["second"]:
            yield _differs(row["of"], "filled", row["first"], row["second"])


def _unaccounted(row: ledger.Row) -> Iterator[Finding]:
    amounts = [amount for amount in (row["first"], row["second"]) if amount]
    if amounts:
        what = f"{', '.join(f'{amount:,}' for amount in amounts)} octets of key are unaccounted for"
        why = "key was lost, or used without a record: trust none of it until that is known"
        fix = "take the link out of service, keep the stores and audit logs, and see `qtrunk ledger`"
        yield error(row["of"], what, why, fix)


def _links(topology: Topology, site: Site) -> Iterator[Finding]:
    for link in topology.links:
        ends = [site.answers.get(node) for node in (link.alice, link.bob)]
        readings = [[reading.get(link.id) for reading in end.ledgers] for end in ends if end is not None]
        if len(readings) < 2 or not all(reading for end in readings for reading in end):
            continue
        for user, follower in ((0, 1), (1, 0)):
            yield from _followed(f"link {link.id}", readings[user], readings[follower])
        (alice, alice_after), (bob, bob_after) = [[int(r["generated"]) for r in end if r] for end in readings]
        # Both grew while they were read: they may have been alike at one moment if the two spans overlap.
        if alice_after < bob or bob_after < alice:
            yield _differs(f"link {link.id}", "generated", alice_after, bob_after)


def _followed(on: str, user: list[Json | None], follower: list[Json | None]) -> Iterator[Finding]:
    """Nobody follows what was not allocated: the follower's first reading is older than the user's second."""
    assert user[1] is not None
    assert follower[0] is not None
    used, followed = int(user[1]["allocated"]), int(follower[0]["followed"])
    if followed > used:
        what = f"one end allocated {used:,} octets, the other followed {followed:,}"
        why = "one end's record went back (an old copy of its store?): the same octets may be used twice"
        fix = "stop both nodes at once; start the link afresh at both ends with new stores"
        yield error(on, what, why, fix)


def _differs(of: str, what: str, first: int, second: int) -> Finding:
    return warning(
        of,
        f"{what}: {first:,} octets at the one end, {second:,} at the other",
        "key that only one end holds serves nobody",
        "a block may be on its way: ask again; if it stays, see the alarms of both ends and node.log",
    )
