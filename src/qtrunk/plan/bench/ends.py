"""The two ends of distillation as two processes that share a connection and nothing else: for benchmarks and replays.

Light is not part of it: `make` gives the machine of a block, with what its end's module saw. Several blocks may be
under way at once, as on a link that is always lit; each machine has one thread, as in a node.
"""

import contextlib
import multiprocessing
import os
import queue
import resource
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice

from qtrunk.base.errors import LabError
from qtrunk.distil.parties import BlockAlice, BlockBob, Destroy, Effect, Hold, Release, Report, Send

THREADS = 2
WAIT_S = 300.0
_HEADER = struct.Struct("<QI")
Make = Callable[[int], BlockAlice | BlockBob]


@dataclass
class Outcome:
    """What became of a block at this end."""

    block: int
    figures: dict[str, object] = field(default_factory=dict)
    """As the machine reported them."""
    sifted_bits: int = 0
    secret_bits: int = 0
    auth_bits: int = 0
    cause: str | None = None
    """Why it was destroyed."""
    why: str | None = None


class End:
    """One process's blocks over one connection."""

    def __init__(self, make: Make, connection: socket.socket) -> None:
        self._make = make
        self._connection = connection
        self._machines: dict[int, BlockAlice | BlockBob] = {}
        self._outcomes: dict[int, Outcome] = {}
        # One thread for a block, so that its messages are taken in order.
        self._threads = [ThreadPoolExecutor(1) for _ in range(THREADS)]
        self._ended: queue.SimpleQueue[Outcome | BaseException] = queue.SimpleQueue()
        # Both ends speak at once, and neither may wait for the other to listen.
        self._outbox: queue.SimpleQueue[tuple[bytes, ...]] = queue.SimpleQueue()
        self._sender = threading.Thread(target=self._send, daemon=True)
        self._sender.start()
        threading.Thread(target=self._hear, daemon=True).start()

    def begin(self, block: int) -> None:
        """A block's light is over: Bob speaks."""
        self._threads[block % THREADS].submit(self._step, block, None)

    def wait(self) -> Outcome:
        """The next block that is over; what went wrong otherwise is raised."""
        ended = self._ended.get(timeout=WAIT_S)
        if isinstance(ended, BaseException):
            raise ended
        return ended

    def finish(self) -> None:
        """Say what is still to be said."""
        self._outbox.put(())
        self._sender.join(WAIT_S)

    def _step(self, block: int, octets: bytes | None) -> None:
        try:
            machine = self._machines.get(block)
            if machine is None:
                machine = self._machines[block] = self._make(block)
                self._outcomes[block] = Outcome(block)
                if isinstance(machine, BlockBob):
                    self._do(block, machine.start())
            if octets is not None:
                self._do(block, machine.receive(octets))
        except BaseException as error:  # noqa: BLE001 (raised where somebody waits)
            self._ended.put(error)

    def _do(self, block: int, effects: list[Effect]) -> None:
        outcome = self._outcomes[block]
        for effect in effects:
            match effect:
                case Send():
                    self._outbox.put((_HEADER.pack(block, len(effect.octets)), effect.octets))
                case Hold():
                    outcome.sifted_bits = effect.key.sifted_bits
                    outcome.secret_bits = 8 * len(effect.key.material)
                    outcome.auth_bits = 8 * effect.key.auth_octets
                    effect.key.material.wipe()
                case Report():
                    outcome.figures |= effect.figures
                case Destroy():
                    outcome.cause, outcome.why = effect.cause, effect.why
                case _:
                    pass
        if any(isinstance(effect, Release | Destroy) for effect in effects):
            del self._machines[block]
            self._ended.put(self._outcomes.pop(block))

    def _hear(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                block, length = _HEADER.unpack(read_exactly(self._connection, _HEADER.size))
                self._threads[block % THREADS].submit(self._step, block, read_exactly(self._connection, length))

    def _send(self) -> None:
        with contextlib.suppress(OSError):
            while parts := self._outbox.get():
                for part in parts:
                    self._connection.sendall(part)


def read_exactly(connection: socket.socket, count: int) -> bytes:
    """The next `count` octets; ConnectionError where the other end closes before."""
    octets = bytearray(count)
    view, at = memoryview(octets), 0
    while at < count:
        got = connection.recv_into(view[at:])
        if not got:
            raise ConnectionError("the other end is gone")
        at += got
    return bytes(octets)


def resident_octets() -> int:
    """Memory of this process now."""
    with open("/proc/self/statm", "rb") as statm:  # noqa: PTH123 (a file of the kernel)
        return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def peak_octets() -> int:
    """The most memory that this process ever had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _alice(make: Callable[[], Make], port: int, blocks: int) -> None:
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        end = End(make(), connection)
        for _ in range(blocks):
            end.wait()
        end.finish()


def distil(alice: Callable[[], Make], bob: Make, blocks: list[int], under_way: int) -> Iterator[Outcome]:
    """Bob's outcomes of these blocks, as they come; `alice` is called in a process of her own and must be picklable.
    LabError where she fails.
    """
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        peer = multiprocessing.get_context("spawn").Process(target=_alice, args=(alice, port, len(blocks)), daemon=True)
        peer.start()
        server.settimeout(60.0)
        connection, _ = server.accept()
    with connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        end = End(bob, connection)
        waiting = iter(blocks)
        for block in islice(waiting, under_way):
            end.begin(block)
        for _ in blocks:
            yield end.wait()
            following = next(waiting, None)
            if following is not None:
                end.begin(following)
        end.finish()
        peer.join(30)
        if peer.exitcode != 0:
            raise LabError(f"Alice's process ended with {peer.exitcode}")
