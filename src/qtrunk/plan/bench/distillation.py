"""The whole of distillation by two processes over loopback TCP, from clicks to authenticated key.

Both ends get the same simulated light beforehand, as their modules would have given it to them; from then on they share
octets only. Several blocks are under way at once, as on a link that is always lit.
"""

import time
from dataclasses import dataclass, replace
from functools import partial

from qtrunk import kernels
from qtrunk.base.errors import LabError
from qtrunk.base.ids import LinkId, NodeId
from qtrunk.base.secret import Secret
from qtrunk.crypto import randomness
from qtrunk.distil.authentication import AUTH_OCTETS, Authenticator, WegmanCarter
from qtrunk.distil.parties import BlockAlice, BlockBob, DistilParameters
from qtrunk.plan.bench import ends
from qtrunk.plan.bench.figures import Figure, median
from qtrunk.quantum.channel import Channel
from qtrunk.quantum.optics import of_equipment
from qtrunk.quantum.run import end_seed, seed_of
from qtrunk.quantum.source import SourceSettings, bases_at, settings_at
from qtrunk.stages import Detections, Octets, Positions, Pulses, Role
from qtrunk.topology import Equipment

LIGHT_S, LOSS_DB, KEY_BASIS = 8.0, 6.3, 0.95
BLOCKS, UNDER_WAY = 12, 4


class _Ledger:
    """Authentication key of one block, made up: distil.parties.AuthLedger."""

    def __init__(self, octets: bytes) -> None:
        self._octets = octets

    def reserve(self, _epsilon: float) -> Authenticator:
        return WegmanCarter(0, 0, Secret(self._octets))

    def take(self, _block: int, _offset: int, _epsilon: float) -> Authenticator:
        return WegmanCarter(0, 0, Secret(self._octets))

    def allows(self, _epsilon: float) -> bool:
        return True

    def level_octets(self) -> int:
        return DistilParameters().auth_target_octets


@dataclass(frozen=True)
class _Work:
    """What one end is given."""

    pulses: Pulses
    source: SourceSettings
    seed: bytes
    positions: Positions | None
    bits: Octets | None
    reconciliation: str
    path: str
    """Which kernels."""


def _make(work: _Work, block: int) -> BlockAlice | BlockBob:
    kernels.force_path(work.path)
    common = {
        "alice": NodeId("alice"),
        "bob": NodeId("bob"),
        "pulses": replace(work.pulses, block=block),
        "parameters": DistilParameters(reconciliation=work.reconciliation),
        "random": randomness.system(),
        "now": time.time,
    }
    ledger = _Ledger((seed_of(block, "authentication") * AUTH_OCTETS)[:AUTH_OCTETS])
    if work.positions is None or work.bits is None:
        return BlockAlice(
            settings=lambda at: settings_at(work.seed, at, work.source), light_s=LIGHT_S, auth=ledger, **common
        )
    basis = bases_at(work.seed, work.positions, work.source)
    return BlockBob(detections=Detections(positions=work.positions, basis=basis, bit=work.bits), auth=ledger, **common)


class _Alice:
    """Makes Alice's machines, in a process of her own."""

    def __init__(self, work: _Work) -> None:
        self._work = work

    def __call__(self) -> ends.Make:
        return partial(_make, self._work)


def _distil(alice: _Work, bob: _Work) -> tuple[int, float]:
    """(sifted bits, wall seconds) of all blocks, with Alice in a process of her own and Bob in this one."""
    bits, began_s = 0, 0.0
    for outcome in ends.distil(_Alice(alice), partial(_make, bob), list(range(BLOCKS + 1)), UNDER_WAY):
        if outcome.cause is not None:
            raise LabError(f"block {outcome.block} was destroyed: {outcome.why}")
        # The first one waits for the other process to start.
        if began_s:
            bits += outcome.sifted_bits
        else:
            began_s = time.perf_counter()
    return bits, time.perf_counter() - began_s


def distillation(runs: int, _with_rivals: bool) -> list[Figure]:
    """Sifted key per second through both ends, two processes on two cores."""
    optics = of_equipment(replace(Equipment(), key_basis_probability=KEY_BASIS), LOSS_DB)
    source = optics.source
    count = round(LIGHT_S * optics.clock_hz)
    alice_seed, bob_seed = end_seed(4, 0, Role.ALICE), end_seed(4, 0, Role.BOB)
    clicks = Channel(optics, seed_of(4, "light")).sample(alice_seed, bob_seed, 0, count)
    pulses = Pulses(
        link=LinkId("alice-bob"),
        block=0,
        count=count,
        intensities=source.intensities,
        probabilities=source.exact_probabilities,
        key_basis_probability=source.exact_key_basis_probability,
    )
    figures = []
    wanted = [("avx512", "fast", 200.0), ("avx512", "ldpc", None), ("avx2", "fast", 50.0), ("portable", "fast", None)]
    for path, reconciliation, goal in wanted:
        if path not in kernels.cpu_paths():
            continue
        alice = _Work(pulses, source, alice_seed, None, None, reconciliation, path)
        bob = _Work(pulses, source, bob_seed, clicks.positions, clicks.bits, reconciliation, path)
        samples, bits = [], 0
        try:
            for _ in range(runs if path != "portable" else 1):
                bits, took_s = _distil(alice, bob)
                samples.append(bits / took_s / 1e6)
        finally:
            kernels.force_path(None)
        figures.append(
            Figure(
                name=f"distillation, two processes over loopback, reconciliation {reconciliation}, {path}",
                value=median(samples),
                unit="Mbit/s of sifted key",
                goal=goal,
                samples=tuple(samples),
                note=f"wall time; {BLOCKS} blocks of {LIGHT_S:g} s of light at {LOSS_DB:g} dB, QBER 1.5 %, "
                f"{bits // BLOCKS:,} bits each, {UNDER_WAY} under way at once",
            )
        )
    return figures
