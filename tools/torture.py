"""Kill -9 torture of two key managers: real processes on a real disk, killed at every effect and at random moments.

Two processes hold the two ends of a link, each with the production store and relay machine. This program is the network
between them, the distillation that feeds them, and their applications; it kills one or the other over and over: from
outside at a random moment, or at a named failure point, which is one call of the operating system (before or after it):
every write, flush, truncation, removal and database commit that the store makes is one. What every application was ever
given is kept here and compared:

    no key is given twice to the same role; both ends of a key ID are the same octets; every octet is accounted for;
    a client that names its request gets what a crash kept from it.

    python tools/torture.py --kills 1000 [--seed 1] [--json FILE]
"""

import argparse
import collections
import gc
import hashlib
import json
import os
import random
import shutil
import signal
import socket
import sqlite3
import sys
import tempfile
import time
from pathlib import Path

import msgspec

from qtrunk.base.errors import KeyExhausted, QtrunkError
from qtrunk.base.ids import KeyId, LinkId, NodeId, SaeId
from qtrunk.base.secret import Secret
from qtrunk.kms import journal as kms_journal
from qtrunk.kms.consume import COLLECTED, INITIATED
from qtrunk.kms.poolstate import HEAD_OCTETS
from qtrunk.kms.store import KeyStore
from qtrunk.node.world import SystemClock, SystemRandom
from qtrunk.relay.kx import Failed, Kx, Report, SendKx, Supplied
from qtrunk.stages import Epsilon, QkdKey
from qtrunk.topology import Node, Sae, Topology, trunk

A, B, LINK = NodeId("a"), NodeId("b"), LinkId("a-b")
FROM, TO = SaeId("sae-a"), SaeId("sae-b")
BLOCK_OCTETS, AUTH_OCTETS = 60_000, 2_000
POINTS = ("pwrite", "fdatasync", "fsync", "unlink", "ftruncate", "posix_fallocate", "open", "commit")
PATIENCE = 12
"""Steps that a process may live on without reaching its failure point."""
KEYS_MAX = 128
"""Of one request."""
WINDOW_S = 30.0
"""Retries come at once after a restart, however slow the machine."""


def topology() -> Topology:
    row = trunk("torture", [Node(id=A), Node(id=B)], [(10, 3)])
    return Topology(name="torture", nodes=row.nodes, links=row.links, saes=(Sae(id=FROM, node=A), Sae(id=TO, node=B)))


# ── the process that gets killed ────────────────────────────────────────────────────────────────────────────────────


class FailurePoint:
    """Kills this very process at the n-th call of one kind, before or after it."""

    def __init__(self) -> None:
        self.kind, self.left, self.is_before = "", 0, True
        for name in POINTS[:-1]:
            setattr(os, name, self._wrapped(name, getattr(os, name)))
        failure_point = self

        class Connection(sqlite3.Connection):
            def execute(self, sql, *parameters):
                if sql != "COMMIT":
                    return super().execute(sql, *parameters)
                failure_point.reached("commit", True)
                done = super().execute(sql, *parameters)
                failure_point.reached("commit", False)
                return done

        connect = sqlite3.connect
        kms_journal.sqlite3.connect = lambda *args, **options: connect(*args, **options, factory=Connection)

    def _wrapped(self, name, call):
        def wrapped(*args, **options):
            self.reached(name, True)
            done = call(*args, **options)
            self.reached(name, False)
            return done

        return wrapped

    def reached(self, kind: str, is_before: bool) -> None:
        if kind == self.kind and is_before is self.is_before:
            self.left -= 1
            if self.left <= 0:
                os.kill(os.getpid(), signal.SIGKILL)


