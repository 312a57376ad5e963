"""Write docs/diagnosis.md: what `qtrunk.quantum.diagnosis` makes of attacks and faults of the simulated link.

    python tools/diagnosis_report.py [--seeds N] [--first-seed S] [--print]

Each case is a link of its own seed: some honest blocks, which the norm learns from, then one kind at one strength. The
thresholds were set on seeds below 1000; the page is made of seeds from 1000 on, which they have never seen.
"""

import argparse
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from scipy.stats import beta

from qtrunk.quantum import diagnosis, run
from qtrunk.quantum.attack import KINDS, Attack
from qtrunk.quantum.channel import Channel, drift_of
from qtrunk.quantum.optics import of_equipment
from qtrunk.quantum.readings import Readings
from qtrunk.quantum.situation import NO_STRENGTH
from qtrunk.stages import Observations
from qtrunk.topology import Equipment

PAGE = Path(__file__).parent.parent / "docs" / "diagnosis.md"
PULSES = 600_000_000
KM = (20.0, 80.0)
HONEST, AFTER = 3, 1
EQUIPMENT = Equipment(gate_mismatch_s=20e-12)
CASES = (
    Attack("intercept-resend"),
    Attack("intercept-resend", 0.3),
    Attack("beam-splitting"),
    Attack("photon-number-splitting"),
    Attack("photon-number-splitting", 0.3),
    Attack("trojan-horse"),
    Attack("trojan-horse", 1.0, 1e-5),
    Attack("blinding"),
    Attack("blinding", 0.3),
    Attack("blinding", 1.0, 0.01),
    Attack("after-gate"),
    Attack("after-gate", 0.1),
    Attack("time-shift"),
    Attack("time-shift", 1.0, 60.0),
    Attack("calibration"),
    Attack("calibration", 1.0, 120.0),
    Attack("passive-faraday-mirror"),
    Attack("passive-faraday-mirror", 0.3),
    Attack("unambiguous-discrimination"),
    Attack("unambiguous-discrimination", 0.3),
    Attack("laser-seeding"),
    Attack("laser-seeding", 1.0, 1.2),
    Attack("bend", 1.0, 3.0),
    Attack("bend", 1.0, 10.0),
    Attack("cut"),
    Attack("dead-detector"),
    Attack("weak-detector"),
    Attack("weak-detector", 1.0, 0.75),
    Attack("dark-counts"),
    Attack("dark-counts", 1.0, 60.0),
    Attack("afterpulsing"),
    Attack("afterpulsing", 1.0, 10.0),
    Attack("transmitter-power"),
    Attack("transmitter-power", 1.0, 1.2),
    Attack("phase-drift"),
    Attack("phase-drift", 1.0, 0.7),
)
"""Kinds at the strengths that the page measures. A block is half a second, so bends are quick ones."""


Row = tuple[str, float, str, str, str, str]
"""What it was, km, and what was said of it: both ends, Alice's, Bob's, Bob's without counts."""


class Watcher(Readings):
    """Keeps also what only the clicks' places tell."""

    close = 0

    def period(self, situation, step, clicks, pulses) -> None:
        super().period(situation, step, clicks, pulses)
        self.close += diagnosis.close_clicks(clicks.positions, self.optics.dead_pulses)


@dataclass
class Case:
    """A block with what each end sees of it."""

    attack: Attack
    km: float
    number: int
    alice: diagnosis.Seen
    bob: diagnosis.Seen
    both: diagnosis.Seen
    norm: diagnosis.Norm


def observations(optics, seen: run.Observed) -> Observations:
    """As both ends would count them."""
    matched, wrong = run.ALICE_BASIS == run.BOB_BASIS, run.BIT != run.ALICE_BIT

    def by_level(where):
        return tuple(int(seen.counts[where & (level == run.LEVEL)].sum()) for level in range(3))

    return Observations(
        intensities=optics.source.intensities,
        probabilities=optics.source.exact_probabilities,
        key_counts=by_level(matched & (run.ALICE_BASIS == 0)),
        test_counts=by_level(matched & (run.ALICE_BASIS == 1)),
        test_errors=by_level(matched & (run.ALICE_BASIS == 1) & wrong),
    )


