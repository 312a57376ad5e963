"""The node's side of a QKD module: dials its Unix socket, arms blocks, yields what the hardware reports.

The module may be the simulated fibre of a lab or a driver of real hardware; both speak quantum.device.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

from qtrunk.base.errors import DeviceError, WireError
from qtrunk.base.ids import LinkId
from qtrunk.base.wire import FRAME_HEADER_OCTETS, Message, encode, frame, frame_length
from qtrunk.quantum import device
from qtrunk.stages import Pulses, Role

RETRY_S = 0.2
_READ_LIMIT = 1 << 20

DeviceEvent = device.Attached | device.Started | device.Frame | device.Finished | device.Dropped | DeviceError


class Module:
    """One end's QKD module."""

    def __init__(self, socket: Path, link: LinkId, role: Role) -> None:
        self._socket = socket
        self._link = link
        self._role = role
        self._writer: asyncio.StreamWriter | None = None

    def arm(self, pulses: Pulses, seed: bytes) -> None:
        """Arm a block; without a connection the order is lost and the block will be dropped by its time-out."""
        if self._writer is not None:
            self._send(device.arm(pulses, seed))

    def _send(self, message: Message) -> None:
        if self._writer is not None and not self._writer.is_closing():
            self._writer.write(frame(encode(message)))

    async def events(self) -> AsyncIterator[DeviceEvent]:
        """What the module says, for ever; DeviceError each time the connection ends."""
        while True:
            try:
                async with self._connection() as reader:
                    while True:
                        header = await reader.readexactly(FRAME_HEADER_OCTETS)
                        event = device.decode_event(await reader.readexactly(frame_length(header)))
                        if isinstance(event, device.Refused):
                            yield DeviceError(f"link {self._link}: the module refused: {event.reason}")
                            await asyncio.sleep(1.0)
                        else:
                            yield event
            except (OSError, asyncio.IncompleteReadError, WireError) as error:
                yield DeviceError(f"link {self._link}: the {self._role.value}'s QKD module does not answer ({error})")
                await asyncio.sleep(RETRY_S)

    @contextlib.asynccontextmanager
    async def _connection(self) -> AsyncIterator[asyncio.StreamReader]:
        reader, writer = await asyncio.open_unix_connection(str(self._socket), limit=_READ_LIMIT)
        self._writer = writer
        try:
            self._send(device.attach(self._role, self._link))
            yield reader
        finally:
            self._writer = None
            writer.close()
