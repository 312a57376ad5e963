"""What a node's store holds of end-to-end key, by how it came: what falls with a node is worked out from that.

Pools count at the initiator's side alone, in octets; of what was given out, that of living segments. Keys of their
own count where they wait for a target, in keys and octets.
"""

import json
import sqlite3
from collections.abc import Iterable
from typing import Any

from qtrunk.kms.consume import INITIATED
from qtrunk.kms.journal import Journal
from qtrunk.kms.keyid import UNIT_OCTETS
from qtrunk.kms.poolstate import Segment

Held = dict[str, Any]
"""initiator, target; saes: all who have the key; routes, needed, protection: as receipts have them; available_octets,
delivered_octets, keys."""


def held(journal: Journal, segments: Iterable[Segment]) -> list[Held]:
    """All of it, summed by SAEs and way."""
    found: dict[str, Held] = {}

    def add(initiator: str, target: str, saes: list[str], receipt: str, **amounts: int) -> None:
        about = json.loads(receipt)
        way = {
            "initiator": initiator,
            "target": target,
            "saes": saes,
            "routes": about["routes"],
            "needed": about.get("needed", 1),
            "protection": about.get("protection", "qkd"),
        }
        entry = found.setdefault(
            json.dumps(way, sort_keys=True), {**way, "available_octets": 0, "delivered_octets": 0, "keys": 0}
        )
        for name, amount in amounts.items():
            entry[name] += amount

    receipts = journal.read(_receipts)
    for one in segments:
        receipt = receipts.get((one.pool.number, one.number))
        if one.pool.side == INITIATED and receipt is not None:
            pair = [str(one.pool.initiator), str(one.pool.target)]
            free, delivered = one.free * UNIT_OCTETS, one.delivered * UNIT_OCTETS
            add(pair[0], pair[1], pair, receipt, available_octets=free, delivered_octets=delivered)
    for initiator, target, targets, key_bits, receipt, count in journal.read(_waiting):
        saes = [initiator, *json.loads(targets)]
        add(initiator, target, saes, receipt, keys=count, available_octets=count * key_bits // 8)
    return list(found.values())


def _receipts(db: sqlite3.Connection) -> dict[tuple[int, int], str]:
    rows = db.execute("SELECT pool, segment, receipt FROM pool_segments WHERE state = 'available'")
    return {(pool, segment): receipt for pool, segment, receipt in rows}


def _waiting(db: sqlite3.Connection) -> list[tuple[str, str, str, int, str, int]]:
    return db.execute(
        "SELECT s.initiator, r.target, s.targets, s.key_bits, s.receipt, COUNT(*) FROM stored s "
        "JOIN recipients r USING (key_id) WHERE s.state = 'stored' AND r.state = 'pending' GROUP BY 1, 2, 3, 4, 5"
    ).fetchall()
