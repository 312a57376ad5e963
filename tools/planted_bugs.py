"""How many seeds the simulation needs to find a mistake: plants mistakes of the kind that really happen, one at a time,
and writes the table of docs/simulation.md. Five minutes on two cores: `python tools/planted_bugs.py`.

Each mistake is made by replacing a function of production while runs go on; the runs are those of `make soak`. A run
that fails has found it, whatever its failure says; without a planted mistake the same seeds all pass.
"""

import argparse
import os
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

from qtrunk.base.errors import AuthenticationFailed, StoreError
from qtrunk.base.secret import Secret
from qtrunk.crypto import its
from qtrunk.kms import pools, spending, vendor
from qtrunk.kms.journal import Journal
from qtrunk.kms.pools import Pools
from qtrunk.kms.poolstate import SegmentState
from qtrunk.kms.spending import AuthPool
from qtrunk.kms.vendorend import Hold
from qtrunk.node.commit import GroupCommit
from qtrunk.node.linkstate import LinkStatistics
from qtrunk.relay import cargo
from qtrunk.sim.network import disk
from qtrunk.sim.network.faults import AIMED
from qtrunk.sim.network.scenario import plan, play
from qtrunk.sim.soak import same_order

PAGE = Path(__file__).parent.parent / "docs" / "simulation.md"
BEGIN, END = "<!-- planted: begin -->", "<!-- planted: end -->"


def answer_before_flush() -> Any:
    original = GroupCommit.durable

    def durable(self: GroupCommit) -> None:
        waiting = original(self)
        if waiting is not None:
            waiting.add_done_callback(lambda done: done.cancelled() or done.exception())

    return patch.object(GroupCommit, "durable", durable)


def journal_not_replayed() -> Any:
    original = Pools._apply

    def apply(self: Pools, used: Any, *arguments: Any, **named: Any) -> None:
        original(self, used, *arguments, **{**named, "is_new": False})

    return patch.object(Pools, "_apply", apply)


def retry_gets_fresh_keys() -> Any:
    return patch.object(pools.Retries, "given", lambda _self, _mark: [])


def keys_not_compared() -> Any:
    original = vendor.Tags.verify

    def verify(self: Any, word: str, *arguments: Any) -> None:
        if word != "keys":
            original(self, word, *arguments)

    return patch.object(vendor.Tags, "verify", verify)


def confirm_before_hold() -> Any:
    original = vendor.VendorAlice._received

    def received(self: Any, message: Any) -> list[Any]:
        effects = original(self, message)
        return effects[::-1] if effects and isinstance(effects[0], Hold) else effects

    return patch.object(vendor.VendorAlice, "_received", received)


def portion_given_back() -> Any:
    """A block that dies gives its portion of authentication key back."""
    original = AuthPool.reserve
    kept: dict[int, Any] = {}

    def reserve(self: AuthPool, epsilon: float) -> Any:
        found = kept.pop(id(self), None)
        if found is None:
            found = original(self, epsilon)
            kept[id(self)] = found
        return found

    return patch.object(AuthPool, "reserve", reserve)


def commits_not_synchronous() -> Any:
    """`synchronous = OFF`: a loss of power takes the last commits along."""
    every = 12
    execute, copy_to = disk._Connection.execute, disk.Disk.copy_to
    counts: dict[int, int] = {}

    def lazily(self: Any, sql: str, *parameters: Any) -> Any:
        done = execute(self, sql, *parameters)
        if sql == "COMMIT" and self._disk is not None:
            counts[id(self)] = counts.get(id(self), 0) + 1
            if counts[id(self)] % every == 1:
                aside = self._disk.root.with_name(f"{self._disk.root.name}.synced")
                shutil.rmtree(aside, ignore_errors=True)
                aside.mkdir()
                for path in self._path.parent.glob("store.db*"):
                    shutil.copy(path, aside / path.name)
        return done

    def copy(self: Any, root: Path, *, is_power_loss: bool) -> None:
        copy_to(self, root, is_power_loss=is_power_loss)
        aside = self.root.with_name(f"{self.root.name}.synced")
        if is_power_loss and aside.exists():
            for path in (root / "store").glob("store.db*"):
                path.unlink()
            for path in aside.iterdir():
                shutil.copy(path, root / "store" / path.name)

    @contextmanager
    def both() -> Iterator[None]:
        with patch.object(disk._Connection, "execute", lazily), patch.object(disk.Disk, "copy_to", copy):
            yield

    return both()


