"""The SAEs of a run: pairs that ask for keys, collect them, ask again where an answer was lost, and check all of it."""

import asyncio
import contextvars
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from qtrunk.base.errors import KeyNotFound, NotAuthorised, QtrunkError
from qtrunk.base.ids import KeyId, SaeId
from qtrunk.base.ports import SuppliedKey
from qtrunk.sim.network.checks import Violation
from qtrunk.sim.network.dice import Dice
from qtrunk.sim.network.machine import MACHINE
from qtrunk.sim.network.simnode import SimNode
from qtrunk.sim.network.trial import Trial

T = TypeVar("T")
RETRY_S = 3.0
"""Within the nodes' window for repeated requests, restarts included."""
ANSWER_S = 12.0


class NoAnswer(Exception):
    """The connection to the node broke, or there was none."""


@dataclass
class Customers:
    """One pair of SAEs, in one direction."""

    trial: Trial
    initiator: SaeId
    target: SaeId
    dice: Dice
    mean_s: float = 1.0
    supplied: int = 0
    """Keys that both have."""
    tasks: set["asyncio.Task[None]"] = field(default_factory=set)

    async def run(self) -> None:
        """Ask for keys for ever."""
        while True:
            await asyncio.sleep(self.dice.after(self.mean_s))
            task = asyncio.get_running_loop().create_task(self._one())
            self.tasks.add(task)
            task.add_done_callback(self._ended)

    def _ended(self, task: "asyncio.Task[None]") -> None:
        self.tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            self.trial.fail(task.exception() or AssertionError())

    async def _one(self) -> None:
        await self.exchange()

    async def exchange(self) -> bool:
        """One request and its collection; whether both SAEs have the keys now."""
        mark = self.dice.octets(16) if self.dice.chance(0.7) else None
        number = self.dice.whole(1, 4)
        bits = self.dice.pick([128, 256, 256, 512])
        keys = await self._initiate(number, bits, mark)
        if keys is None:
            return False
        await asyncio.sleep(self.dice.after(0.3))
        ids = [key.key_id for key in keys]
        is_done = await self._collect(ids)
        if is_done and self.dice.chance(0.2):
            await self._try_twice(ids)
        self.supplied += len(ids) if is_done else 0
        return is_done

    async def _initiate(self, number: int, bits: int, mark: bytes | None) -> Sequence[SuppliedKey] | None:
        for attempt in range(3 if mark else 1):
            if attempt:
                await asyncio.sleep(self.dice.between(0.2, RETRY_S / 2))
            try:
                keys = await self._call(
                    self.initiator,
                    lambda node: node.supply.initiate(self.initiator, [self.target], number, bits, request_id=mark),
                )
            except NoAnswer:
                self.trial.counts["no answer"] += 1
                continue
            except QtrunkError as error:
                self._refused(error)
                return None
            self.trial.checks.initiated(self.initiator, [self.target], mark, keys)
            self.trial.trace(f"{self.initiator} {len(keys)} keys")
            self.trial.counts["initiated"] += len(keys)
            if mark is None or self.dice.chance(0.9):
                return keys
            # As if the answer had been lost on its way to the SAE: the same request once more.
        return None

    async def _collect(self, ids: list[KeyId]) -> bool:
        mark = self.dice.octets(16)
        for _ in range(4):
            try:
                await self._fetch(ids, mark)
            except NoAnswer:
                await asyncio.sleep(RETRY_S / 2)
                continue
            except QtrunkError as error:
                self._refused(error)
                return False
            return True
        return False

    async def _fetch(self, ids: list[KeyId], mark: bytes | None) -> None:
        keys = await self._call(
            self.target, lambda node: node.supply.collect(self.target, self.initiator, ids, request_id=mark)
        )
        self.trial.checks.fetched(self.target, mark, ids, keys)
        self.trial.counts["collected"] += len(keys)
        self.trial.trace(f"{self.target} {len(keys)} keys")

    async def _try_twice(self, ids: list[KeyId]) -> None:
        """A target that asks for the same keys by another request, or an SAE that is none of them."""
        try:
            await self._fetch(ids, None)
        except (KeyNotFound, NotAuthorised, NoAnswer):
            return
        except QtrunkError as error:
            self._refused(error)
            return
        raise Violation(f"once: {self.target} got keys twice")

    async def _call(self, sae: SaeId, ask: Callable[[SimNode], Coroutine[Any, Any, T]]) -> T:
        """On the node's machine; whoever waits for a dead one gets NoAnswer."""
        known = self.trial.topology.sae(sae)
        assert known is not None
        node = self.trial.live(known.node)
        machine = self.trial.sites[known.node].machine
        await asyncio.sleep(self.dice.between(0.0005, 0.01))
        if node is None or machine is None or not machine.is_alive:
            raise NoAnswer
        context = contextvars.copy_context()
        context.run(MACHINE.set, machine)
        task = asyncio.get_running_loop().create_task(ask(node), context=context)
        await asyncio.wait([task], timeout=ANSWER_S)
        if not task.done() or task.cancelled() or not machine.is_alive:
            task.cancel()
            raise NoAnswer
        return task.result()

    def _refused(self, error: QtrunkError) -> None:
        self.trial.counts[f"refused {type(error).__name__}"] += 1
