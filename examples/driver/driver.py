"""A driver: serves qtrunk's device protocol to a node and speaks a maker's own protocol to one box.

    python driver.py --side transmitter --socket module.sock --box tx.sock --link a-b

One driver per box, on the machine of the node at that end. It translates and keeps no opinion: settings are drawn by
the box from the node's seed, light is timed by the boxes, and what one end must not know never comes past here, because
its box does not know it. docs/device.md is the protocol, hardware.py the box.
"""

import argparse
import asyncio
import base64
import contextlib
import json
import os
import time
from pathlib import Path
from typing import Any

import numpy as np

from qtrunk.base.errors import DeviceError, QtrunkError, WireError
from qtrunk.base.wire import FRAME_HEADER_OCTETS, Message, decode, encode, frame, frame_length
from qtrunk.quantum import device
from qtrunk.quantum.source import SourceSettings

POLL_S = 0.02
HEARTBEAT_S = 1.0
ORDER_OCTETS_MAX = 1 << 16
INTENSITY_MAX = 2.0
"""Photons a pulse: what the attenuator of this box can let through."""


class Box:
    """The maker's side: one JSON object a line, one answer to each command."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self._lock = asyncio.Lock()

    async def ask(self, cmd: str, **values: object) -> dict[str, Any]:
        """The answer to a command; DeviceError where the box says no."""
        async with self._lock:
            self._writer.write(json.dumps({"cmd": cmd, **values}).encode() + b"\n")
            line = await self._reader.readline()
        if not line:
            raise ConnectionResetError("the box closed its connection")
        answer: dict[str, Any] = json.loads(line)
        if not answer["ok"]:
            # The box's own words stay here: they could repeat what was sent, and that was a seed.
            raise DeviceError(f"the box refused {cmd}")
        return answer


class Driver:
    """One end's module, as its node sees it."""

    def __init__(self, side: str, link: str, box: Box, clock_hz: float) -> None:
        self._side, self._link, self._box, self._clock_hz = side, link, box, clock_hz
        self._node: asyncio.StreamWriter | None = None
        self._pulses: dict[int, int] = {}
        """Of each block that is armed and not over."""
        self._lit: int | None = None
        self._clicks = 0

    # ── from the node ───────────────────────────────────────────────────────────────────────────────────────────────

    async def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, from Attach to its end."""
        try:
            await self._attach(decode(await _payload(reader), device.Attach), writer)
            while True:
                await self._arm(decode(await _payload(reader), device.Arm), writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        except QtrunkError as error:
            self._say(writer, device.Refused(reason=str(error)))
            # Closed before anything is awaited: neither a heartbeat nor what the box does may follow.
            writer.close()
        finally:
            if self._node is writer:
                self._node = None
                await self._forget()
            writer.close()

    async def _attach(self, hello: device.Attach, writer: asyncio.StreamWriter) -> None:
        if (hello.role, hello.link) != (self._side, self._link):
            raise WireError(f"this is the {self._side} of link {self._link}")
        if self._node is not None:
            # The node crashed and came back before its old connection died: the old one's orders are void.
            self._node.close()
        self._node = writer
        await self._forget()
        self._say(writer, device.Attached(clock_hz=self._clock_hz, heartbeat_s=HEARTBEAT_S))

    async def _forget(self) -> None:
        self._pulses.clear()
        self._lit = None
        await self._box.ask("CLEAR")

    async def _arm(self, order: device.Arm, writer: asyncio.StreamWriter) -> None:
        check(order)
        if self._node is not writer:
            return
        # One may be armed ahead: of the lower ones without light only the highest can still begin.
        for block in sorted(number for number in self._pulses if number < order.block and number != self._lit)[:-1]:
            # The box says no if the light of that one has begun meanwhile; then it may end as it should.
            with contextlib.suppress(DeviceError):
                await self._box.ask("CLEAR", slot=block)
                self._pulses.pop(block, None)
                self._say(writer, device.Dropped(block=block, reason="a later block was armed"))
        source = SourceSettings(tuple(order.intensities), tuple(order.probabilities), order.key_basis_probability)
        load: dict[str, object] = {"gates": order.pulses, "basis_edge": source.basis_threshold}
        if self._side == device.TRANSMITTER:
            load["level_edges"] = source.intensity_thresholds.tolist()
            load["mphotons"] = [1e3 * intensity for intensity in order.intensities]
        self._pulses[order.block] = order.pulses
        await self._box.ask("ARM", slot=order.block, entropy=order.seed.hex(), **load)
        await self._box.ask("START", slot=order.block)

    # ── from the box ────────────────────────────────────────────────────────────────────────────────────────────────

    async def report(self) -> None:
        """Tell the node what the box did, for ever. While the node does not read, the box is not read either. The
        heartbeat is that of the box: where it does not answer, nothing is said.
        """
        said_s = 0.0
        while True:
            node = self._node
            if node is not None:
                for event in (await self._box.ask("READ"))["events"]:
                    # What an earlier node ordered is none of a later one's business.
                    if self._node is node and (message := self._message(event)) is not None:
                        self._say(node, message)
                        with contextlib.suppress(ConnectionError):
                            await node.drain()
                if time.monotonic() - said_s >= HEARTBEAT_S:
                    said_s = time.monotonic()
                    self._say(node, device.Alive())
            await asyncio.sleep(POLL_S)

    def _message(self, event: dict[str, Any]) -> Message | None:
        block = int(event["slot"])
        if block not in self._pulses:
            return None
        match event["event"]:
            case "light":
                self._lit, self._clicks = block, 0
                return device.Started(block=block)
            case "slice":
                offsets = np.frombuffer(base64.b64decode(event["hits"]), "<u4").astype(np.uint64)
                ports = np.frombuffer(base64.b64decode(event["ports"]), np.uint8)
                self._clicks += len(offsets)
                return device.frame_of(
                    block, event["first"], event["gates"], offsets + np.uint64(event["first"]), ports
                )
            case "dark":
                return self._finished(block, event)
            case _:
                del self._pulses[block]
                return device.Dropped(block=block, reason=str(event["why"]))

    def _finished(self, block: int, event: dict[str, Any]) -> device.Finished:
        """The end of a block, with the box's counters in SI units."""
        factor = min(1.0, self._pulses.pop(block) / self._clock_hz / event["seconds"])
        if self._side == device.TRANSMITTER:
            numbers = [mphotons / 1e3 for mphotons in event["mphotons"]]
            readings = device.TransmitterReadings(mean_photon_numbers=numbers)
            return device.Finished(block=block, real_time_factor=factor, transmitter=readings)
        return device.Finished(
            block=block,
            real_time_factor=factor,
            clicks=self._clicks,
            receiver=device.ReceiverReadings(
                detector_clicks=event["counts"],
                double_clicks=event["coincidences"],
                photocurrent_a=[current_ua * 1e-6 for current_ua in event["bias_ua"]],
            ),
        )

    @staticmethod
    def _say(writer: asyncio.StreamWriter, message: Message) -> None:
        if not writer.is_closing():
            writer.write(frame(encode(message)))


