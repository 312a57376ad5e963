"""What happens in a run, out of its seed: the network, who asks for keys, which faults strike when, how it must end.

Each seed draws its own set of kinds of faults (a run with all of them at once finds less than many with a few each).
"""

import asyncio
import traceback
from dataclasses import dataclass, field

from qtrunk.base.ids import LinkId, NodeId, SaeId
from qtrunk.sim.network.checks import Violation
from qtrunk.sim.network.customers import Customers
from qtrunk.sim.network.dice import Dice
from qtrunk.sim.network.faults import AIMED, FAULTS, Faults
from qtrunk.sim.network.trial import Trial
from qtrunk.topology import (
    ANNOUNCED,
    HOP_BY_HOP,
    Demand,
    KeyApi,
    Link,
    Node,
    Sae,
    Tenant,
    Topology,
    VendorEnd,
    VendorSource,
    link_id,
)

FAULTS_S = 15.0
HEALED_S = 240.0
"""After the last fault is over, every pair must have fresh keys within so long, and the alarms must be gone."""
QUIET_S = 2.0
ANNOUNCED_FROM = 1_000_000
"""In the networks of seeds from here on, keys are relayed by announced XORs; in those before, hop by hop."""
BLOCK_KEYS, KEY_BITS = 16, 2048
STANDING_ALARMS = frozenset({"RelayAuthenticationFailed", "RelayProtocolError", "RelayTampered", "NoteRefused"})
"""These say that something happened; nothing clears them."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What a seed means."""

    seed: int
    topology: Topology
    kinds: tuple[str, ...]
    faults_s: float = FAULTS_S


@dataclass(slots=True)
class Outcome:
    """What came of a run."""

    seed: int
    trace: str
    virtual_s: float
    counts: dict[str, int]
    error: str = ""
    kind: str = ""
    where: str = ""
    """Traceback of what is not a Violation."""
    last_words: list[str] = field(default_factory=list)
    healed_s: float = 0.0
    log: list[str] = field(default_factory=list)


def plan(seed: int) -> Plan:
    """The scenario of a seed."""
    dice = Dice(f"qtrunk {seed}").child("plan")
    kinds = tuple(kind for kind in FAULTS if kind != AIMED and dice.chance(0.35))
    if dice.child(AIMED).chance(0.5):
        kinds = (*kinds, AIMED)
    return Plan(seed, network(dice, ANNOUNCED if seed >= ANNOUNCED_FROM else HOP_BY_HOP), kinds)


def network(dice: Dice, relay: str = HOP_BY_HOP) -> Topology:
    """A small network: a row, a ring, or a ring with a tail."""
    shape = dice.pick(["row", "ring", "ring", "tail"])
    count = dice.whole(3, 5)
    names = [f"n{index}" for index in range(count)]
    pairs = [(names[index], names[index + 1]) for index in range(count - 1)]
    if shape != "row":
        end = count - 1 if shape == "ring" or count < 4 else count - 2
        pairs.append((names[end], names[0]))
    saes = [Sae(id=SaeId(f"sae-{name}"), node=NodeId(name)) for name in names]
    wanted = []
    for _ in range(dice.whole(1, 2)):
        one, other = dice.shuffled(names)[:2]
        wanted.append(Demand(between=(SaeId(f"sae-{one}"), SaeId(f"sae-{other}")), rate_bps=dice.between(500, 4000)))
    policy = dice.pick(["hybrid", "hybrid", "qkd", "fallback"])
    return Topology(
        name=f"sim-{shape}",
        nodes=tuple(Node(id=NodeId(name)) for name in names),
        links=tuple(vendor_link(*dice.shuffled(pair)) for pair in pairs),
        saes=tuple(saes),
        demands=tuple(wanted),
        tenants=(Tenant(id="default", hybrid=policy, relay=relay),),
        key_api=KeyApi(retry_window_s=10.0),
    )


