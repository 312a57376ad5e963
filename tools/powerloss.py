"""Loss of power: every state that a disk may legally be in after it, rebuilt and opened again.

A preloaded recorder (tools/powerloss/recorder.cpp) writes down each write, truncation, creation, removal and flush that
two key managers make under work, SQLite's included, and when each answer was given. Then for many moments of that record
the disk is rebuilt as a loss of power may leave it: all that was flushed, and of what was not, everything, nothing, or
any sectors of 512 octets (a torn write keeps some of its sectors); of names created and removed, any number that were
not flushed with their directory, in order. The key managers open each such disk and are asked for everything they have:

    no key that was given before is given again, at either end; what the initiator was given and the target not, the
    target still gets, and the same; no octet that authenticated or encrypted a message is used again; ledgers add up.

    python tools/powerloss.py --states 2000 [--seed 1] [--json FILE]
"""

import argparse
import collections
import hashlib
import json
import os
import random
import shutil
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from torture import LINK, A, B, KeyManager

from qtrunk.base.errors import KeyExhausted, KeyNotFound, QtrunkError
from qtrunk.base.ids import KeyId
from qtrunk.base.wire import decode
from qtrunk.kms import journal as kms_journal
from qtrunk.kms.poolstate import HEAD_OCTETS
from qtrunk.relay import messages as wire
from qtrunk.stages import Role

SECTOR = 512
KEY_OCTETS = 32
AUTH_PORTION = 96
NO_MARK = bytes(16)
_HEAD = struct.Struct("<cI")
KEKS = {node: hashlib.sha256(node.encode()).digest() for node in (A, B)}


# ── the work that is recorded ───────────────────────────────────────────────────────────────────────────────────────


class Work:
    """Two key managers in one process, doing what they do all day; `acks` says what left them, and when."""

    def __init__(self, root: Path, seed: int) -> None:
        self.dice = random.Random(seed)
        self.ends = {node: KeyManager(node, root / node, KEKS[node]) for node in (A, B)}
        self.acks = (root / "acks").open("ab", buffering=0)
        self.block = 0
        self.keys: list[str] = []

    def ack(self, what: str, *rest: object) -> None:
        self.acks.write(json.dumps([what, *rest]).encode() + b"\n")

    def run(self, steps: int) -> None:
        for _ in range(steps):
            try:
                self.dice.choice(
                    (self.take, self.take, self.redeem, self.redeem, self.refill, self.authenticate, self.tick)
                )()
            except KeyExhausted:
                self.add_block()

    def take(self) -> None:
        keys = self.ends[A].do(["take", self.dice.randint(1, 3), KEY_OCTETS, NO_MARK])
        self.ack("given", A, [(key_id, _digest(octets)) for key_id, octets in keys])
        self.keys += [key_id for key_id, _ in keys]

    def redeem(self) -> None:
        if self.keys:
            chosen = [self.keys.pop(self.dice.randrange(len(self.keys)))]
            keys = self.ends[B].do(["redeem", chosen, NO_MARK])
            self.ack("given", B, [(key_id, _digest(octets)) for key_id, octets in keys])

    def refill(self) -> None:
        if self.ends[A].do(["level"])[0] < 2_000:
            self.carry(A, self.ends[A].do(["fill", HEAD_OCTETS + 8 * self.dice.randint(20, 120)]))

    def carry(self, node: str, effects: list) -> None:
        queue = collections.deque((node, effect) for effect in effects)
        while queue:
            sender, effect = queue.popleft()
            if effect[0] == "failed":
                raise KeyExhausted(effect[1])
            if effect[0] == "send":
                self.ack("sent", sender, _octets_used(effect[1]))
                receiver = B if sender == A else A
                queue.extend((receiver, answer) for answer in self.ends[receiver].do(["kx", effect[1]]))

    def add_block(self) -> None:
        self.block += 1
        octets = self.dice.randbytes(12_000)
        for what in ("hold", "release"):
            for node in (A, B):
                self.ends[node].do([what, self.block, octets][: 3 if what == "hold" else 2])

    def authenticate(self) -> None:
        stores = {node: end.store for node, end in self.ends.items()}
        portion = stores[A].reserve_auth(LINK, AUTH_PORTION, 1e-30, 1.0)
        self.ack("authenticated", A, portion.block, portion.offset)
        stores[B].take_auth(LINK, portion.block, portion.offset, AUTH_PORTION, 1e-30, 1.0)
        self.ack("authenticated", B, portion.block, portion.offset)

    def tick(self) -> None:
        node = self.dice.choice((A, B))
        self.carry(node, self.ends[node].do(["tick"]))
        if self.dice.random() < 0.3:
            self.ends[node].do(["checkpoint"])


