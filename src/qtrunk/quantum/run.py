"""One link simulated for a while, counted, and set beside the oracle."""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qtrunk.kernels import U64
from qtrunk.quantum.analytic import Expected
from qtrunk.quantum.channel import Channel, Watcher
from qtrunk.quantum.monitors import Counts
from qtrunk.quantum.optics import LinkOptics
from qtrunk.stages import Role


@dataclass(frozen=True, slots=True, kw_only=True)
class Observed:
    """What a run showed; tuples by intensity, strongest first."""

    pulses: int
    clicks: int
    seconds: float
    """Of the link's own time, the share for its control loop with it."""
    gains: tuple[float, ...]
    """Clicks per pulse sent."""
    error_gains: tuple[float, ...]
    """Wrong clicks per pulse sent in matched bases."""
    qber: tuple[float, float]
    """Over all intensities, in the key basis and in the test basis."""
    sifted_bps: float
    """Sifted key: both ends chose the key basis, any intensity."""
    double_click_share: float
    first_detector_share: float
    afterpulse_share: float
    counts: U64
    """Clicks by the flags of kernels.sample_link, shape (256,)."""


_FLAGS = np.arange(256)
BIT, BOB_BASIS, ALICE_BIT, ALICE_BASIS, LEVEL = (_FLAGS & 1, *(_FLAGS >> s & 1 for s in (3, 4, 5)), _FLAGS >> 6)
IS_DOUBLE: NDArray[np.bool_] = _FLAGS & 2 > 0
IS_AFTERPULSE: NDArray[np.bool_] = _FLAGS & 4 > 0


def observed(optics: LinkOptics, counts: U64, pulses: int, reference_fraction: float = 0.0) -> Observed:
    """Figures from the counts of a run of so many pulses."""
    source = optics.source
    basis = source.exact_key_basis_probability
    matched = basis**2 + (1 - basis) ** 2
    is_matched, is_wrong = ALICE_BASIS == BOB_BASIS, BIT != ALICE_BIT

    def total(where: NDArray[np.bool_] | bool) -> int:
        return int(counts[where].sum())

    clicks = total(LEVEL >= 0)
    seconds = pulses / optics.clock_hz / (1 - reference_fraction)
    sent = [pulses * probability for probability in source.exact_probabilities]
    in_basis = [is_matched & (value == ALICE_BASIS) for value in (0, 1)]
    some = max(1, clicks)
    return Observed(
        pulses=pulses,
        clicks=clicks,
        seconds=seconds,
        gains=tuple(total(level == LEVEL) / n for level, n in enumerate(sent)),
        error_gains=tuple(
            total((level == LEVEL) & is_matched & is_wrong) / (n * matched) for level, n in enumerate(sent)
        ),
        qber=(
            total(in_basis[0] & is_wrong) / max(1, total(in_basis[0])),
            total(in_basis[1] & is_wrong) / max(1, total(in_basis[1])),
        ),
        sifted_bps=total(in_basis[0]) / seconds,
        double_click_share=total(IS_DOUBLE) / some,
        first_detector_share=total(IS_DOUBLE | (BIT == 0)) / some,
        afterpulse_share=total(IS_AFTERPULSE) / some,
        counts=counts.copy(),
    )


def counts_of(seen: Observed) -> Counts:
    """What both ends would know of such a run after sifting."""
    is_matched, is_wrong = ALICE_BASIS == BOB_BASIS, BIT != ALICE_BIT

    def by_basis(where: NDArray[np.bool_]) -> tuple[int, int]:
        counted = [int(seen.counts[where & is_matched & (basis == ALICE_BASIS)].sum()) for basis in (0, 1)]
        return counted[0], counted[1]

    return Counts(
        pulses=seen.pulses,
        clicks=tuple(int(seen.counts[level == LEVEL].sum()) for level in range(len(seen.gains))),
        sifted=by_basis(LEVEL >= 0),
        errors=by_basis(is_wrong),
        ones=by_basis(BIT == 1),
    )


def seed_of(seed: int, *what: str | int) -> bytes:
    """32 octets for one purpose of a numbered run."""
    return hashlib.sha256("/".join(str(part) for part in ("qtrunk", seed, *what)).encode()).digest()


@dataclass(frozen=True, slots=True)
class Block:
    """One block of a run, with what watched it."""

    number: int
    seen: Observed
    watcher: Watcher | None


def blocks(
    channel: Channel,
    *,
    seconds: float,
    seed: int,
    block_pulses: int,
    watch: Callable[[int], Watcher] | None = None,
) -> Iterator[Block]:
    """Let a link run for `seconds` of its own time, block after block; its memory does not grow with them.

    Each block has seeds of its own for both ends, `end_seed`, and a watcher of its own, `watch(number)`.
    """
    optics = channel.optics
    pulses = round(seconds * optics.clock_hz * (1 - channel.reference_fraction))
    number = 0
    while pulses > 0:
        before = channel.tally.copy()
        channel.begin_block()
        alice, bob = end_seed(seed, number, Role.ALICE), end_seed(seed, number, Role.BOB)
        size = min(pulses, block_pulses)
        watcher = None if watch is None else watch(number)
        for _ in channel.slices(alice, bob, 0, size, watcher):
            pass
        yield Block(number, observed(optics, channel.tally - before, size, channel.reference_fraction), watcher)
        pulses -= size
        number += 1


def simulate(channel: Channel, *, seconds: float, seed: int, block_pulses: int) -> Observed:
    """The same for all blocks together."""
    before, sent = channel.tally.copy(), channel.pulses
    for _ in blocks(channel, seconds=seconds, seed=seed, block_pulses=block_pulses):
        pass
    return observed(channel.optics, channel.tally - before, channel.pulses - sent, channel.reference_fraction)


def end_seed(seed: int, block: int, role: Role) -> bytes:
    """Of one end's settings in one block of a numbered run."""
    return seed_of(seed, block, role.value)


def figures(seen: Observed, want: Expected, wall_s: float, reference_fraction: float = 0.0) -> dict[str, object]:
    """What was observed beside what the oracle expects, as plain JSON values."""
    return {
        "pulses": seen.pulses,
        "clicks": seen.clicks,
        "expected_clicks": want.click_hz * seen.seconds * (1 - reference_fraction),
        "seconds": seen.seconds,
        "real_time_factor": seen.seconds / wall_s,
        "sifted_bps": seen.sifted_bps,
        "expected_sifted_bps": want.sifted_bps * (1 - reference_fraction),
        "qber": {"key": seen.qber[0], "test": seen.qber[1]},
        "expected_qber": {"key": want.qber[0], "test": want.qber[1]},
        "gains": list(seen.gains),
        "expected_gains": list(want.gains),
        "error_gains": list(seen.error_gains),
        "expected_error_gains": list(want.error_gains),
        "double_click_share": seen.double_click_share,
        "expected_double_click_share": want.double_click_share,
        "first_detector_share": seen.first_detector_share,
        "expected_first_detector_share": want.first_detector_share,
        "afterpulse_share": seen.afterpulse_share,
        "expected_afterpulse_share": want.afterpulse_share,
    }