def vendor_link(alice: str, bob: str) -> Link:
    """A link whose keys a simulated vendor box gives."""
    ends = [VendorEnd(kme_url=f"https://kme-{name}", sae=SaeId(f"box-{name}")) for name in (alice, bob)]
    return Link(
        id=LinkId(link_id(NodeId(alice), NodeId(bob))),
        alice=NodeId(alice),
        bob=NodeId(bob),
        length_km=50.0,
        loss_db=11.0,
        vendor=VendorSource(
            trust="simulated", alice=ends[0], bob=ends[1], keys=BLOCK_KEYS, key_bits=KEY_BITS, poll_s=1.0
        ),
    )


def play(seed: int, *, is_logged: bool = False, given: Plan | None = None) -> Outcome:
    """The run of a seed, whatever comes of it."""
    drawn = given or plan(seed)
    trial = Trial(drawn.topology, Dice(f"qtrunk {seed}").child("trial"))
    trial.log = [] if is_logged else None
    outcome = Outcome(seed, "", 0.0, {})
    try:
        trial.run(_story(trial, drawn, outcome))
    except Exception as error:  # noqa: BLE001 (whatever it is: that is what the run found)
        outcome.error = f"{type(error).__name__}: {error}"
        outcome.where = "" if isinstance(error, Violation) else "".join(traceback.format_exception(error))
        outcome.kind = str(error).split(":")[0] if isinstance(error, Violation) else type(error).__name__
    outcome.trace, outcome.virtual_s = trial.trace_hash, trial.loop.time()
    outcome.counts, outcome.log, outcome.last_words = dict(trial.counts), trial.log or [], trial.last_words
    return outcome


async def _story(trial: Trial, drawn: Plan, outcome: Outcome) -> None:
    customers = [
        Customers(trial, *pair, trial.dice.child(f"customers {index} {pair[0]}"))
        for index, demand in enumerate(drawn.topology.demands)
        for pair in (demand.between, demand.between[::-1])
    ]
    asking = [trial.loop.create_task(pair.run()) for pair in customers]
    faults = Faults(trial, trial.dice.child("faults"))
    # A death between a thread's steps shows in which order they were.
    trial.loop.is_ahead = AIMED in drawn.kinds
    striking = [trial.loop.create_task(faults.keep_striking(kind)) for kind in drawn.kinds]
    await asyncio.sleep(drawn.faults_s)
    for task in striking:
        task.cancel()
    await asyncio.gather(*striking, return_exceptions=True)
    faults.heal()
    trial.trace("all is well")
    try:
        await _serves_again(trial, customers, outcome)
    finally:
        for task in (*asking, *(task for pair in customers for task in pair.tasks)):
            task.cancel()


async def _serves_again(trial: Trial, customers: list[Customers], outcome: Outcome) -> None:
    """Liveness: fresh keys for every pair, and quiet."""
    began_s = trial.loop.time()
    waiting = {index: pair.supplied for index, pair in enumerate(customers)}
    why = ""
    while trial.loop.time() - began_s < HEALED_S:
        await asyncio.sleep(QUIET_S)
        waiting = {index: before for index, before in waiting.items() if customers[index].supplied <= before}
        why = f"no keys for {[(customers[i].initiator, customers[i].target) for i in waiting]}" if waiting else ""
        why = why or _noise(trial)
        if not why:
            outcome.healed_s = trial.loop.time() - began_s
            return
    raise Violation(f"liveness: {HEALED_S:g} s after the last fault: {why}")


def _noise(trial: Trial) -> str:
    """A node that is not in service, or an alarm that still stands."""
    for site in trial.sites.values():
        if trial.live(site.name) is None:
            return f"{site.name} is not in service"
        assert site.alarms is not None
        for alarm in site.alarms.as_json()["active"]:
            if alarm["type"] not in STANDING_ALARMS:
                return f"{site.name}: alarm {alarm['type']} of {alarm['resource']}: {alarm['text']}"
    return ""