def course(attack: Attack, km: float, seed: int, honest: int = HONEST, after: int = AFTER) -> Iterator[Case]:
    """Blocks of one link: honest ones, then `after` with the attack or fault; the norm has learnt from the former."""
    optics = of_equipment(EQUIPMENT, EQUIPMENT.connector_loss_db + EQUIPMENT.fibre_db_per_km * km)
    optics = replace(optics, is_phase_random=attack.kind != "unambiguous-discrimination")
    channel = Channel(optics, run.seed_of(seed, attack.kind, str(km)), drift_of(EQUIPMENT, km))
    norm = diagnosis.norm_of(optics)
    for number in range(honest + after):
        if number == honest:
            channel.attack(attack)
        watch = Watcher(channel.optics, channel.dice)
        seconds = PULSES / optics.clock_hz / (1 - channel.reference_fraction)
        (done,) = run.blocks(
            channel, seconds=seconds, seed=1000 * seed + number, block_pulses=PULSES, watch=lambda _, w=watch: w
        )
        bob = diagnosis.seen_by_bob(done.seen.pulses, done.seen.clicks, watch.close, watch.receiver())
        counted = observations(optics, done.seen)
        alice = diagnosis.Seen(
            pulses=done.seen.pulses,
            clicks=done.seen.clicks,
            transmitter=watch.transmitter(),
            intensities=optics.source.intensities,
        ).with_counts(counted)
        bob = bob.with_counts(counted)
        both = replace(bob, transmitter=alice.transmitter, intensities=alice.intensities)
        here = attack if number >= honest else Attack()
        yield Case(here, km, number, alice, bob, both, norm)
        if number < honest:
            norm.learn(bob)


def named(seen: diagnosis.Seen, norm: diagnosis.Norm) -> diagnosis.Hypothesis:
    """The likeliest."""
    return diagnosis.diagnose(diagnosis.signs(seen, norm))[0]


def judged(task: tuple[Attack, float, int]) -> list[Row]:
    """Of one course: what it was, the distance, and what is said by both ends together, by Alice's alone, by Bob's
    alone, and by Bob's without the counts of sifting.
    """
    rows = []
    for case in course(*task):
        bare = replace(case.bob, levels=None, errors=None, tested=0.0)
        said = [named(seen, case.norm).kind for seen in (case.both, case.alice, case.bob, bare)]
        rows.append((case.attack.kind, case.km, *said))
    return rows


def _kinds(matrix: Counter) -> list[str]:
    """All that was, nothing first."""
    return sorted({was for was, _ in matrix}, key=lambda kind: (kind != "none", kind))


def _matrix(matrix: Counter) -> list[str]:
    """What was against what was said, as counts; right ones in bold."""
    kinds = _kinds(matrix)
    said = [diagnosis.NOTHING, *kinds[1:], *sorted({name for _, name in matrix} - {diagnosis.NOTHING, *kinds})]
    lines = [
        f"| what it was | {' | '.join(str(number) if number < len(kinds) else name for number, name in enumerate(said))} |",
        "| --- |" + " --- |" * len(said),
    ]
    for number, kind in enumerate(kinds):
        counts = [matrix[kind, name] for name in said]
        cells = [f"**{count}**" if each == number and count else str(count or "") for each, count in enumerate(counts)]
        lines.append(f"| {number} {kind} | {' | '.join(cells)} |")
    return lines


def _strengths(kind: str) -> str:
    """The strengths of a kind's cases, with the share of pulses where it is not all of them."""
    found = []
    for attack in CASES:
        if attack.kind != kind:
            continue
        known = KINDS[kind]
        strength = known.strength if attack.strength is None else attack.strength
        words = "" if known.meaning == NO_STRENGTH else f"{strength:g} {known.meaning}"
        share = "" if attack.fraction == 1 else f"on {attack.fraction:.0%} of the pulses"
        found.append(" ".join(filter(None, (words, share))) or "all of it")
    return "; ".join(found)


