"""Write docs/attacks.md and its pictures: every attack on the simulated link, what both ends see of it, what sees it.

    python tools/attack_report.py [--only KIND]

Each attack hits the standard 50 km link after ten honest seconds. A block is one second of light here, so times to
detection are whole seconds. Everything is sampled from a fixed seed; nothing on the page is typed in.
"""

import argparse
from dataclasses import dataclass, field, replace
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from qtrunk.base.ids import LinkId, NodeId
from qtrunk.distil.authentication import AUTH_OCTETS
from qtrunk.distil.keylength import EpsilonBudget, entropy, key_length
from qtrunk.distil.parties import BlockAlice, BlockBob, Destroy, DistilParameters, Hold, Release, Send
from qtrunk.quantum import monitors, run
from qtrunk.quantum.analytic import expected
from qtrunk.quantum.attack import KINDS, Attack, knowledge
from qtrunk.quantum.channel import Channel, drift_of
from qtrunk.quantum.dice import Dice
from qtrunk.quantum.fault import FAULTS
from qtrunk.quantum.optics import of_equipment
from qtrunk.quantum.readings import Readings
from qtrunk.quantum.situation import NO_STRENGTH
from qtrunk.quantum.source import SourceSettings, decode_bases, decode_settings, words
from qtrunk.sim.replay import ReplayLedger
from qtrunk.stages import Detections, Observations, Pulses, Role
from qtrunk.topology import Equipment

ROOT = Path(__file__).parent.parent
PAGE, PICTURES = ROOT / "docs" / "attacks.md", ROOT / "docs" / "images" / "attacks"
SEED, KM = 20260, 50.0
BEFORE, AFTER, HONEST_BLOCKS = 10, 20, 2000
EQUIPMENT = Equipment(gate_mismatch_s=20e-12)
RECONCILIATION = 1.16
FRACTIONS = (1.0, 0.3, 0.1, 0.03)
VARIANTS = {
    "intercept-resend": [Attack("intercept-resend", 1.0, 0.2)],
    "blinding": [Attack("blinding", 1.0, 0.001)],
    "trojan-horse": [Attack("trojan-horse", 1.0, 1e-6)],
    "time-shift": [Attack("time-shift", 1.0, 40.0)],
    "laser-seeding": [Attack("laser-seeding", 1.0, 1.1)],
    "bend": [Attack("bend", 1.0, 0.01)],
    "passive-faraday-mirror": [Attack("passive-faraday-mirror", 1.0, 5.0)],
}
COVERED_BY_PROOF = {"intercept-resend", "beam-splitting", "photon-number-splitting", "bend", "cut"}
COVERED = {
    "beam-splitting": "Nothing shows, and nothing needs to: multi-photon pulses earn no key in a decoy-state proof.",
    "bend": "Loss alone gives Eve nothing; the alarm is for the maintenance crew.",
    "cut": "A cut is no leak. The link comes back by itself: coarse delay, gate scan, phase scan.",
}


@dataclass
class Course:
    """What happened block by block."""

    attack: Attack
    rows: list[dict[str, float]] = field(default_factory=list)
    first: dict[str, int] = field(default_factory=dict)
    """Monitor -> seconds of attack until it spoke."""
    said: dict[str, str] = field(default_factory=dict)
    knowledge: float = 0.0
    sifted_bps: float = 0.0
    claimed_bps: float = 0.0
    leak_bps: float = 0.0


def link(kind: str):
    """The studied link; a source that has lost its phase randomisation where the attack needs one."""
    made = of_equipment(EQUIPMENT, EQUIPMENT.connector_loss_db + EQUIPMENT.fibre_db_per_km * KM)
    return replace(made, is_phase_random=kind != "unambiguous-discrimination")


def observations(optics, seen: run.Observed) -> Observations:
    """As both ends would count them."""
    matched = run.ALICE_BASIS == run.BOB_BASIS
    wrong = run.BIT != run.ALICE_BIT

    def by_level(where):
        return tuple(int(seen.counts[where & (level == run.LEVEL)].sum()) for level in range(3))

    return Observations(
        intensities=optics.source.intensities,
        probabilities=optics.source.exact_probabilities,
        key_counts=by_level(matched & (run.ALICE_BASIS == 0)),
        test_counts=by_level(matched & (run.ALICE_BASIS == 1)),
        test_errors=by_level(matched & (run.ALICE_BASIS == 1) & wrong),
    )