class KeyManager:
    """One end: the production store and relay machine, told what to do over a socket."""

    def __init__(self, node: NodeId, directory: Path, kek: bytes) -> None:
        self.node = node
        clock = SystemClock()
        self.store = KeyStore.open(directory, node, Secret(kek), clock, retry_window_s=WINDOW_S)
        self.machine = Kx(node, topology(), self.store, SystemRandom(None), clock)
        self.machine.link_up(LINK)

    def do(self, command: list) -> object:  # noqa: C901 (one case for each command)
        match command:
            case ["kx", octets]:
                return self._effects(self.machine.receive(LINK, octets))
            case ["fill", octets]:
                return self._effects(self.machine.fill(FROM, TO, octets)[1])
            case ["take", number, octets, mark]:
                keys = self.store.pools.take(FROM, TO, number, octets, mark)
                self.store.pools.flush()
                return [(key.key_id, bytes(key.material.reveal())) for key in keys]
            case ["redeem", ids, mark]:
                keys, strange = self.store.pools.redeem(TO, FROM, [KeyId(key_id) for key_id in ids], mark)
                assert not strange
                self.store.pools.flush()
                return [(key.key_id, bytes(key.material.reveal())) for key in keys]
            case ["redeem each", ids]:
                together = self.store.pools.redeem_each(TO, FROM, [KeyId(key_id) for key_id in ids])
                if together is None:
                    return None
                self.store.pools.flush()
                return [(key.key_id, bytes(key.material.reveal())) for key in together]
            case ["hold", number, octets]:
                self.store.hold(_block(number, octets))
            case ["release", number]:
                self.store.release(LINK, number)
            case ["destroy", number]:
                self.store.destroy(LINK, number, "crash")
            case ["blocks"]:
                return [self.store.last_block(LINK), self.store.pending(LINK)]
            case ["level"]:
                level = self.store.level(LINK)
                return [self.store.pools.octets(FROM, TO), level.own_octets, level.peer_octets]
            case ["tick"]:
                self.store.pools.tick()
                self.store.expire(time.time())
                return self._effects(self.machine.tick())
            case ["checkpoint"]:
                self.store.pools.checkpoint()
            case ["holding"]:
                return self.store.pools.holding(-1.0).get((FROM, TO), [])
            case ["compare", held]:
                return self.store.pools.compare(FROM, TO, held, 0.0)
            case ["void", number, unit]:
                self.store.pools.void(FROM, TO, number, unit)
            case ["ledger"]:
                side = INITIATED if self.node == A else COLLECTED
                pool = self.store.pools.ledgers().get((side, FROM, TO))
                link = self.store.ledger(LINK)
                return [
                    msgspec.to_builtins(pool) | {"unaccounted": pool.unaccounted} if pool else {},
                    msgspec.to_builtins(link) | {"unaccounted": link.unaccounted},
                ]
            case _:
                raise ValueError(command)
        return None

    @staticmethod
    def _effects(effects: list) -> list:
        told = []
        for effect in effects:
            match effect:
                case SendKx():
                    told.append(["send", effect.octets])
                case Supplied():
                    told.append(["filled"])
                case Failed():
                    told.append(["failed", str(effect.error)])
                case Report():
                    told.append(["report", effect.alarm, effect.text])
        return told


def _block(number: int, octets: bytes) -> QkdKey:
    return QkdKey(
        link=LINK,
        block=number,
        material=Secret(octets),
        auth_octets=AUTH_OCTETS,
        epsilon=Epsilon(secret=1e-10, correct=1e-15, authentic=1e-20),
        sifted_bits=8 * len(octets),
        leak_bits=0,
        qber_key=0.01,
        qber_test=0.01,
        proof="torture",
        authentication="wegman-carter",
        made_unix_s=time.time(),
    )


def serve(connection: socket.socket, node: NodeId, directory: Path, kek: bytes, first_point: tuple | None) -> None:
    """The life of one process, which ends by being killed."""
    point = FailurePoint()
    if first_point:
        point.kind, point.left, point.is_before = first_point
    manager = KeyManager(node, directory, kek)
    stream = connection.makefile("rwb")
    _send(stream, ["up"])
    while (command := _receive(stream)) is not None:
        if command[0] == "arm":
            _, point.kind, point.left, point.is_before = command
            continue
        try:
            answer = ["ok", manager.do(command)]
        except KeyExhausted as error:
            answer = ["exhausted", str(error)]
        except QtrunkError as error:
            answer = ["error", type(error).__name__, str(error)]
        _send(stream, answer)
        manager.store.pools.note_answered(manager.store.pools.durable)


def _send(stream, message) -> None:
    octets = msgspec.msgpack.encode(message)
    stream.write(len(octets).to_bytes(4, "big") + octets)
    stream.flush()


