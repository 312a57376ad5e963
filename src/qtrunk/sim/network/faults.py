"""The faults that may strike a run, by name. Each comes again and again until `heal`."""

import asyncio
from collections.abc import Awaitable, Callable

from qtrunk.sim.network.dice import Dice
from qtrunk.sim.network.trial import Site, Trial
from qtrunk.sim.network.weather import Stream

AIMED = "aimed"
MEAN_S = 6.0
"""Between two of one kind."""
AIMED_MEAN_S = 2.0
"""Between two aimed deaths: each has one moment, of many."""
EFFECTS_MAX = 120
"""A death comes within so many effects of being decided, at any of them."""
BEHIND_MAX = 2
"""An aimed one comes at most so many effects behind the next effect of its kind."""


class Faults:
    """What strikes a trial."""

    def __init__(self, trial: Trial, dice: Dice) -> None:
        self._trial = trial
        self._dice = dice
        self._kept: dict[Stream, bytes] = {}

    async def keep_striking(self, kind: str) -> None:
        """One kind of fault, now and then."""
        dice = self._dice.child(kind)
        while True:
            await asyncio.sleep(dice.after(AIMED_MEAN_S if kind == AIMED else MEAN_S))
            self._trial.counts[f"fault {kind}"] += 1
            self._trial.trace(f"fault {kind}")
            await FAULTS[kind](self, dice)

    def heal(self) -> None:
        """All that lasts ends now."""
        trial = self._trial
        trial.weather.meddler = None
        for link in trial.topology.links:
            trial.weather.heal(link.alice, link.bob)
        for box in trial.boxes.values():
            box.is_down, box.mismatch_probability = False, 0.0
        for site in trial.sites.values():
            site.clock.offset_s = 0.0
            if site.machine is not None:
                site.machine.fuse = None
            if site.disk is not None:
                site.disk.error_probability, site.disk.is_full = 0.0, False

    def _site(self, dice: Dice) -> Site:
        return dice.pick(list(self._trial.sites.values()))

    # ── machines ────────────────────────────────────────────────────────────────────────────────────────────────────

    async def crash(self, dice: Dice) -> None:
        """A process is killed at one of its next effects."""
        self._light_fuse(self._site(dice), dice, is_power_loss=False)

    async def power(self, dice: Dice) -> None:
        """A machine loses its power at one of its next effects: what was not flushed may be gone."""
        self._light_fuse(self._site(dice), dice, is_power_loss=True)

    def _light_fuse(self, site: Site, dice: Dice, *, is_power_loss: bool) -> None:
        site.is_power_loss = is_power_loss
        site.down_s = dice.between(0.1, 5.0)
        if site.machine is not None and site.machine.is_alive:
            site.machine.fuse, site.machine.awaited = dice.whole(0, EFFECTS_MAX), ""

    async def aimed(self, dice: Dice) -> None:
        """As crash or power, at or just behind the next effect of one kind, be it as rare as it may."""
        site = self._site(dice)
        if site.machine is not None and site.machine.kinds:
            self._light_fuse(site, dice, is_power_loss=dice.chance(0.5))
            site.machine.awaited = dice.pick(list(site.machine.kinds))
            site.machine.fuse = dice.whole(0, BEHIND_MAX)

    async def clock(self, dice: Dice) -> None:
        """The time of day of a machine jumps."""
        self._site(dice).clock.offset_s = dice.between(-5.0, 5.0)

    # ── disks ───────────────────────────────────────────────────────────────────────────────────────────────────────

    async def disk(self, dice: Dice) -> None:
        """Writes and flushes fail now and then, for a while."""
        site = self._site(dice)
        disk = site.disk
        if disk is not None:
            disk.error_probability = dice.pick([0.02, 0.2, 1.0])
            await asyncio.sleep(dice.after(2.0))
            disk.error_probability = 0.0

    async def full(self, dice: Dice) -> None:
        """A disk has no space, for a while."""
        disk = self._site(dice).disk
        if disk is not None:
            disk.is_full = True
            await asyncio.sleep(dice.after(3.0))
            disk.is_full = False

    # ── network ─────────────────────────────────────────────────────────────────────────────────────────────────────

    async def cut(self, dice: Dice) -> None:
        """Connections between two nodes break."""
        link = dice.pick(self._trial.topology.links)
        self._trial.weather.cut(link.alice, link.bob)

    async def still(self, dice: Dice) -> None:
        """Nothing arrives between two nodes for a while."""
        link = dice.pick(self._trial.topology.links)
        self._trial.weather.still(link.alice, link.bob)
        await asyncio.sleep(dice.after(5.0))
        self._trial.weather.heal(link.alice, link.bob)

    async def slow(self, dice: Dice) -> None:
        """The way between two nodes is long from now on."""
        link = dice.pick(self._trial.topology.links)
        line = self._trial.weather.line(link.alice, link.bob)
        line.delay_s, line.jitter_s = dice.between(0.001, 0.4), dice.between(0.0, 0.2)

    async def meddle(self, dice: Dice) -> None:
        """An adversary inside TLS loses, doubles, holds back, changes and repeats frames, for a while."""
        rate = dice.pick([0.02, 0.1, 0.3])

        def meddler(stream: Stream, payload: bytes) -> list[tuple[float, bytes]]:
            return self._meddled(stream, payload, dice) if dice.chance(rate) else [(0.0, payload)]

        self._trial.weather.meddler = meddler
        await asyncio.sleep(dice.after(4.0))
        self._trial.weather.meddler = None

    def _meddled(self, stream: Stream, payload: bytes, dice: Dice) -> list[tuple[float, bytes]]:
        kept = self._kept.get(stream)
        self._kept[stream] = payload
        match dice.whole(0, 5):
            case 0:
                return []
            case 1:
                return [(0.0, payload), (dice.after(0.2), payload)]
            case 2:
                return [(dice.after(0.3), payload)]
            case 3 if payload:
                changed = bytearray(payload)
                changed[dice.whole(0, len(changed) - 1)] ^= 1 << dice.whole(0, 7)
                return [(0.0, bytes(changed))]
            case 4 if kept is not None:
                return [(0.0, payload), (0.0, kept)]
            case _:
                stream.other.arrive(0.0, b"")
                return [(0.0, payload)]

    # ── keys ────────────────────────────────────────────────────────────────────────────────────────────────────────

    async def kme(self, dice: Dice) -> None:
        """A vendor's KMEs do not answer for a while."""
        box = dice.pick(list(self._trial.boxes.values()))
        box.is_down = True
        await asyncio.sleep(dice.after(4.0))
        box.is_down = False

    async def mismatch(self, dice: Dice) -> None:
        """A vendor's KMEs give different keys under one ID, for a while: as an attack that they do not notice."""
        box = dice.pick(list(self._trial.boxes.values()))
        box.mismatch_probability = dice.pick([0.01, 0.1, 1.0])
        await asyncio.sleep(dice.after(6.0))
        box.mismatch_probability = 0.0


FAULTS: dict[str, Callable[[Faults, Dice], Awaitable[None]]] = {
    "crash": Faults.crash,
    "power": Faults.power,
    AIMED: Faults.aimed,
    "clock": Faults.clock,
    "disk": Faults.disk,
    "full": Faults.full,
    "cut": Faults.cut,
    "still": Faults.still,
    "slow": Faults.slow,
    "meddle": Faults.meddle,
    "kme": Faults.kme,
    "mismatch": Faults.mismatch,
}
