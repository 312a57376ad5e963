"""Write docs/cascade.md and its picture: what Cascade says of a key over the least possible, by error rate and length.

    python tools/cascade_report.py

Both machines of distil.cascade in one process, keys and errors of plan.bench.cascade: fixed seeds, nothing typed in but
the published figures.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from qtrunk.distil import reconcile
from qtrunk.distil.cascade import PASSES, QBER_MAX, CascadeAlice, CascadeBob, plan
from qtrunk.distil.keylength import entropy
from qtrunk.plan.bench.cascade import alice_bits, errors

ROOT = Path(__file__).parent.parent
PAGE, PICTURE = ROOT / "docs" / "cascade.md", ROOT / "docs" / "images" / "cascade.png"
TOTAL_BITS = 1 << 22
"""Of all keys of a row: what is said per bit is known to a thousandth of itself."""
LENGTHS = (1 << 14, 1 << 16, 1 << 18, 1 << 20, 1 << 22)
RATES = (0.003, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.025, 0.03, 0.04, 0.05, 0.06, 0.07, 0.08, 0.09, 0.1, 0.11)


@dataclass(frozen=True)
class Row:
    """What keys of one length and error rate took."""

    efficiency: float
    budget: float
    """The budget over the least possible at the bound."""
    trips: float
    failed: int


def measure(bits: int, qber: float) -> Row:
    """TOTAL_BITS of keys through both machines."""
    said = least = trips = 0.0
    failed, chosen, keys = 0, plan(bits, qber), TOTAL_BITS // bits
    for key in range(keys):
        ours, wrong = alice_bits(key, bits), errors(key, bits, qber)
        alice, bob = (
            CascadeAlice(ours, chosen, hashlib.sha256(key.to_bytes(4)).digest()),
            CascadeBob(ours ^ wrong, chosen),
        )
        message = alice.start()
        while message is not None:
            message = alice.received(bob.received(message))
        failed += not np.array_equal(bob.corrected, ours)
        said += alice.leak_bits
        trips += alice.rounds
        least += bits * entropy(float(wrong.mean()))
    return Row(said / least, chosen.budget_bits / (bits * entropy(qber)), trips / keys, failed)


def ldpc(qber: float) -> float | None:
    """What the leanest shipped code for this error rate says; None where there is none."""
    return next(
        (code.m / (code.n * entropy(qber)) for code in reconcile.index() if code.design_qber >= qber),
        None,
    )


def draw(rows: dict[tuple[int, float], Row]) -> None:
    """The curves."""
    figure, axes = plt.subplots(figsize=(7, 4))
    for bits in LENGTHS:
        axes.plot(RATES, [rows[bits, qber].efficiency for qber in RATES], marker="o", ms=3, label=f"{bits:,} bits")
    codes = [(qber, f) for qber in np.linspace(RATES[0], RATES[-1], 400) if (f := ldpc(qber))]
    axes.plot(*zip(*codes, strict=True), color="grey", lw=0.8, label="LDPC codes, error rate known")
    axes.set(xscale="log", xlabel="QBER", ylabel="bits said / least possible", ylim=(1.0, 1.45))
    axes.set_xticks([0.003, 0.01, 0.03, 0.1], ["0.3 %", "1 %", "3 %", "10 %"])
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(PICTURE, dpi=110, metadata={"Software": None})


def page(rows: dict[tuple[int, float], Row]) -> str:
    """docs/cascade.md."""
    longest = LENGTHS[-1]
    table = [
        "| QBER | blocks | " + " | ".join(f"{bits:,} bits" for bits in LENGTHS) + " | round trips | LDPC |",
        "| --- |" + " --- |" * (len(LENGTHS) + 3),
    ]
    for qber in RATES:
        said = " | ".join(f"{rows[bits, qber].efficiency:.3f}" for bits in LENGTHS)
        code = ldpc(qber)
        table.append(
            f"| {qber:.2%} | {plan(longest, qber).blocks[0]}, {plan(longest, qber).blocks[1]} | {said} | {rows[longest, qber].trips:.0f} "
            f"| {'' if code is None else f'{code:.2f}'} |"
        )
    failed = sum(row.failed for row in rows.values())
    keys = sum(TOTAL_BITS // bits for bits in LENGTHS) * len(RATES)
    budget = max(rows[longest, qber].budget for qber in RATES if qber >= 0.01)
    at_three = rows[longest, 0.03].efficiency
    return f"""# Cascade

The two machines of `qtrunk.distil.cascade` reconcile two sifted keys by asking parities, over octets only. Its docstring says what is on
the wire, what leaks and under which conditions; this page, written by `tools/cascade_report.py`, says how much is said.
Speed is in [benchmarks.md](benchmarks.md).

## How
Frames of up to 65,536 bits, up to 64 of them in a batch, bit by bit side by side in 64-bit words, so that one permutation and one running parity
serve all. {PASSES} passes: blocks of a power of two near 1 / QBER, then four or eight times that, then halves of the frame. An odd block is halved until one bit
is left; every part that a search leaves behind has a known parity and is used again when an error is found in it by another pass. In a round trip
each frame asks for as many parts as together hold at most half its bits, smallest first: fewer would say less and take longer.
Both ends feed the same machine with the same mismatches, so which parities are asked is never said. At the end 32 bits of a hash over a
batch tell whether errors are left; then all its frames take another pass.

## What is said
Bits that Alice says of her key (parities and hash) over the least possible, n h(errors / n), with the plan made for that QBER.
Each entry is {TOTAL_BITS:,} bits in keys of that length; round trips are those of the longest keys. LDPC: the shipped codes where the
error rate is known and no frame fails; a code must also leave room for chance, Cascade follows what it meets.

{chr(10).join(table)}

![What Cascade says, by error rate and length of the key](images/cascade.png)

{failed} of {keys:,} keys came out different. The budget, above which both ends give up, is at most {budget:.2f} times the least
possible at the bound (longest keys, QBER from 1 %); bounds above {QBER_MAX:.0%} are refused.

Longer second blocks say up to 1 % less and need up to twice the round trips; these are a middle way.

## Beside others

| | said over the least, QBER 3 % | rate | |
| --- | --- | --- | --- |
| here | {at_three:.3f} | [benchmarks.md](benchmarks.md) | two processes, loopback TCP, keys of {longest:,} bits |
| cascade-cpp (Rijsman), as published | 1.07 | 7 to 10 Mbit/s | one process; not measured here |

## What to take off the key
`leak_bits`, alike at both ends, never above the budget; it counts one direction. That is enough where the key length claims no vacuum
events and Bob's receiver is as good as a qubit's (the docstring argues it); otherwise it must be taken twice.
"""


def main() -> None:
    """Measure and write."""
    rows = {(bits, qber): measure(bits, qber) for bits in LENGTHS for qber in RATES}
    draw(rows)
    PAGE.write_text(page(rows))


if __name__ == "__main__":
    main()
