"""How many requests a second the key interface answers, with a supply that costs nothing: what HTTP, TLS and the wire
layer cost by themselves.

    python tools/key_api_bench.py [--seconds 5] [--runs 3] [--connections 32] [--profile FILE]

Server and load each get a core of their own. Two figures: answers a second as the load saw them, and answers per second
of CPU time of the server, which says the same on a busy machine.
"""

import argparse
import asyncio
import cProfile
import multiprocessing
import os
import sys
import tempfile
import time
from pathlib import Path

import uvloop

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "api"))
from api_kit import FakeSupply, Pki

from qtrunk.api.etsi014 import Etsi014
from qtrunk.api.front import FrontContext, FrontServer
from qtrunk.api.https import HttpsServer, server_context
from qtrunk.api.lots import KeyLots
from qtrunk.base.ids import KeyId
from qtrunk.base.ports import SuppliedKey, SuppliedKeys
from qtrunk.base.secret import Secret
from qtrunk.plan.bench.load import Load, run_apart


class QuickSupply(FakeSupply):
    """One key for everybody."""

    async def initiate(self, initiator, targets, number, key_bits, **_more):
        return [
            SuppliedKey(key_id=KeyId("7a8a2fd6-2d2c-4a0e-8f0a-3d1f5f0b9c11"), material=Secret(bytes(key_bits // 8)))
            for _ in range(number)
        ]


class WaitingSupply(QuickSupply):
    """As a store does that makes all requests of one moment durable together: each waits for the next commit."""

    commit = None

    async def initiate(self, initiator, targets, number, key_bits, **_more):
        if self.commit is None:
            loop = asyncio.get_running_loop()
            self.commit = loop.create_future()
            loop.call_later(0.0003, self._committed)
        # Every waiter needs a future of its own: who is cancelled must not cancel the others.
        await asyncio.shield(self.commit)
        return await super().initiate(initiator, targets, number, key_bits)

    def _committed(self):
        self.commit.set_result(None)
        self.commit = None


class LotSupply(WaitingSupply):
    """Behind the compiled server, as a node's key port has it: equal requests that come together are one lot."""

    async def initiate_same(self, initiator, target, number, key_bits, count):
        await asyncio.sleep(0.0003)
        keys = number * count
        return SuppliedKeys(bytes(16 * keys), Secret(bytes(keys * key_bits // 8)), key_bits // 8)


class Bare(asyncio.Protocol):
    """The floor: TLS and the event loop with nothing on top."""

    ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 120\r\n\r\n" + b"x" * 120

    def connection_made(self, transport):
        self.transport = transport

    def data_received(self, data):
        self.transport.write(self.ANSWER)


def serve(kme, supply, port, core, profile):
    os.sched_setaffinity(0, {core})
    profiler = cProfile.Profile() if profile else None

    async def served():
        context = server_context(kme.certificate, kme.private_key, kme.ca_certificate)
        if supply is None:
            bare = await asyncio.get_running_loop().create_server(Bare, "127.0.0.1", 0, ssl=context)
            port.value = bare.sockets[0].getsockname()[1]
        else:
            edition1 = Etsi014(supply, supply.sae_of)
            if isinstance(supply, LotSupply):
                own = FrontContext(kme.certificate, kme.private_key, kme.ca_certificate)
                server = FrontServer(edition1.handle, own, lots=KeyLots(edition1, supply, lambda: True))
            else:
                server = HttpsServer(edition1.handle, context)
            port.value = await server.start("127.0.0.1", 0)
        if profiler is not None:
            profiler.enable()
            await asyncio.sleep(5)
            profiler.disable()
            profiler.dump_stats(profile)
        await asyncio.Event().wait()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(served())


def cpu_s(pid):
    parts = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(parts[11]) + int(parts[12])) / os.sysconf("SC_CLK_TCK")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--connections", type=int, default=32)
    parser.add_argument("--runs", type=int, default=3, help="the best one counts: others share the machine")
    parser.add_argument("--profile")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        pki = Pki(Path(place) / "ca")
        kme, alice = pki.kme("kme-a"), pki.sae("alice")
        for supply in (None, QuickSupply(), WaitingSupply(), LotSupply()) if not options.profile else (QuickSupply(),):
            for method, path, body in (
                ("GET", "/api/v1/keys/bob/enc_keys?number=1&size=256", ""),
                ("POST", "/api/v1/keys/bob/enc_keys", '{"number":1,"size":256}'),
            ):
                port = multiprocessing.Value("i", 0)
                server = multiprocessing.Process(
                    target=serve, args=(kme, supply, port, 0, options.profile), daemon=True
                )
                server.start()
                while not port.value:
                    time.sleep(0.05)
                load = Load(
                    port=port.value,
                    certificate=str(alice.certificate),
                    private_key=str(alice.private_key),
                    ca_certificate=str(pki.ca_certificate),
                    method=method,
                    path=path,
                    body=body,
                    connections=options.connections,
                    seconds=options.seconds,
                    warm_up_s=0,
                )
                outcomes = []
                for _ in range(options.runs):
                    before_s = cpu_s(server.pid)
                    found = run_apart(load, [1])
                    outcomes.append((found.answers.get("200", 0) / (cpu_s(server.pid) - before_s), found))
                per_cpu_second, found = max(outcomes, key=lambda outcome: outcome[0])
                server.terminate()
                server.join()
                print(
                    f"{type(supply).__name__ if supply else 'Bare':14} {method:4}  {found.per_second:8.0f} /s  "
                    f"{per_cpu_second:8.0f} per CPU second  "
                    f"p50 {1e3 * found.p50_s:.2f} ms  p99 {1e3 * found.p99_s:.2f} ms  {found.answers} lost {found.lost}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
