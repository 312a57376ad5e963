"""Where a key is after it was given out: looked for in processes' memory, on the disk, in every text."""

import base64
import json
import time
from collections import Counter

import pytest

from qtrunk.base.errors import KeyExhausted, KeyNotFound
from qtrunk.base.ids import SaeId
from qtrunk.cli.labclient import LabClient
from qtrunk.node.lab import Lab

BANK, SHOP = SaeId("bank"), SaeId("shop")
MARKERS = 3
CHUNK = 32 << 20


def forms(material: bytes) -> dict[str, bytes]:
    """What a key looks like; parts of it, since a buffer that was used again may have lost either end."""
    return {
        "raw, first half": material[:16],
        "raw, second half": material[16:],
        "base64": base64.b64encode(material)[:20],
        "hexadecimal": material.hex().encode()[:32],
    }


class Markers:
    """Keys that were given out, and what they look like."""

    def __init__(self, materials: list[bytes]) -> None:
        self.needles = [(form, needle) for material in materials for form, needle in forms(material).items()]

    def found_in(self, octets: bytes) -> Counter[str]:
        found: Counter[str] = Counter()
        for form, needle in self.needles:
            found[form] += octets.count(needle)
        return +found

    def found_in_process(self, pid: int) -> Counter[str]:
        """Every readable mapping that the process could have written to."""
        found: Counter[str] = Counter()
        with open(f"/proc/{pid}/maps") as maps, open(f"/proc/{pid}/mem", "rb", 0) as memory:  # noqa: PTH123
            for line in maps:
                span, rights, *_, name = f"{line} ".split(" ", 5)
                if "r" not in rights or (name.strip().startswith("/") and "w" not in rights) or "[v" in name:
                    continue
                at, end = (int(edge, 16) for edge in span.split("-"))
                while at < end:
                    memory.seek(at)
                    try:
                        octets = memory.read(min(end - at, CHUNK))
                    except OSError:
                        break  # It has gone, or is none that can be read.
                    found += self.found_in(octets)
                    at += len(octets)
        return found


def give(lab, number: int) -> list[tuple[str, bytes]]:
    """Keys that went all the way, from the application's side."""
    keys = lab.client(BANK).get_keys(SHOP, number, 256)
    found = lab.client(SHOP).get_keys_with_ids(BANK, [key.key_id for key in keys])
    assert [key.material for key in found] == [key.material for key in keys]
    return [(key.key_id, bytes(key.material.reveal())) for key in keys]


def give_when_there_is(lab, number: int) -> None:
    """The link may have to make the key first."""
    deadline_s = time.monotonic() + 60
    while True:
        try:
            give(lab, number)
            return
        except KeyExhausted:
            assert time.monotonic() < deadline_s
            time.sleep(0.5)


def test_a_key_that_was_given_out_is_on_no_disk_and_in_no_text_and_soon_in_no_memory(small_lab):
    small_lab.client(BANK).get_keys(SHOP, 1, 256)
    small_lab.wait_for_pool(BANK, SHOP, 2 * 32 * MARKERS)
    given = give(small_lab, MARKERS)
    markers = Markers([material for _, material in given])
    processes = {name: pid for name, pid in small_lab.running().items() if pid}
    at_once = {name: markers.found_in_process(pid) for name, pid in processes.items()}

    # The search can find: what an application still holds is there.
    assert markers.found_in(b"".join(material for _, material in given))["raw, first half"] == MARKERS

    # In every text that anyone gets: status, ledgers, receipts, errors, records.
    client = LabClient(Lab.open(small_lab.state))
    with pytest.raises(KeyNotFound) as refused:
        small_lab.client(SHOP).get_keys_with_ids(BANK, [given[0][0]])
    texts = [str(refused.value), json.dumps(small_lab.status())]
    texts += [
        json.dumps(client.node(node, f"/admin/v1/{path}")) for node in ("ada", "bert") for path in ("status", "ledger")
    ]
    texts += [json.dumps(client.node(node, f"/admin/v1/keys/{given[0][0]}")) for node in ("ada", "bert")]
    texts += [
        small_lab.qtrunk(*command).stdout for command in (("ledger",), ("tenants",), ("keys", "show", given[1][0]))
    ]
    assert all(len(text) > 10 for text in texts)
    assert not markers.found_in("\n".join(texts).encode())

    # On the disk: stores, journals, logs, whatever lies in the lab's directory.
    files = [path for path in small_lab.state.rglob("*") if path.is_file()]
    assert len(files) > 50
    assert not [path for path in files if markers.found_in(path.read_bytes())]

    # In memory: nothing in processes that have no business with it; in the two nodes what docs/memory.md says.
    ends = {"node-ada", "node-bert"}
    assert not {name: found for name, found in at_once.items() if found and name not in ends}
    for _ in range(20):
        give_when_there_is(small_lab, 128)
    time.sleep(4)  # A segment's piece that nobody reads is overwritten within two seconds.
    later = {name: markers.found_in_process(processes[name]) for name in ends}
    for name in ends:
        # What a cipher gave out as `bytes` before it went into locked pages, and now and then the text in a buffer of
        # the transport: one copy of each at most.
        assert max(at_once[name].values(), default=0) <= 2 * MARKERS, at_once
        assert "hexadecimal" not in at_once[name], at_once
        # Other keys have used the place since; one straggler is the allocator's good right.
        assert sum(later[name].values()) <= 2, later
