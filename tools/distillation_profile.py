"""Where the time of distillation goes: writes docs/profile.md (`make profile`).

    .venv/bin/python tools/distillation_profile.py

Both parties of one block in this process, one after the other, each call of the compiled loops and of the slower
functions of Python timed by cProfile. The light is that of the benchmark of distillation.
"""

import cProfile
import pstats
import time
from collections import deque
from dataclasses import replace
from pathlib import Path

from qtrunk.distil.parties import BlockAlice, BlockBob, Hold, Send
from qtrunk.plan.bench import distillation as bench
from qtrunk.plan.bench.report import machine
from qtrunk.quantum.channel import Channel
from qtrunk.quantum.optics import of_equipment
from qtrunk.quantum.run import end_seed, seed_of
from qtrunk.stages import Pulses, Role
from qtrunk.topology import Equipment

DOCS = Path(__file__).parent.parent / "docs"
ROWS = 12
RUNS = 3
PATH = "avx512"


class Party:
    """One machine, its clock and its profile."""

    def __init__(self, work, block: int) -> None:
        self.profile = cProfile.Profile()
        self.took_s = 0.0
        self.machine: BlockAlice | BlockBob = self.timed(bench._make, work, block)

    def timed(self, call, *arguments):
        """The result of a call whose time counts."""
        began_s = time.process_time()
        self.profile.enable()
        try:
            return call(*arguments)
        finally:
            self.profile.disable()
            self.took_s += time.process_time() - began_s

    def rows(self, bits: int) -> list[str]:
        """The dearest functions, as rows of a table."""
        stats = pstats.Stats(self.profile)
        found = sorted(((own, place, calls) for place, (_, calls, own, _, _) in stats.stats.items()), reverse=True)
        return [
            f"| {place[2]}{'' if place[0] == '~' else f' ({Path(place[0]).stem})'} | {calls} | {1e9 * own / bits:.2f} "
            f"| {own / self.took_s:.0%} |"
            for own, place, calls in found[:ROWS]
        ]


def run(alice_work, bob_work, block: int) -> tuple[Party, Party, int]:
    """Both parties of one block, and its sifted bits."""
    alice, bob, bits = Party(alice_work, block), Party(bob_work, block), 0
    said = deque((bob, effect) for effect in bob.timed(bob.machine.start))
    while said:
        speaker, effect = said.popleft()
        if isinstance(effect, Send):
            listener = alice if speaker is bob else bob
            said.extend((listener, each) for each in listener.timed(listener.machine.receive, effect.octets))
        elif isinstance(effect, Hold):
            bits = effect.key.sifted_bits
    return alice, bob, bits


def main() -> None:
    """Measure, and write the page."""
    optics = of_equipment(replace(Equipment(), key_basis_probability=bench.KEY_BASIS), bench.LOSS_DB)
    source, count = optics.source, round(bench.LIGHT_S * optics.clock_hz)
    seeds = end_seed(4, 0, Role.ALICE), end_seed(4, 0, Role.BOB)
    clicks = Channel(optics, seed_of(4, "light")).sample(*seeds, 0, count)
    pulses = Pulses(
        link="alice-bob",
        block=0,
        count=count,
        intensities=source.intensities,
        probabilities=source.exact_probabilities,
        key_basis_probability=source.exact_key_basis_probability,
    )
    works = (
        bench._Work(pulses, source, seeds[0], None, None, "fast", PATH),
        bench._Work(pulses, source, seeds[1], clicks.positions, clicks.bits, "fast", PATH),
    )
    alice, bob, bits = min((run(*works, block) for block in range(RUNS)), key=lambda done: done[0].took_s)
    head = ["| function | calls | ns for each sifted bit | share |", "| --- | --- | --- | --- |"]
    lines = [
        "# Where the time of distillation goes",
        "",
        "Written by `make profile`: both parties of one block in one process, CPU time, the best of three.",
        "",
        f"Machine: {machine()}.",
        "",
        f"{len(clicks.positions):,} clicks, {bits:,} sifted bits. Alice {1e9 * alice.took_s / bits:.1f} ns a bit,",
        f"Bob {1e9 * bob.took_s / bits:.1f}: side by side on two cores and without a network at most",
        f"{1e3 / (1e9 * max(alice.took_s, bob.took_s) / bits):.0f} Mbit/s.",
        "",
        "## Alice",
        *head,
        *alice.rows(bits),
        "",
        "## Bob",
        *head,
        *bob.rows(bits),
        "",
        "## Reading it",
        "The decoder is bound by 512-bit integer instructions, some twenty for each edge and 64 checks; the goals of",
        "[benchmarks.md](benchmarks.md) were set on a processor that issues 12.9 billion of them a second, and one that",
        "issues half as many (a register of 512 bits in two halves) decodes at 0.6 to 0.7 of the rate. What remains is spread:",
        "both ends look up what was sent or measured at each click (one block of AES-256 each), hash the key, hash the",
        "transcript, pick bits by masks. None of it is more than a few passes over memory, and there are some twenty.",
        "Between processes the octets of a block, three for each bit, are copied four times by the kernel.",
        "",
        "Other goals that [benchmarks.md](benchmarks.md) shows as not reached, and what bounds them:",
        "",
        "- LDPC with 2^20 bits: the same instructions, more steps (40 where 2^16 bits at f 1.2 take 14), and a state of 10 MB",
        "  that the second cache does not hold.",
        "- Cascade: the kernel alone does 80 to 100 Mbit/s at either end; with several keys under way their permutations and",
        "  running parities push each other out of the cache, and each of some three hundred round trips wakes two threads.",
        "- Toeplitz hashing from 2^22 bits: butterflies take a third, products that wait for memory a fifth, the change of",
        "  basis another.",
        "- Sifting: bits lie in octets, because modules give and the decoder takes them so; packed ones would be eight times",
        "  as fast to pick, and would have to be packed and unpacked.",
    ]
    (DOCS / "profile.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
