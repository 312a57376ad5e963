"""A link's session with all it needs: the light that is announced, the machines of a block, both from one topology."""

from collections.abc import Callable
from functools import partial

from qtrunk.base.ports import Clock, Random
from qtrunk.distil.keylength import EpsilonBudget
from qtrunk.distil.parties import AuthLedger, BlockAlice, BlockBob, DistilParameters
from qtrunk.distil.session import BlockStore, LinkAlice, LinkBob, LinkEnd
from qtrunk.distil.ways import round_trip_s
from qtrunk.plan.light import Light, refusal
from qtrunk.quantum import source
from qtrunk.stages import Detections, Octets, Positions, Pulses, Role, Settings
from qtrunk.topology import Link


def light_s(link: Link, pulses: Pulses) -> float:
    """How long the light of a block takes."""
    return pulses.count / (link.equipment.clock_hz * link.equipment.clock_fraction)


def make_session(
    link: Link, role: Role, light: Light, store: BlockStore, auth: AuthLedger, random: Random, clock: Clock
) -> LinkAlice | LinkBob:
    """One end's session; `light` is that of Alice's blocks."""
    wish = link.distillation
    parameters = DistilParameters(
        budget=EpsilonBudget(secret=wish.epsilon_secret),
        bounds=wish.bounds,
        reconciliation=wish.reconciliation,
        round_trip_s=round_trip_s(link.length_km),
    )

    def settings_of(pulses: Pulses) -> source.SourceSettings:
        return source.SourceSettings(pulses.intensities, pulses.probabilities, pulses.key_basis_probability)

    def alice_settings(seed: bytes, pulses: Pulses, positions: Positions) -> Settings:
        return source.settings_at(seed, positions, settings_of(pulses))

    def bob_bases(seed: bytes, pulses: Pulses, positions: Positions) -> Octets:
        return source.bases_at(seed, positions, settings_of(pulses))

    def make_alice(pulses: Pulses, sent: Callable[[Positions], Settings]) -> BlockAlice:
        return BlockAlice(
            alice=link.alice,
            bob=link.bob,
            pulses=pulses,
            settings=sent,
            light_s=light_s(link, pulses),
            parameters=parameters,
            auth=auth,
            random=random,
            now=clock.unix_s,
        )

    def make_bob(pulses: Pulses, detections: Detections) -> BlockBob:
        return BlockBob(
            alice=link.alice,
            bob=link.bob,
            pulses=pulses,
            detections=detections,
            parameters=parameters,
            auth=auth,
            random=random,
            now=clock.unix_s,
        )

    end = LinkEnd(
        link=link.id,
        pulses=light.pulses,
        refusal=lambda pulses: refusal(link, pulses),
        store=store,
        auth=auth,
        block_epsilon=wish.epsilon_secret,
        random=random,
        now_s=clock.monotonic_s,
        light_s=partial(light_s, link),
        settings=alice_settings,
        bases=bob_bases,
        make_alice=make_alice,
        make_bob=make_bob,
    )
    return LinkAlice(end) if role is Role.ALICE else LinkBob(end)