def look(optics, done: run.Block, installed: monitors.Counts) -> tuple[dict[str, float], list[monitors.Finding], float]:
    """Figures of one block, what the rules say of them, and the key that the proof would give."""
    seen, readings = done.seen, done.watcher
    assert isinstance(readings, Readings)
    counts = run.counts_of(seen)
    transmitter, receiver = readings.transmitter(), readings.receiver()
    found = monitors.check_transmitter(transmitter, optics.source.intensities)
    found += monitors.check_receiver(receiver, seen.pulses) + monitors.check_counts(counts, installed)
    observed = observations(optics, seen)
    leak = RECONCILIATION * observed.key_total * entropy(min(0.5, seen.qber[0]))
    length = key_length(observed, leak, EpsilonBudget()).length_bits if observed.key_total else 0
    if length == 0:
        found.append(monitors.Finding("key-length", "the proof gives no key"))
    tests, arrivals = receiver.attenuator_test or [1, 0, 1, 0], np.array(receiver.arrivals or [[0], [0]], float)
    bins = np.arange(arrivals.shape[1]) - (arrivals.shape[1] - 1) / 2
    middles = [float(h @ bins / h.sum()) if h.sum() else 0.0 for h in arrivals]
    row = {
        "signal gain": seen.gains[0],
        "decoy over signal": seen.gains[1] / seen.gains[0] if seen.gains[0] else 0.0,
        "vacuum gain": seen.gains[2],
        "QBER, key basis": seen.qber[0],
        "QBER, test basis": seen.qber[1],
        "double clicks per click": seen.double_click_share,
        "ones, key basis": counts.ones[0] / max(1, counts.sifted[0]),
        "ones, test basis": counts.ones[1] / max(1, counts.sifted[1]),
        "clicks behind 3 dB": tests[3] / max(1, tests[1]),
        "entrance, dBm": receiver.entrance_power_dbm or 0.0,
        "photocurrent, uA": max(receiver.photocurrent_a or [0.0]) * 1e6,
        "into Alice, dBm": transmitter.reverse_power_dbm or 0.0,
        "signal photons": (transmitter.mean_photon_numbers or [0.0])[0],
        "arrival apart, ps": (middles[1] - middles[0]) / optics.clock_hz / arrivals.shape[1] * 1e12,
        "efficiency ratio": receiver.efficiency_ratio or 1.0,
        "secret, kbit/s": length / seen.seconds / 1e3,
    }
    return row, found, length / seen.seconds


def watched(channel: Channel, seconds: float, seed: int):
    """Blocks of one second with their readings."""
    per_second = round(channel.optics.clock_hz * (1 - channel.reference_fraction))
    return run.blocks(
        channel,
        seconds=seconds,
        seed=seed,
        block_pulses=per_second,
        watch=lambda _: Readings(channel.optics, channel.dice),
    )


def play(attack: Attack, installed: monitors.Counts, before: int = BEFORE, after: int = AFTER) -> Course:
    """Ten honest seconds, then Eve."""
    optics = link(attack.kind)
    channel = Channel(optics, run.seed_of(SEED, attack.kind), drift_of(EQUIPMENT, KM))
    course = Course(attack)
    for done in watched(channel, before, SEED):
        course.rows.append(look(optics, done, installed)[0])
    channel.attack(attack)
    claimed, sifted, leaked = [], [], []
    for done in watched(channel, after, SEED + 1):
        row, found, secret_bps = look(optics, done, installed)
        course.rows.append(row)
        claimed.append(secret_bps)
        sifted.append(done.seen.sifted_bps)
        leaked.append(RECONCILIATION * done.seen.sifted_bps * entropy(min(0.5, done.seen.qber[0])))
        for finding in found:
            if finding.monitor not in course.first:
                course.first[finding.monitor] = done.number + 1
                course.said[finding.monitor] = finding.text
    course.knowledge = knowledge(optics, attack.on(optics, 0.0, after / 2))
    course.claimed_bps, course.sifted_bps = float(np.mean(claimed)), float(np.mean(sifted))
    course.leak_bps = float(np.mean(leaked))
    return course