def follow_takes_used_octets() -> Any:
    """A doubled message is taken again: who follows does not look where the peer has come to."""
    original = spending.Spending._follow

    def follow(self: Any, db: Any, link: Any, owner: Any, slices: Any, grantee: Any = None) -> int:
        try:
            return original(self, db, link, owner, slices, grantee)
        except AuthenticationFailed:
            return sum(piece.length for piece in slices)

    return patch.object(spending.Spending, "_follow", follow)


def sync_does_not_wait() -> Any:
    """Pools are compared before a segment that was just made can be known at both ends."""
    original = Pools.compare
    return patch.object(
        Pools, "compare", lambda self, initiator, target, held, _before: original(self, initiator, target, held, 1e12)
    )


def no_mask() -> Any:
    return patch.object(cargo.kem, "masked", lambda octets, _seed, _context: Secret(octets.reveal()))


def rollback_keeps_octets() -> Any:
    """What a failed step took inside a larger transaction is taken all the same."""
    original = Journal._undo

    def undo(self: Any, db: Any, level: int, marks: Any) -> None:
        if not level:
            original(self, db, level, marks)
            return
        del self._on_rollback[marks[1] :]
        db.execute(f"RELEASE level{level}")

    return patch.object(Journal, "_undo", undo)


def tags_not_verified() -> Any:
    """Whatever its tag says, a message is taken."""

    return patch.object(its, "verify", lambda *_arguments: None)


# ── mistakes that seeds did find once ───────────────────────────────────────────────────────────────────────────────


def rate_of_no_time() -> Any:
    original = LinkStatistics.rates_bps

    def rates_bps(self: LinkStatistics) -> tuple[float, float]:
        if self._recent and not any(block.light_s for block in self._recent):
            raise ZeroDivisionError("a rate over no time")
        return original(self)

    return patch.object(LinkStatistics, "rates_bps", rates_bps)


def fetch_is_waited_for() -> Any:
    """A request to the KME that the disk kept from being made is waited for after the next connection, too."""
    original = vendor.VendorAlice.disconnected

    def disconnected(self: Any) -> list[Any]:
        was_fetching = self._is_fetching
        effects = original(self)
        self._is_fetching = was_fetching
        return effects

    return patch.object(vendor.VendorAlice, "disconnected", disconnected)


def settling_waits_for_ever() -> Any:
    original = vendor.VendorAlice.tick

    def tick(self: Any) -> list[Any]:
        effects = original(self)
        return [one for one in effects if "does not settle" not in getattr(one, "why", "")]

    return patch.object(vendor.VendorAlice, "tick", tick)


def voided_twice() -> Any:
    original = Pools._finish

    def finish(self: Pools, segment: Any, state: SegmentState, reason: str | None) -> None:
        try:
            original(self, segment, state, reason)
        except StoreError:
            segment.voided += segment.free if state is SegmentState.DESTROYED else 0
            raise

    return patch.object(Pools, "_finish", finish)


def what_is_renewed_is_lost() -> Any:
    return patch.object(disk, "_is_renewed", lambda _lost, _later: False)


def window_by_the_time_of_day() -> Any:
    original = Pools.tick

    def tick(self: Pools) -> None:
        now = self._clock.unix_s()
        for segment in list(self._by_key.values()):
            if segment.closed_unix_s is not None and not 0 <= now - segment.closed_unix_s <= self._retries.window_s:
                self._finish(segment, SegmentState.SPENT, None)
        original(self)

    return patch.object(Pools, "tick", tick)


@dataclass(frozen=True)
class Planted:
    name: str
    what: str
    make: Callable[[], Any]


