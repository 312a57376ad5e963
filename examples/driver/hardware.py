"""A make-believe pair of QKD boxes: what a maker already has before there is a driver.

    python hardware.py --transmitter tx.sock --receiver rx.sock [--clock-khz 2000]

Each box has a control socket and speaks its maker's own protocol, one JSON object a line, one answer to each command:

    IDENTIFY                                     model, clock_khz
    ARM    slot, entropy, gates, level_edges,    load a slot (three at most); entropy is hexadecimal, edges are the
           mphotons, basis_edge                  integers that draws are compared with; a receiver takes no levels
    START  slot                                  this side is ready; light begins when the other box is ready as well
    CLEAR  [slot]                                forget one slot that has no light yet, or all and go dark
    READ                                         what happened since the last READ

The boxes agree on slots over a wire of their own. Events of READ: `light`, `slice` (receiver: hits as 32-bit offsets,
ports as octets, both base64), `dark` with counters, `void` with a reason. Nothing here knows qtrunk. The light is a
toy: phase coding with 20 % transmittance, no afterpulses, no drift.
"""

import argparse
import asyncio
import base64
import contextlib
import json
import os
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

SLICE_S = 0.05
SLOTS_MAX = 3
FIFO_EVENTS = 64
TRANSMITTANCE = 0.2
VISIBILITY = 0.98
DARK_PROBABILITY = 1e-5
DEAD_GATES = 3


def draw(entropy, first, count):
    """The words of gates first to first + count - 1: AES-256 of the gate number, first eight octets, little-endian."""
    blocks = np.zeros((count, 2), "<u8")
    blocks[:, 0] = np.arange(first, first + count, dtype=np.uint64)
    encryptor = Cipher(algorithms.AES(entropy), modes.ECB()).encryptor()  # noqa: S305  # each block comes once
    return np.frombuffer(encryptor.update(blocks.tobytes()), "<u8")[::2]


@dataclass
class Box:
    """One box: its loaded slots, what it is ready for, and its event memory."""

    side: str
    loads: dict = field(default_factory=dict)
    ready: set = field(default_factory=set)
    events: list = field(default_factory=list)

    def note(self, event, slot, **values):
        """Keep an event for the next READ."""
        self.events.append({"event": event, "slot": slot, **values})

    def void(self, slot, why):
        """A slot of this box will have no (more) light."""
        if self.loads.pop(slot, None) is not None:
            self.ready.discard(slot)
            self.note("void", slot, why=why)