def picture(course: Course, path: Path) -> None:
    """What the monitors saw, second by second."""
    panels = (
        (("QBER, key basis", "QBER, test basis"), "error rate", False),
        (("decoy over signal",), "decoy gain / signal gain", False),
        (("signal gain", "vacuum gain", "double clicks per click"), "relative to before", True),
        (("ones, key basis", "ones, test basis"), "share of ones", False),
        (("entrance, dBm", "into Alice, dBm"), "power, dBm", False),
        (("clicks behind 3 dB", "signal photons"), "attenuator test, output", False),
    )
    at = np.arange(len(course.rows)) - BEFORE
    figure, axes = plt.subplots(2, 3, figsize=(11, 4.6), layout="constrained")
    for axis, (names, title, is_relative) in zip(axes.flat, panels, strict=True):
        for name in names:
            values = np.array([row[name] for row in course.rows])
            if is_relative:
                values = values / max(1e-30, values[:BEFORE].mean())
            axis.plot(at, values, marker=".", lw=1, label=name)
        if is_relative:
            axis.set_yscale("symlog", linthresh=0.1)
        axis.axvspan(0, at[-1], color="tab:red", alpha=0.07, lw=0)
        axis.set_title(title, fontsize=9)
        axis.legend(fontsize=7, loc="best")
        axis.tick_params(labelsize=7)
    for axis in axes[1]:
        axis.set_xlabel("seconds of attack", fontsize=8)
    figure.savefig(path, dpi=80)
    plt.close(figure)


def verdict(course: Course) -> str:
    """How the attack ends, in a sentence made of figures."""
    left = max(0.0, course.sifted_bps * (1 - course.knowledge) - course.leak_bps)
    gives, remains = f"{course.claimed_bps / 1e3:.0f} kbit/s", f"{left / 1e3:.0f} kbit/s"
    if course.knowledge < 1e-3:
        return "Eve learns nothing; the key stays what it is."
    if course.claimed_bps == 0:
        return "The proof gives no key."
    if course.attack.kind in COVERED_BY_PROOF:
        return f"Covered by the proof: it gives {gives} of the {remains} that Eve and reconciliation leave."
    alarms = any(name not in ("key-length", "gain") for name in course.first)
    return (
        f"Outside the proof's assumptions: it would give {gives}, while this attack and reconciliation leave {remains}. "
        f"{'The monitors stop it.' if alarms else '**Nothing here sees it.**'}"
    )


def section(course: Course, others: list[Course]) -> list[str]:
    """One attack on the page."""
    kind = KINDS[course.attack.kind]
    what = " ".join((kind.act.__doc__ or "").split())
    strength = "" if kind.meaning == NO_STRENGTH else f" Strength {kind.strength:g}: {kind.meaning}."
    before = {name: np.mean([row[name] for row in course.rows[:BEFORE]]) for name in course.rows[0]}
    after = {name: np.mean([row[name] for row in course.rows[BEFORE:]]) for name in course.rows[0]}
    lines = [f"## {course.attack.kind}", "", f"{what}{strength}", ""]
    lines += [f"![what the monitors saw](images/attacks/{course.attack.kind}.png)", ""]
    lines += ["| observable | before | under attack |", "| --- | --- | --- |"]
    lines += [f"| {name} | {before[name]:.4g} | {after[name]:.4g} |" for name in before]
    lines += [
        "",
        "| variant | first seen by | also by | Eve knows, of a sifted bit | she would have, kbit/s | proof gives, kbit/s |",
    ]
    lines += ["| --- | --- | --- | --- | --- | --- |"]
    for each in (course, *others):
        order = sorted(each.first.items(), key=lambda item: item[1])
        seen = f"{order[0][0]}, {order[0][1]} s" if order else "nothing in 20 s"
        also = ", ".join(f"{name} {at} s" for name, at in order[1:]) or "–"
        power = "" if each.attack.strength is None else f", strength {each.attack.strength:g}"
        lines.append(
            f"| {100 * each.attack.fraction:g} % of the pulses{power} | {seen} | {also} | {each.knowledge:.3f} | "
            f"{each.knowledge * each.sifted_bps / 1e3:.1f} | {each.claimed_bps / 1e3:.0f} |"
        )
    said = [f"- `{name}`: {text}" for name, text in course.said.items()]
    lines += [
        "",
        *(said or ["No rule speaks."]),
        "",
        f"{verdict(course)} {COVERED.get(course.attack.kind, '')}".rstrip(),
        "",
    ]
    return lines