PLANTED = [
    Planted("answer before flush", "an answer does not wait for the flush of the consume journal", answer_before_flush),
    Planted(
        "journal not replayed",
        "what was given out since the checkpoint is forgotten at a restart",
        journal_not_replayed,
    ),
    Planted("retry gets fresh keys", "a repeated request ID is not looked up", retry_gets_fresh_keys),
    Planted("keys not compared", "Bob takes the vendor's keys without comparing their hash", keys_not_compared),
    Planted("confirm before hold", "Alice says Confirm before the block is on her disk", confirm_before_hold),
    Planted("portion given back", "each portion of authentication key is used for two blocks", portion_given_back),
    Planted(
        "commits not synchronous",
        "`synchronous = OFF`: a loss of power takes up to 12 commits along",
        commits_not_synchronous,
    ),
    Planted("used octets are followed", "a doubled message is taken again", follow_takes_used_octets),
    Planted("sync does not wait", "segments are compared before both ends can know them", sync_does_not_wait),
    Planted("mask left out", "both ends forget the ML-KEM mask", no_mask),
    Planted("inner rollback left out", "a step that failed within a transaction is not undone", rollback_keeps_octets),
    Planted("tags not verified", "every tag of relay and link protocol passes", tags_not_verified),
]


KEPT = [
    Planted("rate of no time", "a link whose first block died divided by zero", rate_of_no_time),
    Planted("fetch is waited for", "no more keys are asked for once the disk refused a release", fetch_is_waited_for),
    Planted("settling waits for ever", "for words that settle a block, when they were lost", settling_waits_for_ever),
    Planted("voided twice", "a segment that was voided while the disk was full", voided_twice),
    Planted("window by the time of day", "a clock that is set back ends a used-up segment", window_by_the_time_of_day),
    Planted("what is renewed is lost", "the simulated disk lost what was written anew", what_is_renewed_is_lost),
]
"""Of those that a seed finds, `tests/sim/test_soak.py` keeps one; the others have tests of their own."""


def seed_to_keep(name: str, first: int, most: int, faults_s: float) -> tuple[str, int, str]:
    """As `seeds_until_found`: the first seed that finds a mistake of KEPT; runs as that test has them."""
    planted = next(one for one in KEPT if one.name == name)
    for seed in range(first, first + most):
        kinds = tuple(kind for kind in plan(seed).kinds if kind != AIMED)
        given = replace(plan(seed), kinds=kinds, faults_s=faults_s)
        with planted.make():
            outcome = play(seed, given=given)
        if outcome.error and not play(seed, given=given).error:
            return name, seed, outcome.kind
    return name, -1, ""


def seeds_until_found(name: str, most: int) -> tuple[str, int, str]:
    """Name, seeds that it took (0: not found in `most`), what failed."""
    planted = next(one for one in PLANTED if one.name == name)
    for count in range(1, most + 1):
        with planted.make():
            outcome = play(count)
        if outcome.error:
            return name, count, outcome.kind
    return name, 0, ""


def main() -> None:
    parser = argparse.ArgumentParser(description="planted mistakes, and how many seeds each takes to be found")
    parser.add_argument("--most", type=int, default=100)
    parser.add_argument("--only")
    parser.add_argument("--kept", action="store_true", help="mistakes that seeds found once: the seed to keep for each")
    parser.add_argument("--first", type=int, default=1, help="where to begin with --kept")
    parser.add_argument("--faults", type=float, default=25.0, help="seconds of faults with --kept")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    same_order()
    if options.kept:
        with ProcessPoolExecutor(options.processes) as pool:
            kept = [one.name for one in KEPT if options.only in (None, one.name)]
            span = options.first, options.most, options.faults
            for done in as_completed(pool.submit(seed_to_keep, name, *span) for name in kept):
                print(*done.result(), flush=True)
        return
    names = [one.name for one in PLANTED if options.only in (None, one.name)]
    rows: dict[str, str] = {}
    with ProcessPoolExecutor(options.processes) as pool:
        for done in as_completed(pool.submit(seeds_until_found, name, options.most) for name in names):
            name, count, kind = done.result()
            what = next(one.what for one in PLANTED if one.name == name)
            found = str(count) if count else f"not in {options.most}"
            rows[name] = f"| {name} | {what} | {found} | {f'`{kind}`' if kind else ''} |"
            print(rows[name], flush=True)
    if options.write:
        table = ["| planted mistake | what it does | seeds until found | by |", "| --- | --- | --- | --- |"]
        table += [rows[name] for name in names]
        page = PAGE.read_text()
        head, rest = page.split(BEGIN)
        PAGE.write_text(head + BEGIN + "\n" + "\n".join(table) + "\n" + END + rest.split(END)[1])


if __name__ == "__main__":
    main()