class Bench:
    """Both boxes and the fibre between them."""

    def __init__(self, clock_khz):
        self.clock_khz = clock_khz
        self.tx, self.rx = Box("TX"), Box("RX")
        self.wake = asyncio.Event()
        self.lit = None
        self.broken = None
        self.dice = np.random.default_rng()

    # ── commands ────────────────────────────────────────────────────────────────────────────────────────────────────

    def command(self, box, line):
        """The answer to one line."""
        try:
            request = json.loads(line)
            answer = getattr(self, "do_" + request.pop("cmd").lower())(box, **request)
        except (ValueError, TypeError, AttributeError, KeyError) as error:
            return {"ok": False, "error": f"{type(error).__name__}: {error}"}
        return {"ok": True, **(answer or {})}

    def do_identify(self, box):
        """Who this is."""
        return {"model": f"QB-1 {box.side}", "clock_khz": self.clock_khz}

    def do_arm(self, box, slot, **load):
        """Load a slot."""
        if len(box.loads) >= SLOTS_MAX:
            raise ValueError("no free slot")
        box.loads[slot] = {**load, "entropy": bytes.fromhex(load["entropy"])}

    def do_start(self, box, slot):
        """This side is ready for a slot."""
        if slot not in box.loads:
            raise ValueError("this slot is not loaded")
        box.ready.add(slot)
        self.wake.set()

    def do_clear(self, box, slot=None):
        """Forget one slot, or all."""
        if slot is not None:
            if slot == self.lit:
                raise ValueError("this slot has light")
            del box.loads[slot]
            box.ready.discard(slot)
            return
        if self.lit in box.loads:
            self.broken = f"{box.side} was cleared"
        box.loads.clear()
        box.ready.clear()
        box.events.clear()

    def do_read(self, box):
        """What happened since."""
        events, box.events = box.events, []
        return {"events": events}

    # ── light ───────────────────────────────────────────────────────────────────────────────────────────────────────

    async def shine(self):
        """One slot after another, for ever."""
        while True:
            both = self.tx.ready & self.rx.ready
            if not both:
                self.wake.clear()
                await self.wake.wait()
                continue
            slot = min(both)
            for box in (self.tx, self.rx):
                for lower in [number for number in box.loads if number < slot]:
                    box.void(lower, "the other box passed it over")
            sent, taken = self.tx.loads[slot], self.rx.loads[slot]
            if (sent["gates"], sent["basis_edge"]) == (taken["gates"], taken["basis_edge"]):
                await self.run_slot(slot, sent, taken)
            else:
                self.end_slot(slot, "the boxes were armed differently")

    async def run_slot(self, slot, sent, taken):
        """The light of one slot, slice by slice."""
        self.lit, self.broken = slot, None
        for box in (self.tx, self.rx):
            box.note("light", slot)
        rate_hz = self.clock_khz * 1e3
        step, began_s = max(1, round(rate_hz * SLICE_S)), time.monotonic()
        counts, both_count, blind_until = np.zeros(2, int), 0, -1
        for first in range(0, sent["gates"], step):
            gates = min(step, sent["gates"] - first)
            await asyncio.sleep(max(0.0, began_s + (first + gates) / rate_hz - time.monotonic()))
            if len(self.rx.events) >= FIFO_EVENTS:
                self.broken = "the event memory of RX is full"
            if self.broken:
                break
            hits, fired = self.click(sent, taken, first, gates, blind_until)
            both = fired.all(axis=1)
            ports = np.where(both, self.dice.integers(0, 2, len(hits)), fired[:, 1])
            counts, both_count = counts + fired.sum(axis=0), both_count + int(both.sum())
            blind_until = first + int(hits[-1]) + DEAD_GATES if len(hits) else blind_until
            self.rx.note("slice", slot, first=first, gates=gates, hits=pack(hits, "<u4"), ports=pack(ports, "u1"))
        self.lit = None
        if self.broken:
            self.end_slot(slot, self.broken)
            return
        seconds = time.monotonic() - began_s
        self.tx.note("dark", slot, seconds=seconds, mphotons=[round(level * 1.002, 3) for level in sent["mphotons"]])
        bias_ua = [0.16e-6 * float(count) / seconds for count in counts]
        self.rx.note("dark", slot, seconds=seconds, counts=counts.tolist(), coincidences=both_count, bias_ua=bias_ua)
        for box in (self.tx, self.rx):
            box.loads.pop(slot, None)
            box.ready.discard(slot)

    def end_slot(self, slot, why):
        """Both boxes give a slot up."""
        for box in (self.tx, self.rx):
            box.void(slot, why)

    def click(self, sent, taken, first, gates, blind_until):
        """Which gates of a slice clicked, as offsets, and which detectors in them."""
        mine, theirs = (draw(load["entropy"], first, gates) for load in (sent, taken))
        edges = np.array(sent["level_edges"], np.uint64)
        level = np.searchsorted(edges, mine & np.uint64(0xFFFFFFFF), side="right")
        edge = np.uint64(sent["basis_edge"])
        half_turns = (mine >> np.uint64(48)) & np.uint64(1)
        quarter_turns = ((mine >> np.uint64(32)) & np.uint64(0xFFFF)) >= edge
        phase = np.pi * half_turns + np.pi / 2 * quarter_turns - np.pi / 2 * ((theirs & np.uint64(0xFFFF)) >= edge)
        photons = np.array(sent["mphotons"])[level] * 1e-3 * TRANSMITTANCE
        shares = (1 + VISIBILITY * np.cos(phase)[:, None] * np.array([1, -1])) / 2
        dark = self.dice.random((gates, 2)) < DARK_PROBABILITY
        fired = dark | (self.dice.random((gates, 2)) < 1 - np.exp(-photons[:, None] * shares))
        live = []
        for offset in np.flatnonzero(fired.any(axis=1)).tolist():
            if first + offset > blind_until:
                live.append(offset)
                blind_until = first + offset + DEAD_GATES
        hits = np.array(live, np.uint64)
        return hits, fired[hits.astype(np.int64)]

    async def serve(self, path, box):
        """Listen at one box's control socket."""

        async def talk(reader, writer):
            with contextlib.suppress(ConnectionError):
                while line := await reader.readline():
                    writer.write(json.dumps(self.command(box, line)).encode() + b"\n")
                    await writer.drain()
            # A box without its driver is of no use to the other: go dark.
            self.do_clear(box)
            writer.close()

        before = os.umask(0o177)
        try:
            return await asyncio.start_unix_server(talk, str(path))
        finally:
            os.umask(before)


def pack(values, kind):
    """Numbers as base64 of their octets."""
    return base64.b64encode(values.astype(kind).tobytes()).decode()


async def run(options):
    """Both boxes, until told to stop."""
    bench = Bench(options.clock_khz)
    async with await bench.serve(options.transmitter, bench.tx), await bench.serve(options.receiver, bench.rx):
        await bench.shine()


def main():
    """Switch the boxes on."""
    parser = argparse.ArgumentParser(description="a make-believe pair of QKD boxes")
    parser.add_argument("--transmitter", type=Path, required=True, help="control socket of the transmitter box")
    parser.add_argument("--receiver", type=Path, required=True, help="control socket of the receiver box")
    parser.add_argument("--clock-khz", type=float, default=2000.0)
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(run(parser.parse_args()))


if __name__ == "__main__":
    main()