# ── the man in the middle of the classical channel ───────────────────────────────────────────────────────────────────


class _Random:
    """Repeatable octets for the parties of this study."""

    def __init__(self, seed: int) -> None:
        self._dice = Dice(run.seed_of(seed, "parties"))

    def octets(self, count: int) -> bytes:
        return bytes((256 * self._dice.uniforms(count)).astype(np.uint8))


def _parties(detections, settings, pulses):
    # Codes: of Cascade's three hundred messages each is like the next.
    parameters = DistilParameters(reconciliation="ldpc")
    random = _Random(SEED)
    secret = random.octets(AUTH_OCTETS)
    common = {
        "alice": NodeId("alice"),
        "bob": NodeId("bob"),
        "pulses": pulses,
        "parameters": parameters,
        "random": random,
        "now": lambda: 0.0,
    }
    ledgers = [ReplayLedger(secret, parameters.auth_target_octets) for _ in range(2)]
    return BlockAlice(settings=settings, light_s=4.0, auth=ledgers[0], **common), BlockBob(
        detections=detections, auth=ledgers[1], **common
    )


def tampered() -> list[str]:
    """Flip one bit of each message in turn, at several places: how each conversation ends."""
    optics = link("none")
    channel = Channel(optics, run.seed_of(SEED, "man in the middle"))
    count = 1_250_000_000
    alice_seed, bob_seed = run.end_seed(SEED, 0, Role.ALICE), run.end_seed(SEED, 0, Role.BOB)
    clicks = channel.sample(alice_seed, bob_seed, 0, count)
    source: SourceSettings = optics.source
    detections = Detections(
        positions=clicks.positions, basis=decode_bases(words(bob_seed, clicks.positions), source), bit=clicks.bits
    )
    pulses = Pulses(
        link=LinkId("alice-bob"),
        block=0,
        count=count,
        intensities=source.intensities,
        probabilities=source.exact_probabilities,
        key_basis_probability=source.exact_key_basis_probability,
    )

    def settings(positions):
        return decode_settings(words(alice_seed, positions), source)

    def talk(tamper) -> tuple[list, list[tuple[str, bytes]]]:
        alice, bob = _parties(detections, settings, pulses)
        effects, said, number = [], [("bob", effect) for effect in bob.start()], 0
        messages = []
        while said:
            speaker, effect = said.pop(0)
            effects.append((speaker, effect))
            if isinstance(effect, Send):
                octets = tamper(number, effect.octets)
                messages.append((speaker, effect.octets))
                number += 1
                listener, name = (alice, "alice") if speaker == "bob" else (bob, "bob")
                if octets is not None:
                    said += [(name, answer) for answer in listener.receive(octets)]
        return effects, messages

    honest, messages = talk(lambda _, octets: octets)
    assert sum(isinstance(effect, Release) for _, effect in honest) == 2
    lines = ["| message | octets | changed in | causes at Alice and Bob | keys released at both ends, but not alike |"]
    lines.append("| --- | --- | --- | --- | --- |")
    places = (0.01, 0.1, 0.3, 0.5, 0.7, 0.9, 0.99)
    for index, (speaker, octets) in enumerate(messages):
        causes: dict[str, int] = {}
        unlike = 0
        for place in places:
            at = int(place * (len(octets) - 1))

            def flip(number, original, index=index, at=at):
                if number != index:
                    return original
                return original[:at] + bytes([original[at] ^ 1]) + original[at + 1 :]

            effects, _ = talk(flip)
            ends = [effect.cause for _, effect in effects if isinstance(effect, Destroy)]
            released = [name for name, effect in effects if isinstance(effect, Release)]
            keys = {name: effect.key.material for name, effect in effects if isinstance(effect, Hold)}
            if len(released) == 2 and keys["alice"] != keys["bob"]:
                unlike += 1
            for end in ends or [f"released at {' and '.join(sorted(released)) or 'neither; the other waits'}"]:
                causes[end] = causes.get(end, 0) + 1
        how = ", ".join(f"{name} {times}" for name, times in sorted(causes.items()))
        lines.append(
            f"| {index + 1}, from {speaker.title()} | {len(octets)} | {len(places)} places | {how} | {unlike} |"
        )
    return lines


