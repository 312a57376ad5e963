"""The node's side of a QKD module: dials its Unix socket, arms blocks, yields what the hardware reports.

The module may be the simulated fibre of a lab or a driver of real hardware; both speak quantum.device. One that hangs
with its connection open (`node.modulewatch`) is dialled anew, until it answers.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path

from qtrunk.base.errors import DeviceError, WireError
from qtrunk.base.ids import LinkId
from qtrunk.base.wire import FRAME_HEADER_OCTETS, Message, encode, frame, frame_length
from qtrunk.node.modulewatch import ModuleWatch
from qtrunk.quantum import device
from qtrunk.stages import Pulses, Role

RETRY_S = 0.2
TICK_S = 1.0
_READ_LIMIT = 1 << 20

DeviceEvent = device.Attached | device.Started | device.Frame | device.Finished | device.Dropped | DeviceError


class Module:
    """One end's QKD module."""

    def __init__(self, socket: Path, link: LinkId, role: Role, light_s: Callable[[Pulses], float]) -> None:
        """`light_s`: how long the light of a block takes."""
        self._socket = socket
        self._link = link
        self._role = role
        self._light_s = light_s
        self._writer: asyncio.StreamWriter | None = None
        self._watch = ModuleWatch()
        self._is_listening = False
        self._overdue = ""
        """Why this connection was given up."""

    def arm(self, pulses: Pulses, seed: bytes) -> None:
        """Arm a block; without a connection the order is lost and the block will be dropped by its time-out."""
        if self._writer is not None:
            self._watch.armed(pulses.block, self._light_s(pulses))
            self._send(device.arm(pulses, seed))

    def _send(self, message: Message) -> None:
        if self._writer is not None and not self._writer.is_closing():
            self._writer.write(frame(encode(message)))

    async def events(self) -> AsyncIterator[DeviceEvent]:
        """What the module says, for ever; DeviceError each time the connection ends, or is ended for its silence."""
        while True:
            try:
                async with self._connection() as reader:
                    while True:
                        event = await self._hear(reader)
                        if isinstance(event, device.Refused):
                            yield DeviceError(f"link {self._link}: the module refused: {event.reason}")
                            await asyncio.sleep(1.0)
                        elif not isinstance(event, device.Alive):
                            yield event
            except (OSError, asyncio.IncompleteReadError, WireError) as error:
                why = self._overdue or error
                yield DeviceError(f"link {self._link}: the {self._role.value}'s QKD module does not answer ({why})")
                await asyncio.sleep(RETRY_S)

    async def _hear(self, reader: asyncio.StreamReader) -> device.Event:
        # What this node is too busy to read is no silence of the module.
        self._is_listening = True
        try:
            header = await reader.readexactly(FRAME_HEADER_OCTETS)
            event = device.decode_event(await reader.readexactly(frame_length(header)))
        finally:
            self._is_listening = False
        self._watch.heard(event)
        return event

    async def _keep_watch(self, writer: asyncio.StreamWriter) -> None:
        while not self._overdue:
            await asyncio.sleep(TICK_S)
            if self._is_listening:
                self._overdue = self._watch.tick(TICK_S)
        writer.transport.abort()

    @contextlib.asynccontextmanager
    async def _connection(self) -> AsyncIterator[asyncio.StreamReader]:
        self._overdue = ""
        reader, writer = await asyncio.open_unix_connection(str(self._socket), limit=_READ_LIMIT)
        self._writer = writer
        self._watch.connected()
        watching = asyncio.create_task(self._keep_watch(writer))
        try:
            self._send(device.attach(self._role, self._link))
            yield reader
        finally:
            self._writer = None
            watching.cancel()
            writer.close()