def _digest(octets: bytes) -> str:
    return hashlib.sha256(octets).hexdigest()


def _octets_used(message: bytes) -> list[tuple[int, int, int]]:
    """The pieces of link key that a message shows to have been spent."""
    sealed = decode(message, wire.Sealed)
    body = decode(sealed.body, wire.KxMessage)
    return [*sealed.auth, *(body.pad if isinstance(body, wire.KeyRelay) else [])]


# ── the disk ────────────────────────────────────────────────────────────────────────────────────────────────────────


class Inode:
    """One file: what is on the disk for sure, and what was asked for since."""

    def __init__(self) -> None:
        self.durable = bytearray()
        self.pending: list[tuple[str, int, bytes]] = []

    def flush(self) -> None:
        for change in self.pending:
            _apply(self.durable, change)
        self.pending.clear()

    def after_crash(self, dice: random.Random, mode: str) -> bytes:
        octets = bytearray(self.durable)
        if mode == "flushed":
            return bytes(octets)
        for change in self.pending:
            if mode == "all":
                _apply(octets, change)
            elif change[0] == "w":
                for part in _sectors(change):
                    if dice.random() < 0.5:
                        _apply(octets, part)
            elif dice.random() < 0.5:
                _apply(octets, change)
        return bytes(octets)


def _apply(octets: bytearray, change: tuple[str, int, bytes]) -> None:
    op, place, data = change
    if op == "w":
        octets.extend(bytes(max(0, place - len(octets))))
        octets[place : place + len(data)] = data
    elif op == "t":
        del octets[place:]
        octets.extend(bytes(max(0, place - len(octets))))
    else:
        octets.extend(bytes(max(0, place - len(octets))))


def _sectors(change: tuple[str, int, bytes]) -> list[tuple[str, int, bytes]]:
    _, place, data = change
    parts, at = [], 0
    while at < len(data):
        end = min(len(data), at + SECTOR - (place + at) % SECTOR)
        parts.append(("w", place + at, data[at:end]))
        at = end
    return parts


