"""One machine of the simulation: what a node process runs on, and what dies with it.

Everything that a node does, it does in the context of its machine (`MACHINE`), so its tasks, connections and writes are
known. A machine dies at an *effect*: a write to its disk or a send, counted from its start. What happens after that
in its Python objects reaches nothing: its disk and its connections are dead.
"""

import asyncio
import contextvars
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any


class Died(BaseException):
    """The machine is gone at this very effect. No `except Exception` of a node may stop it."""


@dataclass(eq=False)
class Machine:
    """One incarnation of a node's process."""

    name: str
    on_death: Callable[["Machine"], None]
    fuse: int | None = None
    """Effects until it dies; None: it lives."""
    awaited: str = ""
    """The kind of effect at which the fuse is lit; empty: it burns."""
    is_alive: bool = True
    effects: int = 0
    kinds: dict[str, None] = field(default_factory=dict)
    """Of its effects, in the order in which they came first."""
    tasks: set[asyncio.Task[Any]] = field(default_factory=set)

    def effect(self, kind: str) -> None:
        """Before something leaves the process or reaches the disk."""
        if not self.is_alive:
            raise Died(self.name)
        self.effects += 1
        self.kinds[kind] = None
        if self.awaited in ("", kind) and self.fuse is not None:
            self.awaited = ""
            self.fuse -= 1
            if self.fuse < 0:
                self.die()
                raise Died(self.name)

    def die(self) -> None:
        """Now."""
        if self.is_alive:
            self.is_alive = False
            self.on_death(self)


MACHINE: contextvars.ContextVar[Machine | None] = contextvars.ContextVar("machine", default=None)


def here() -> Machine | None:
    """Whose code runs now; None: the simulation's own."""
    return MACHINE.get()


def task_factory(loop: asyncio.AbstractEventLoop, work: Coroutine[Any, Any, Any], **how: Any) -> asyncio.Task[Any]:
    """Tasks belong to the machine whose code starts them."""
    task: asyncio.Task[Any] = asyncio.Task(work, loop=loop, **how)
    machine = MACHINE.get()
    if machine is not None:
        machine.tasks.add(task)
        task.add_done_callback(machine.tasks.discard)
    return task
