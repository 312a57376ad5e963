"""Soak: many seeds of the simulated network, each a run of its own: `python -m qtrunk.sim.soak --seeds 1000`.

A seed that fails is printed with what to type to see it again; the same seed is the same run, to the last octet that
was sent and the last write to a disk (its *trace*). Exit status 1 where any failed.
"""

import argparse
import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from qtrunk.sim.network.scenario import Outcome, play

_HASH_SEED = "PYTHONHASHSEED"


def same_order() -> None:
    """Sets of names have one order in all runs: start this process anew with Python's hashes fixed."""
    if os.environ.get(_HASH_SEED) != "0":
        os.environ[_HASH_SEED] = "0"
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])  # noqa: S606 (this very process)


def main() -> None:
    """See the head of the module."""
    parser = argparse.ArgumentParser(description="simulated networks under many seeds")
    parser.add_argument("--seeds", type=int, default=100, help="how many")
    parser.add_argument("--first", type=int, default=1, help="the first one")
    parser.add_argument("--seed", type=int, help="just this one, with all that is known of it")
    parser.add_argument("--log", type=Path, help="with --seed: write everything that happens to this file")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args()
    same_order()
    if options.seed is not None:
        sys.exit(show(options.seed, options.log))
    sys.exit(soak(range(options.first, options.first + options.seeds), options.processes))


def show(seed: int, log: Path | None) -> int:
    """One run; 1 where it failed."""
    outcome = play(seed, is_logged=log is not None)
    if log is not None:
        log.write_text("".join(outcome.log))
    print(f"seed {seed}: trace {outcome.trace}, {outcome.virtual_s:.1f} virtual seconds")
    for name, count in sorted(outcome.counts.items()):
        print(f"  {name}: {count}")
    print("\n".join([outcome.where, *outcome.last_words, f"FAILED: {outcome.error}"]) if outcome.error else "well")
    return int(bool(outcome.error))


def soak(seeds: range, processes: int) -> int:
    """Many runs; 1 where any failed."""
    began_s, failed, virtual_s, keys = time.perf_counter(), 0, 0.0, 0
    with ProcessPoolExecutor(processes) as pool:
        for outcome in pool.map(play, seeds, chunksize=1):
            virtual_s += outcome.virtual_s
            keys += outcome.counts.get("collected", 0)
            if outcome.error:
                failed += 1
                print(_failure(outcome), flush=True)
    took_s = time.perf_counter() - began_s
    print(
        f"{len(seeds)} seeds, {failed} failed; {virtual_s:.0f} virtual seconds in {took_s:.0f} s "
        f"({virtual_s / took_s:.1f} times real time, {processes} processes), {keys} keys at both ends"
    )
    return int(failed > 0)


def _failure(outcome: Outcome) -> str:
    return f"seed {outcome.seed} FAILED: {outcome.error}\n    python -m qtrunk.sim.soak --seed {outcome.seed}"


if __name__ == "__main__":
    main()