async def _payload(reader: asyncio.StreamReader) -> bytes:
    length = frame_length(await reader.readexactly(FRAME_HEADER_OCTETS))
    if length > ORDER_OCTETS_MAX:
        raise WireError(f"order of {length} octets: at most {ORDER_OCTETS_MAX}")
    return await reader.readexactly(length)


def check(order: device.Arm) -> None:
    """WireError for settings that this box cannot run. Written so that a NaN fails each."""
    if len(order.seed) != 32:
        raise WireError("seed: 32 octets are needed")
    if not 1 <= order.pulses < 1 << 48:
        raise WireError("pulses: from 1 to 2^48 - 1")
    if not (len(order.intensities) == 3 and all(0 <= intensity <= INTENSITY_MAX for intensity in order.intensities)):
        raise WireError(f"intensities: three, from 0 to {INTENSITY_MAX} photons a pulse")
    is_positive = len(order.probabilities) == 3 and all(probability > 0 for probability in order.probabilities)
    if not (is_positive and abs(sum(order.probabilities) - 1) < 1e-6):
        raise WireError("probabilities: three, positive, with sum 1")
    if not 0 < order.key_basis_probability < 1:
        raise WireError("key_basis_probability: between 0 and 1")


async def run(options: argparse.Namespace) -> None:
    """Serve one end until told to stop. A box that went away ends the driver; whoever started it starts it again."""
    box = Box(*await asyncio.open_unix_connection(str(options.box), limit=1 << 24))
    clock_hz = 1e3 * (await box.ask("IDENTIFY"))["clock_khz"]
    driver = Driver(options.side, options.link, box, clock_hz)
    options.socket.unlink(missing_ok=True)
    before = os.umask(0o177)
    try:
        server = await asyncio.start_unix_server(driver.accept, str(options.socket))
    finally:
        os.umask(before)
    async with server:
        await driver.report()


def main() -> None:
    """Start a driver from the command line."""
    parser = argparse.ArgumentParser(description="qtrunk driver of one QB-1 box")
    parser.add_argument("--side", choices=(device.TRANSMITTER, device.RECEIVER), required=True)
    parser.add_argument("--socket", type=Path, required=True, help="where the node attaches")
    parser.add_argument("--box", type=Path, required=True, help="control socket of the box")
    parser.add_argument("--link", required=True)
    try:
        asyncio.run(run(parser.parse_args()))
    except KeyboardInterrupt:
        pass
    except (OSError, DeviceError) as error:
        raise SystemExit(f"driver: {error}") from error


if __name__ == "__main__":
    main()