def _receive(stream):
    head = stream.read(4)
    return msgspec.msgpack.decode(stream.read(int.from_bytes(head, "big"))) if len(head) == 4 else None


def get_ready() -> None:
    """What every process does for the first time is done once here, before they are forked; and nothing makes them touch
    all pages that they share with this one. That is half of what a kill costs."""
    with tempfile.TemporaryDirectory(prefix="torture") as place:
        for _ in range(2):
            manager = KeyManager(A, Path(place) / A, bytes(32))
            manager.do(["hold", manager.store.last_block(LINK) + 1, bytes(BLOCK_OCTETS)])
            manager.do(["tick"])
            manager.store.close()
    gc.collect()
    gc.freeze()
    gc.disable()


# ── who kills it ────────────────────────────────────────────────────────────────────────────────────────────────────


class DiedError(Exception):
    """The process was killed before it answered."""


class Process:
    """One end as seen from here; started anew whenever it was killed."""

    def __init__(self, node: NodeId, directory: Path, dice: random.Random) -> None:
        self.node, self._directory, self._dice = node, directory / node, dice
        self._kek = hashlib.sha256(node.encode()).digest()
        self.kills: collections.Counter[str] = collections.Counter()
        self._pid = 0
        self.armed = ""
        self.waited = 0

    def start(self) -> None:
        """Bring it up, however often it is killed on the way."""
        while True:
            point = None
            if self._dice.random() < 0.2:
                point = (self._dice.choice(POINTS), self._dice.randint(1, 8), self._dice.random() < 0.5)
                self.armed = f"{'before' if point[2] else 'after'} {point[0]} while starting"
            self._spawn(point)
            try:
                if _receive(self._stream) == ["up"]:
                    return
            except (ConnectionError, EOFError):
                pass
            self._note_death()

    def _spawn(self, point: tuple | None) -> None:
        ours, theirs = socket.socketpair()
        self._pid = os.fork()
        if not self._pid:
            ours.close()
            try:
                serve(theirs, self.node, self._directory, self._kek, point)
            except BaseException:  # noqa: BLE001 (a fault of the product must be seen, and end the run)
                import traceback

                traceback.print_exc()
                os._exit(70)
            os._exit(0)
        theirs.close()
        self._socket, self._stream = ours, ours.makefile("rwb")

    def do(self, *command: object) -> object:
        """The answer; DiedError when it was killed first; KeyExhausted or RuntimeError as it says."""
        answer = None
        try:
            _send(self._stream, list(command))
            if self.armed == "outside":
                time.sleep(self._dice.random() * 0.004)
                os.kill(self._pid, signal.SIGKILL)
            answer = _receive(self._stream)
        except (ConnectionError, EOFError):
            pass
        if answer is None or self.armed == "outside":
            # Killed while the answer was on its way: it may have come in time, like over a real network.
            self._note_death()
            self.start()
            if answer is None:
                raise DiedError
        match answer:
            case ["ok", value]:
                return value
            case ["exhausted", text]:
                raise KeyExhausted(text)
            case _:
                raise RuntimeError(f"{self.node}: {command[0]}: {answer}")

    def arm(self) -> None:
        """Choose how it dies next: at once from outside where a failure point was not reached for long."""
        was_waiting, self.waited = self.waited > PATIENCE, 0
        if was_waiting or self._dice.random() < 0.4:
            self.armed = "outside"
            return
        kind, is_before = self._dice.choice(POINTS), self._dice.random() < 0.5
        _send(self._stream, ["arm", kind, self._dice.randint(1, 6), is_before])
        self.armed = f"{'before' if is_before else 'after'} {kind}"

    def _note_death(self) -> None:
        self._stream.close()
        self._socket.close()
        _, status = os.waitpid(self._pid, 0)
        if not os.WIFSIGNALED(status) or os.WTERMSIG(status) != signal.SIGKILL:
            raise RuntimeError(f"{self.node} ended by itself: status {status}")
        self.kills[self.armed or "outside"] += 1
        self.armed = ""

    def stop(self) -> None:
        # The other process has a copy of this socket: closing it is no sign.
        os.kill(self._pid, signal.SIGKILL)
        self._stream.close()
        self._socket.close()
        os.waitpid(self._pid, 0)


