"""Counts behind the promises of the key manager: writes docs/reliability.md.

    python tools/reliability_report.py [--kills 2000] [--states 1000] [--torture FILE] [--powerloss FILE]

Kills two key managers over and over, rebuilds the disks that a loss of power may leave, runs the tests that stand for
each promise, and writes down how many of each there were. A long torture can be run by itself and its JSON given here.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "reliability.md"


@dataclass(frozen=True)
class Promise:
    """One invariant and the tests that stand for it, as pytest takes them."""

    id: str
    text: str
    how: str
    tests: tuple[str, ...]


PROMISES = (
    Promise(
        "I1",
        "the octets of a key ID are given to one role once, also after a crash or a loss of power",
        "torture and loss of power (below); a state machine of everything that may happen to a pool; the journal's torn tails",
        (
            "tests/kms/test_pools.py",
            "tests/kms/test_consume.py",
            "tests/kms/test_conservation.py",
        ),
    ),
    Promise(
        "I2",
        "both ends of every key ID that is given out hold the same octets",
        "each collected key of the torture is compared; the target's node confirms every relay end to end; relays of a whole network in one process",
        ("tests/relay/test_fill.py", "tests/relay/test_kx.py"),
    ),
    Promise(
        "I3",
        "no octet is lost silently: ledgers add up at both ends, every loss has its reason",
        "at the end of the torture and on each rebuilt disk; in the state machines after every step",
        ("tests/kms/test_conservation.py", "tests/kms/test_spending.py", "tests/kms/test_pools.py"),
    ),
    Promise(
        "I4",
        "an SAE gets keys of its own pairs only; a revoked one none after 5 s, open connections included",
        "every path of the administration by every role and kind of wrong certificate; identities; revocation over open connections",
        (
            "tests/api/test_roles.py",
            "tests/node/test_trust.py",
            "tests/api/test_etsi014.py",
            "tests/api/test_identity.py",
        ),
    ),
    Promise(
        "I5",
        "what was used up is in no file",
        "spent blocks and segments are shredded; the files of running nodes are searched for their keys (tests/lab/shared/test_lab.py)",
        ("tests/kms/test_segment.py",),
    ),
    Promise(
        "I6",
        "a message that is recorded and played again changes nothing",
        "relay messages, notes between nodes, notes of streams, doubled and late",
        (
            "tests/relay/test_kx_doubt.py",
            "tests/node/test_notes.py",
            "tests/kms/test_streams.py",
        ),
    ),
    Promise(
        "I7",
        "no key goes out that cannot be recorded: full disk, I/O errors, journal or audit log gone",
        "disks that refuse at every step; a journal that is damaged; an audit log that cannot be written",
        (
            "tests/kms/test_store.py",
            "tests/kms/test_journal.py",
            "tests/kms/test_audit.py",
            "tests/node/test_commit.py",
        ),
    ),
    Promise(
        "I8",
        "a relay never has an end-to-end key on its disk, and never knows a hybrid one",
        "what relays see in a network with hybrid keys; the lab's files searched for keys",
        ("tests/relay/test_fill.py",),
    ),
    Promise(
        "I9",
        "above the QBER limit no key of that block is ever given out",
        "simulated eavesdroppers on blocks and sessions",
        ("tests/distil/test_parties.py", "tests/distil/test_mistakes.py"),
    ),
    Promise(
        "I10",
        "after faults stop, service is back within 30 s and alarms clear",
        "real processes: kills, stops, cuts, full disks, Eve",
        ("tests/lab/test_lab_faults.py",),
    ),
    Promise(
        "I12",
        "authentication key is used once",
        "on each rebuilt disk; in the ledger's own tests",
        ("tests/kms/test_spending.py", "tests/distil/test_authentication.py"),
    ),
)


def tool(name: str, *options: str) -> dict[str, object]:
    """Run a tool that writes JSON."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "result.json"
        subprocess.run([sys.executable, ROOT / "tools" / f"{name}.py", *options, "--json", path], check=True)
        return json.loads(path.read_text())


def added(results: list) -> dict[str, object]:
    """Numbers of several results summed, name by name."""
    total = dict(results[0])
    for result in results[1:]:
        for name, value in result.items():
            total[name] = added([total.get(name, {}), value]) if isinstance(value, dict) else total.get(name, 0) + value
    return total


