"""Round trips: get a key at one key manager, collect it by its ID at another, over and over on many connections.

A process of its own (`python -m qtrunk.plan.bench.roundtrips`), JSON in on its standard input, JSON out. Both keys are
compared: a key that differs ends the run.
"""

import asyncio
import json
import ssl
import sys
import time
from typing import cast

import msgspec
import uvloop


class End(msgspec.Struct, frozen=True):
    """One key manager and who asks there."""

    port: int
    certificate: str
    private_key: str
    ca_certificate: str
    path: str
    """Up to the method's name: `/api/v1/keys/bob`."""


class Task(msgspec.Struct, frozen=True):
    """What to do."""

    initiator: End
    target: End
    connections: int
    seconds: float


class _Key(msgspec.Struct):
    key_ID: str  # noqa: N815 (the standard's spelling)
    key: str


class _Container(msgspec.Struct):
    keys: list[_Key]


class _Client(asyncio.Protocol):
    def __init__(self) -> None:
        self._transport: asyncio.WriteTransport | None = None
        self._answer = b""
        self._waiting: asyncio.Future[bytes] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.WriteTransport, transport)

    def data_received(self, data: bytes) -> None:
        answer = self._answer = self._answer + data
        head_end = answer.find(b"\r\n\r\n")
        start = answer.find(b"Content-Length: ", 0, head_end) + 16
        if head_end < 0 or len(answer) < head_end + 4 + int(answer[start : answer.index(b"\r", start)]):
            return
        self._answer = b""
        assert self._waiting is not None
        if answer[9:12] != b"200":
            self._waiting.set_exception(RuntimeError(answer[head_end + 4 :].decode()))
        else:
            self._waiting.set_result(answer[head_end + 4 :])

    def connection_lost(self, error: Exception | None) -> None:
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_exception(error or ConnectionResetError())

    def ask(self, target: bytes) -> "asyncio.Future[bytes]":
        assert self._transport is not None
        self._waiting = asyncio.get_running_loop().create_future()
        self._transport.write(b"GET %s HTTP/1.1\r\nHost: localhost\r\n\r\n" % target)
        return self._waiting


async def _connect(end: End) -> _Client:
    context = ssl.create_default_context(cafile=end.ca_certificate)
    context.load_cert_chain(end.certificate, end.private_key)
    loop = asyncio.get_running_loop()
    _, client = await loop.create_connection(_Client, "localhost", end.port, ssl=context)
    return client


async def run(task: Task) -> tuple[int, float]:
    """Round trips done, and seconds that it took."""
    pairs = [(await _connect(task.initiator), await _connect(task.target)) for _ in range(task.connections)]
    get = f"{task.initiator.path}/enc_keys?number=1&size=256".encode()
    collect = f"{task.target.path}/dec_keys?key_ID=".encode()
    decoder = msgspec.json.Decoder(_Container)
    began_s = time.monotonic()
    until_s = began_s + task.seconds
    done = 0

    async def work(initiator: _Client, target: _Client) -> None:
        nonlocal done
        while time.monotonic() < until_s:
            (given,) = decoder.decode(await initiator.ask(get)).keys
            (found,) = decoder.decode(await target.ask(collect + given.key_ID.encode())).keys
            if (found.key_ID, found.key) != (given.key_ID, given.key):
                raise RuntimeError(f"key {given.key_ID} differs between the two ends")
            done += 1

    await asyncio.gather(*(work(*pair) for pair in pairs))
    return done, time.monotonic() - began_s


def main() -> None:
    """JSON of a Task on standard input; JSON of the outcome on standard output."""
    task = msgspec.json.decode(sys.stdin.buffer.read(), type=Task)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        done, seconds = runner.run(run(task))
    print(json.dumps({"done": done, "seconds": seconds}))


if __name__ == "__main__":
    main()