class Disk:
    """The file system as the record makes it, step by step."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.names: dict[str, Inode] = {}
        self.durable_names: dict[str, Inode] = {}
        self.pending_names: list[tuple[str, str, str, Inode | None]] = []
        self.acks = bytearray()

    def do(self, op: str, path: str, other: str, place: int, size: int, data: bytes) -> None:
        name = os.path.relpath(path, self.root)
        if name == "acks":
            self.acks += data
            return
        if name.endswith("-shm"):
            return  # shared memory: SQLite makes it anew
        match op:
            case "c":
                self._name("set", name, "", Inode())
            case "u":
                self._name("del", name, "", None)
            case "r":
                self._name("move", name, os.path.relpath(other, self.root), self.names[name])
            case "l":
                self._name("set", os.path.relpath(other, self.root), "", self.names[name])
            case "s" if name in self.names:
                self.names[name].flush()
            case "s":
                self._flush_names(name)
            case "w":
                self.names[name].pending.append(("w", place, data))
            case "t" | "a":
                self.names[name].pending.append((op, size if op == "t" else place + size, b""))

    def _name(self, what: str, name: str, other: str, inode: Inode | None) -> None:
        change = (what, name, other, inode)
        _rename(self.names, change)
        self.pending_names.append(change)

    def _flush_names(self, directory: str) -> None:
        left = []
        for change in self.pending_names:
            if Path(change[1]).parent == Path(directory):
                _rename(self.durable_names, change)
            else:
                left.append(change)
        self.pending_names = left

    def after_crash(self, dice: random.Random, mode: str, to: Path) -> None:
        names = dict(self.durable_names)
        count = {"flushed": 0, "all": len(self.pending_names)}.get(mode, dice.randint(0, len(self.pending_names)))
        for change in self.pending_names[:count]:
            _rename(names, change)
        for name, inode in names.items():
            path = to / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(inode.after_crash(dice, mode))
            path.chmod(0o600)


def _rename(names: dict[str, Inode], change: tuple[str, str, str, Inode | None]) -> None:
    what, name, other, inode = change
    if what == "set":
        assert inode is not None
        names[name] = inode
    elif name in names:
        moved = names.pop(name)
        if what == "move":
            names[other] = moved


def operations(log: Path) -> list[tuple[str, str, str, int, int, bytes]]:
    octets, at, found = log.read_bytes(), 0, []
    while at < len(octets):
        op, length = _HEAD.unpack_from(octets, at)
        at += _HEAD.size
        path = octets[at : at + length].decode()
        at += length
        (length,) = struct.unpack_from("<I", octets, at)
        at += 4
        other = octets[at : at + length].decode()
        at += length
        place, size = struct.unpack_from("<QQ", octets, at)
        at += 16
        data = octets[at : at + size] if op == b"w" else b""
        at += len(data)
        found.append((op.decode(), path, other, place, size, data))
    return found


# ── what must hold on every disk ────────────────────────────────────────────────────────────────────────────────────


def check(root: Path, acks: bytes) -> None:
    """Open both stores and ask them for everything; AssertionError where something that left comes again."""
    given: dict[str, dict[str, str]] = {A: {}, B: {}}
    authenticated: dict[str, set[tuple[int, int]]] = {A: set(), B: set()}
    used: dict[str, list[tuple[int, int, int]]] = {A: [], B: []}
    for line in acks.splitlines():
        what, node, *rest = json.loads(line)
        if what == "given":
            given[node].update(dict(rest[0]))
        elif what == "authenticated":
            authenticated[node].add((rest[0], rest[1]))
        else:
            used[node] += [tuple(piece) for piece in rest[0]]
    ends = {node: KeyManager(node, root / node, KEKS[node]) for node in (A, B)}
    try:
        _check_keys(ends, given)
        for node, role in ((A, Role.ALICE), (B, Role.BOB)):
            _check_link(ends[node], role, used[node])
        _check_authentication(ends, authenticated)
        for node in (A, B):
            pool, link = ends[node].do(["ledger"])
            assert link["unaccounted"] == 0, link
            assert not pool or pool["unaccounted"] == 0, pool
    finally:
        for end in ends.values():
            end.store.close()


def _check_keys(ends: dict[str, KeyManager], given: dict[str, dict[str, str]]) -> None:
    for key_id, digest in given[A].items():
        try:
            ((_, octets),) = ends[B].do(["redeem", [key_id], NO_MARK])
        except KeyNotFound:
            # Collected, by the record or by an answer that never left; nothing else may have become of it.
            record_ = ends[B].store.pools.receipt(KeyId(key_id))
            assert record_ is not None, f"{key_id}: its segment is gone at the target"
            assert record_["stored"]["state"] == "delivered", record_
            continue
        assert key_id not in given[B], f"{key_id} was given to the target before"
        assert _digest(octets) == digest, f"{key_id} differs"
    digests = set(given[A].values())
    while True:
        try:
            keys = ends[A].do(["take", 1, KEY_OCTETS, NO_MARK])
        except KeyExhausted:
            break
        for key_id, octets in keys:
            assert _digest(octets) not in digests, f"{key_id} was given to the initiator before"
            assert key_id not in given[A]


def _check_link(end: KeyManager, role: Role, used: list[tuple[int, int, int]]) -> None:
    taken: dict[int, list[tuple[int, int]]] = {}
    for block, offset, length in used:
        taken.setdefault(block, []).append((offset, offset + length))
    try:
        own = end.store.level(LINK).own_octets
        pieces = end.store.allocate(LINK, role, own).slices if own else ()
    except QtrunkError as error:
        raise AssertionError(f"{end.node}: {error}") from error
    for piece in pieces:
        for first, last in taken.get(piece.block, ()):
            assert piece.end <= first or last <= piece.offset, f"{piece} was sent before"


def _check_authentication(ends: dict[str, KeyManager], authenticated: dict[str, set[tuple[int, int]]]) -> None:
    for block, offset in authenticated[B]:
        try:
            ends[B].store.take_auth(LINK, block, offset, AUTH_PORTION, 1e-30, 1.0)
        except QtrunkError:
            continue
        raise AssertionError(f"authentication key {block}, {offset} was used before")
    while True:
        try:
            portion = ends[A].store.reserve_auth(LINK, AUTH_PORTION, 1e-30, 1.0)
        except KeyExhausted:
            return
        assert (portion.block, portion.offset) not in authenticated[A]


# ── all together ────────────────────────────────────────────────────────────────────────────────────────────────────


def plant(bug: str) -> None:
    """Take a flush out of the product in this process, to see that the study finds it."""
    if bug == "no flush of the consume journal":
        os.fdatasync = lambda _handle: None
    elif bug == "no flush of the database":
        connect = kms_journal._connect

        def without(path: Path):
            db = connect(path)
            db.execute("PRAGMA synchronous = OFF")
            return db

        kms_journal._connect = without


def record(directory: Path, seed: int, steps: int, bug: str) -> list[tuple[str, str, str, int, int, bytes]]:
    """Run the work under the recorder; what it did to the disk."""
    here = Path(__file__).parent
    library, root, log = directory / "recorder.so", directory / "root", directory / "log"
    root.mkdir()
    subprocess.run(
        ["g++", "-std=c++17", "-O1", "-shared", "-fPIC", "-o", library, here / "powerloss" / "recorder.cpp", "-ldl"],
        check=True,
    )
    environment = {**os.environ, "LD_PRELOAD": str(library), "POWERLOSS_ROOT": str(root), "POWERLOSS_LOG": str(log)}
    command = [sys.executable, __file__, "--work", str(root), "--seed", str(seed), "--steps", str(steps)]
    command += ["--plant", bug] if bug else []
    subprocess.run(command, env=environment, check=True)
    return operations(log)


def study(directory: Path, seed: int, steps: int, states: int, bug: str = "") -> dict[str, object]:
    """Record, then rebuild and check so many disks."""
    done = record(directory, seed, steps, bug)
    dice = random.Random(seed)
    moments = collections.Counter(dice.randrange(1, len(done) + 1) for _ in range(states))
    disk, modes = Disk(directory / "root"), collections.Counter()
    for number, operation in enumerate(done, start=1):
        disk.do(*operation)
        for _ in range(moments.get(number, 0)):
            mode = dice.choice(("flushed", "all", "torn", "torn", "torn"))
            place = directory / "state"
            disk.after_crash(dice, mode, place)
            try:
                if (place / A).exists() and (place / B).exists():
                    check(place, bytes(disk.acks))
            except Exception as error:
                raise AssertionError(f"after operation {number} of {len(done)}, mode {mode}: {error}") from error
            shutil.rmtree(place, ignore_errors=True)
            modes[mode] += 1
    kinds = collections.Counter(operation[0] for operation in done)
    names = {"w": "writes", "s": "flushes", "c": "creations", "u": "removals", "t": "truncations", "a": "allocations"}
    return {
        "disks rebuilt": states,
        "by what was kept of unflushed changes": dict(sorted(modes.items())),
        "operations recorded": len(done),
        **{name: kinds[kind] for kind, name in names.items()},
        "answers given meanwhile": bytes(disk.acks).count(b"\n"),
        "violations": 0,
    }


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--states", type=int, default=500)
    options.add_argument("--steps", type=int, default=400)
    options.add_argument("--seed", type=int, default=1)
    options.add_argument("--json", type=Path)
    options.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    options.add_argument("--plant", default="", help=argparse.SUPPRESS)
    chosen = options.parse_args()
    if chosen.work:
        plant(chosen.plant)
        Work(chosen.work, chosen.seed).run(chosen.steps)
        return 0
    started = time.monotonic()
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as directory:
        result = study(Path(directory), chosen.seed, chosen.steps, chosen.states)
    result["seconds"] = round(time.monotonic() - started, 1)
    text = json.dumps(result, indent=2)
    print(text)
    if chosen.json:
        chosen.json.write_text(text + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