def passed(tests: tuple[str, ...]) -> int:
    """How many tests passed; a failure ends everything."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    found = re.search(r"(\d+) passed", done.stdout)
    if done.returncode or found is None:
        raise SystemExit(f"{' '.join(tests)}:\n{done.stdout[-2000:]}")
    return int(found.group(1))


def table(rows: list[tuple[str, ...]], *heads: str) -> list[str]:
    return [
        f"| {' | '.join(heads)} |",
        f"|{' --- |' * len(heads)}",
        *(f"| {' | '.join(row)} |" for row in rows),
    ]


def flat(result: dict[str, object], *names: str) -> list[tuple[str, ...]]:
    return [(name, f"{found:,.0f}" if isinstance(found := result[name], int | float) else str(found)) for name in names]


def page(torture: dict[str, object], power: dict[str, object], counts: dict[str, int]) -> str:
    kills = torture["kills by point"]
    assert isinstance(kills, dict)
    more = torture["counts"]
    assert isinstance(more, dict)
    pool = {end: torture[f"pool of the {end}, octets"] for end in ("initiator", "target")}
    return "\n".join(
        [
            "# Reliability: what is promised, and how often it was tried",
            "",
            "Written by `make reliability` (`KILLS=`, `STATES=` choose how much). Each promise names the command that repeats its",
            "count. A failure of any of them fails the page.",
            "",
            *table(
                [
                    (
                        promise.id,
                        promise.text,
                        promise.how,
                        str(counts[promise.id]),
                        f"`pytest {' '.join(promise.tests)}`",
                    )
                    for promise in PROMISES
                ],
                *("", "promise", "how it is tried", "tests passed", "command"),
            ),
            "",
            "I11 (a tunnel never falls back to clear text) belongs to the encryptors and is not in here.",
            "",
            "## Kill -9",
            "Two real processes with the production store and relay machine, on a real file system, killed with SIGKILL from outside",
            "at a random moment or by themselves just before or after one system call (write, flush, open, allocation, truncation,",
            "removal, commit of the database), also while they start. Every key that anyone was ever given is kept and compared.",
            "",
            f"    make torture KILLS={torture['kills']}",
            "",
            *table(
                [
                    *flat(torture, "kills", "given to initiators", "given to targets", "given twice"),
                    *flat(torture, "differing between the ends", "octets unaccounted for", "seconds"),
                    *((name, f"{count:,}") for name, count in more.items()),
                ],
                *("", "count"),
            ),
            "",
            "What an answer that died with its process had taken is given again to a client that names its request; of a client that",
            "does not, it is on record as delivered and `doubtful`: recorded, and the node died before it saw the answer leave.",
            "",
            *table([(name, f"{count:,}") for name, count in kills.items()], *("killed", "times")),
            "",
            *table(
                [
                    (
                        end,
                        *(
                            f"{pool[end][name]:,}"
                            for name in ("filled", "overhead", "available", "delivered", "doubtful", "lost")
                        ),
                        str(pool[end]["destroyed"]),
                    )
                    for end in pool
                ],
                *(
                    "pool of the",
                    "filled, octets",
                    "overhead",
                    "available",
                    "delivered",
                    "of it doubtful",
                    "lost",
                    "destroyed",
                ),
            ),
            "",
            "## Loss of power",
            "A recorder preloaded into the process writes down every change of its files, SQLite's included. The disk is then rebuilt as",
            "a loss of power may leave it: what was flushed, and of the rest everything, nothing, or any sectors of 512 octets and any",
            "number of created and removed names in order. Both stores must open on each such disk; everything that had left before",
            "that moment must not come again, and what an initiator was given must still be there for the target.",
            "",
            f"    make powerloss STATES={power['disks rebuilt']}",
            "",
            *table(
                [
                    *flat(power, "disks rebuilt", "operations recorded", "writes", "flushes", "creations", "removals"),
                    *flat(power, "truncations", "allocations", "answers given meanwhile", "violations"),
                ],
                *("", "count"),
            ),
            "",
            "The study finds what it must: with the flush of the consume journal or of the database taken out, it fails",
            "(tests/tools/test_reliability_tools.py).",
            "",
            f"Last written {time.strftime('%Y-%m-%d', time.gmtime())}.",
            "",
        ]
    )


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--kills", type=int, default=2000)
    options.add_argument("--states", type=int, default=1000)
    options.add_argument("--torture", type=Path, nargs="*", help="results of tortures that ran before, added up")
    options.add_argument("--powerloss", type=Path, help="result of a study that ran before")
    chosen = options.parse_args()
    torture = (
        added([json.loads(path.read_text()) for path in chosen.torture])
        if chosen.torture
        else tool("torture", "--kills", str(chosen.kills))
    )
    power = (
        json.loads(chosen.powerloss.read_text())
        if chosen.powerloss
        else tool("powerloss", "--states", str(chosen.states))
    )
    PAGE.write_text(page(torture, power, {promise.id: passed(promise.tests) for promise in PROMISES}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