class Torture:
    """Network, distillation and applications; and the record of what anyone was ever given."""

    def __init__(self, directory: Path, seed: int) -> None:
        self.dice = random.Random(seed)
        self.ends = {node: Process(node, directory, self.dice) for node in (A, B)}
        self.given: dict[NodeId, dict[bytes, str]] = {A: {}, B: {}}
        self.keys: dict[str, bytes] = {}
        """What the initiator was given and the target has not come for."""
        self.count: collections.Counter[str] = collections.Counter()
        self.block = 0
        self.is_stopping = False
        """Set by SIGTERM: what was done so far is checked and counted."""

    @property
    def kills(self) -> int:
        return sum(sum(end.kills.values()) for end in self.ends.values())

    def run(self, kills: int) -> None:
        for end in self.ends.values():
            end.start()
        self.settle_blocks()
        while self.kills < kills and not self.is_stopping:
            end = self.ends[self.dice.choice((A, B))]
            if not end.armed or end.waited > PATIENCE:
                end.arm()
            end.waited += 1
            self.dice.choice((self.take, self.take, self.take, self.redeem, self.redeem, self.tick, self.refill))()
        for end in self.ends.values():
            if end.armed == "outside":
                end.armed = ""
        self.drain()
        self.check()

    # ── applications ────────────────────────────────────────────────────────────────────────────────────────────────

    def take(self) -> None:
        number, octets = self.dice.randint(1, 6), self.dice.choice((16, 32, 32, 32, 48))
        names_its_request = self.dice.random() < 0.7
        mark = self.dice.randbytes(16) if names_its_request else bytes(16)
        try:
            keys = self.ends[A].do("take", number, octets, mark)
        except KeyExhausted:
            self.refill()
            return
        except DiedError:
            if not names_its_request:
                self.count["takes whose answer was lost, not asked again"] += 1
                return
            keys = self.again(A, "take", number, octets, mark)
            if keys is None:
                return
            self.count["takes answered at the second try"] += 1
        self.count["takes"] += 1
        for key_id, octets_ in keys:
            self.note(A, key_id, octets_)
            self.keys[key_id] = octets_

    def redeem(self) -> None:
        if not self.keys:
            return
        # More at once the more there are: a backlog makes every later step slower, and nothing harder.
        most = max(4, len(self.keys) // 8)
        ids = self.dice.sample(list(self.keys), min(len(self.keys), self.dice.randint(1, most), KEYS_MAX))
        names_its_request = self.dice.random() < 0.7
        mark = self.dice.randbytes(16) if names_its_request else bytes(16)
        wanted = [self.keys.pop(key_id) for key_id in ids]
        keys = None
        try:
            if not names_its_request:
                # As requests that came together; those of several sizes are answered one by one.
                keys = self.ends[B].do("redeem each", ids)
                self.count["collections answered together"] += keys is not None
            if keys is None:
                keys = self.ends[B].do("redeem", ids, mark)
        except DiedError:
            if not names_its_request:
                self.count["collections whose answer was lost, not asked again"] += 1
                return
            keys = self.again(B, "redeem", ids, mark)
            assert keys is not None
            self.count["collections answered at the second try"] += 1
        self.count["collections"] += 1
        assert [key_id for key_id, _ in keys] == ids
        for (key_id, octets), same in zip(keys, wanted, strict=True):
            if octets != same:
                raise AssertionError(f"key {key_id} differs between the two ends")
            self.note(B, key_id, octets)

    def again(self, node: NodeId, *command: object) -> list | None:
        """The same request until it is answered."""
        while True:
            try:
                return self.ends[node].do(*command)
            except DiedError:
                continue
            except KeyExhausted:
                return None

    def note(self, node: NodeId, key_id: str, octets: bytes) -> None:
        digest = hashlib.sha256(octets).digest()
        if digest in self.given[node]:
            raise AssertionError(f"GIVEN TWICE at {node}: {key_id} and {self.given[node][digest]}")
        self.given[node][digest] = key_id

    # ── network and distillation ────────────────────────────────────────────────────────────────────────────────────

    def refill(self) -> None:
        """A segment over the link, and blocks of link key where that runs low."""
        try:
            pool, own, _ = self.ends[A].do("level")
            if own < 8_000:
                self.add_block()
            if pool < 4_000:
                self.carry(A, self.ends[A].do("fill", HEAD_OCTETS + 8 * self.dice.randint(20, 400)))
        except (DiedError, KeyExhausted):
            self.settle_blocks()

    def carry(self, node: NodeId, effects: list) -> None:
        """Messages to the other end and back, some of them doubled; killing an end loses what was on its way."""
        queue = collections.deque((node, effect) for effect in effects)
        while queue:
            sender, effect = queue.popleft()
            if effect[0] == "report":
                self.count[f"reports {effect[1]}"] += 1
            if effect[0] != "send":
                continue
            receiver = B if sender == A else A
            for _ in range(2 if self.dice.random() < 0.05 else 1):
                try:
                    queue.extend((receiver, answer) for answer in self.ends[receiver].do("kx", effect[1]))
                except DiedError:
                    self.count["messages that died with their receiver"] += 1

    def add_block(self) -> None:
        self.block += 1
        octets = self.dice.randbytes(BLOCK_OCTETS)
        for node in (A, B):
            self.ends[node].do("hold", self.block, octets)
        for node in (A, B):
            self.ends[node].do("release", self.block)

    def settle_blocks(self) -> None:
        """After a crash: what both ends hold is released, what one holds is destroyed; segments are compared."""
        while True:
            try:
                (last_a, pending_a), (last_b, pending_b) = (self.ends[node].do("blocks") for node in (A, B))
                self.block = max(self.block, last_a, last_b)
                for number in sorted({*pending_a, *pending_b}):
                    held = {A: number in pending_a or number <= last_a, B: number in pending_b or number <= last_b}
                    for node in (A, B):
                        if all(held.values()):
                            self.ends[node].do("release", number)
                        elif held[node]:
                            self.ends[node].do("destroy", number)
                voids = self.ends[A].do("compare", self.ends[B].do("holding"))
                for number, unit in voids:
                    self.ends[B].do("void", number, unit)
                return
            except DiedError:
                continue

    def tick(self) -> None:
        try:
            node = self.dice.choice((A, B))
            self.carry(node, self.ends[node].do("tick"))
            if self.dice.random() < 0.1:
                self.ends[node].do("checkpoint")
        except DiedError:
            self.settle_blocks()

    # ── the end ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def drain(self) -> None:
        """Everything that is left is given out and collected."""
        self.settle_blocks()
        while self.keys:
            self.redeem()

    def check(self) -> None:
        ledgers = {}
        for node in (A, B):
            while node not in ledgers:
                try:
                    ledgers[node] = self.ends[node].do("ledger")
                except DiedError:
                    continue
        for node, (pool, link) in ledgers.items():
            assert pool["unaccounted"] == 0, (node, pool)
            assert link["unaccounted"] == 0, (node, link)
        self.ledgers = ledgers
        for end in self.ends.values():
            end.stop()


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--kills", type=int, default=1000)
    options.add_argument("--seed", type=int, default=1)
    options.add_argument("--directory", type=Path)
    options.add_argument("--json", type=Path)
    chosen = options.parse_args()
    directory = chosen.directory or Path(tempfile.mkdtemp(prefix="torture"))
    started = time.monotonic()
    get_ready()
    torture = Torture(directory, chosen.seed)
    signal.signal(signal.SIGTERM, lambda *_: setattr(torture, "is_stopping", True))
    torture.run(chosen.kills)
    shutil.rmtree(directory)
    by_point = sum((end.kills for end in torture.ends.values()), collections.Counter())
    result = {
        "kills": torture.kills,
        "seconds": round(time.monotonic() - started, 1),
        "given to initiators": len(torture.given[A]),
        "given to targets": len(torture.given[B]),
        "given twice": 0,
        "differing between the ends": 0,
        "octets unaccounted for": 0,
        "counts": dict(sorted(torture.count.items())),
        "kills by point": dict(sorted(by_point.items())),
        "pool of the initiator, octets": torture.ledgers[A][0],
        "pool of the target, octets": torture.ledgers[B][0],
    }
    text = json.dumps(result, indent=2)
    print(text)
    if chosen.json:
        chosen.json.write_text(text + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