def main() -> None:
    """Everything, or one attack's pictures and text to standard output."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=sorted(KINDS))
    options = parser.parse_args()
    PICTURES.mkdir(parents=True, exist_ok=True)
    honest = Channel(link("none"), run.seed_of(SEED, "installed"), drift_of(EQUIPMENT, KM))
    installed = run.counts_of(run.simulate(honest, seconds=60, seed=SEED + 2, block_pulses=1_237_500_000))
    kinds = [options.only] if options.only else [kind for kind in KINDS if kind != "none" and kind not in FAULTS]
    sections = []
    for kind in kinds:
        course = play(Attack(kind), installed)
        picture(course, PICTURES / f"{kind}.png")
        parts = [Attack(kind, fraction) for fraction in FRACTIONS[1:]] if kind not in ("cut", "bend") else []
        others = [play(attack, installed, before=0) for attack in (*parts, *VARIANTS.get(kind, []))]
        sections.append((course, section(course, others)))
    if options.only:
        print("\n".join(sections[0][1]))
        return
    alarms = [
        (done.number, finding)
        for done in watched(
            Channel(link("none"), run.seed_of(SEED, "false alarms"), drift_of(EQUIPMENT, KM)), HONEST_BLOCKS, SEED + 3
        )
        for finding in look(link("none"), done, installed)[1]
    ]
    want = expected(link("none"))
    page = [
        "# Attacks: what Eve can do to the light, and what sees it",
        "",
        "Written by `make validate` (tools/attack_report.py) from simulated links; nothing here is typed in. Each attack is",
        "a change of the optics (src/qtrunk/quantum/attack.py), never of a number that anybody reports. The link: 50 km,",
        f"{link('none').loss_db:g} dB, 1.25 GHz, {want.click_hz / 1e3:.0f} kclick/s, gates of the two detectors 20 ps apart, drifting and",
        "held by its control loop. Eve comes after ten honest seconds; a block is one second of light here.",
        "",
        "Rules: `qtrunk.quantum.monitors`. Each statistical one has a false-alarm probability of 1e-9 per block;",
        f"{HONEST_BLOCKS} honest blocks of this link gave {len(alarms)} alarms. `key-length` is the proof itself: no key is left.",
        "What Eve knows is the mutual information of Alice's sifted bit and Eve's record, if nobody took anything away",
        "and she measured pulse by pulse; what the proof gives is the finite-key rule of the live link on the same counts.",
        "A node refuses a block on the device's own monitors (power, current, calibration, attenuator, arrivals, double",
        "clicks, back-reflection, output); the rules over sifted counts are those of this study and of the proof.",
        "",
        "| attack | first seen by | Eve knows, of a sifted bit | how it ends |",
        "| --- | --- | --- | --- |",
    ]
    for course, _ in sections:
        order = sorted(course.first.items(), key=lambda item: item[1])
        seen = ", ".join(f"{name} ({at} s)" for name, at in order[:3]) or "nothing"
        kind = course.attack.kind
        page.append(f"| [{kind}](#{kind}) | {seen} | {course.knowledge:.3f} | {verdict(course)} |")
    page += [
        "| [man in the middle](#man-in-the-middle) | authentication | 0 | Nothing that was changed is ever released unlike. |",
        "",
    ]
    for _, lines in sections:
        page += lines
    page += [
        "## Man in the middle",
        "",
        "Of the classical channel. One bit of each message of a block is turned over, at seven places each.",
    ]
    page += [
        "The whole transcript is authenticated before any bit is released (docs/security.md), so a change ends the block;",
        "",
    ]
    page[-2] += " a change of the last word leaves one end waiting, and the next connection settles it."
    page += tampered()
    PAGE.write_text("\n".join(page) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