def page(rows: list[Row], seeds: range) -> str:
    """What the rows say, as Markdown."""
    matrix, right = Counter((row[0], row[2]) for row in rows), Counter()
    for kind, _, *said in rows:
        want = diagnosis.NOTHING if kind == "none" else kind
        right.update({(kind, end): each == want for end, each in enumerate(said)})
    honest = sum(count for (kind, _), count in matrix.items() if kind == "none")
    false = sum(any(each != diagnosis.NOTHING for each in said) for kind, _, *said in rows if kind == "none")
    most = beta.ppf(0.95, false + 1, honest - false)
    lines = [
        "# Diagnosis: what happened to a link",
        "",
        "Written by `make diagnosis` (tools/diagnosis_report.py) from simulated links; nothing in the table is typed in.",
        "`qtrunk.quantum.diagnosis` compares what the ends of a link saw of a block with what the link should show (the",
        "oracle for its topology, then its own honest blocks), and names what explains the differences. Each test has a",
        "false-alarm probability of 1e-9 per block beside its tolerance; some twenty make a block, so an unchanged link",
        "should give a sign in less than one block of ten million.",
        "",
        f"Blocks of {PULSES / EQUIPMENT.clock_hz:g} s, {', '.join(f'{km:g}' for km in KM)} km, seeds {seeds[0]} to {seeds[-1]},",
        f"{len(CASES)} cases: {len(CASES) * len(KM) * len(seeds)} links, {len(rows)} blocks. Thresholds were set on other seeds.",
        "",
        f"**False alarms:** of {honest} honest blocks {false} gave any sign at either end: the rate is below {most:.2g} with 95 %",
        "confidence (Clopper and Pearson).",
        "",
        "## Confusion matrix",
        "What was (rows) and what both ends together said first (columns, by the numbers of the rows; 0: nothing).",
        "",
        *_matrix(matrix),
        "",
        "## How often rightly",
        "",
        "| what it was | at strengths | blocks | right, both ends together | Alice's end alone | Bob's end alone | Bob's end, nothing counted |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for kind in _kinds(matrix):
        total = sum(count for (was, _), count in matrix.items() if was == kind)
        shares = " | ".join(f"{right[kind, end] / total:.0%}" for end in range(4))
        lines.append(f"| {kind} | {_strengths(kind)} | {total} | {shares} |")
    lines += [
        "",
        "## What cannot be told apart",
        "",
        "| these | why |",
        "| --- | --- |",
        "| beam splitting, nothing | Eve keeps what the fibre loses anyway. The proof covers it. |",
        "| weak intercept and resend, a phase adrift | Both add errors. Only Eve's resent light raises the decoys, by less than chance moves them where she touches few pulses. Both are named. |",
        "| photon-number splitting, unambiguous discrimination, over long lines | Both lose decoys. The double clicks that tell them apart fall with the light; both are named. |",
        "| bend, a transmitter that fades (at Bob's end), two detectors that fade alike | All are loss. Alice's end sees the power that leaves her. |",
        "| a bend of less than a tenth of the clicks, nothing | It is within the tolerance of a link's loss. |",
        "| afterpulsing over short lines, dark counts | Where clicks are dense most of them follow on another by chance, and both make clicks without light. Both are named. |",
        "| a cut, a receiver without lock | Neither shows any click. |",
        "",
        "Alice's end sees her own monitors and the counts of sifting; Bob's sees his monitors and, where the block gets so",
        "far, the same counts. The tables are of blocks whose counts are known; the last column is of blocks that died before:",
        "a monitor spoke against them, or Alice gave them up. Then Bob's end knows neither errors nor decoys. Faults are set in a",
        "lab like attacks: `qtrunk attack LINK dark-counts`.",
        "",
        "## Where it shows",
        "",
        "Each end of a link diagnoses each of its blocks by what it sees itself (`node.linkdiagnosis`), and tells the other end over",
        "their classical channel, so both say the same of a block, with the end that saw it. It decides nothing: whether a block",
        "becomes key is for the proof and for the limits of the monitors.",
        "",
        "| where | what |",
        "| --- | --- |",
        "| `qtrunk status` | under the table, a line for each link: what is likeliest, why, and which end says so |",
        "| `qtrunk status --format json`, `GET /admin/v1/status` | `diagnosis` of a link: at most two from each end of `kind`, `weight` (signs it explains of those shown, 0 to 1) and `reason`, likeliest first, of the last block, each with `by`: the end that saw it; empty: nothing happened |",
        "| `GET /control/v1/links` of a controller | the same |",
        "| alarms `LinkOff`, `MonitorLimit`, `QuantumChannelLoss`, `QberAboveAbort`, `QberRising`, `SkrBelowPlan` | at the end of the text: `; likely cut (12 clicks where 1070000 belong)` |",
        "",
        "A link that is bent a little and still makes key raises no alarm; its status says so. The norm is that of the end's",
        "own honest blocks since the node started or its light was set anew; before three of them, the oracle's. What changes over",
        "some hundred blocks becomes the norm, but for the loss, which stays bound to the oracle's; the proof counts it all the same.",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run all cases on two processes and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--first-seed", type=int, default=1000)
    parser.add_argument("--print", action="store_true", help="to standard output instead of docs/")
    options = parser.parse_args()
    seeds = range(options.first_seed, options.first_seed + options.seeds)
    tasks = [(attack, km, seed) for seed in seeds for km in KM for attack in CASES]
    with ProcessPoolExecutor(2) as pool:
        text = page([row for rows in pool.map(judged, tasks) for row in rows], seeds)
    if options.print:
        print(text)
    else:
        PAGE.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
