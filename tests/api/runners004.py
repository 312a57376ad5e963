"""Two of our key managers that give key streams (ETSI GS QKD 004) over real sockets."""

import asyncio
import threading

import uvloop
from api_kit import FakeSupply

from qtrunk.api.client004 import Client004
from qtrunk.api.etsi004 import Etsi004Server, Limits
from qtrunk.api.tls import server_context
from qtrunk.base.ids import NodeId
from qtrunk.node.streams import StreamRunner
from qtrunk.node.world import SystemClock, SystemRandom

NODES = {"alice": "a", "carol": "a", "bob": "b", "dave": "b"}


class Runners:
    """Two key managers on a loop of their own thread, their notes carried from hand to hand."""

    def __init__(self, kme, limits: Limits | None = None) -> None:
        self.supply = FakeSupply(per_request=128)
        self.loop = uvloop.new_event_loop()
        self.problems: list[dict] = []
        self.put_out: set[str] = set()
        """SAEs whose certificates are not taken any more."""
        self.loop.set_exception_handler(lambda _loop, context: self.problems.append(context))
        self.thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self.thread.start()
        self.runners: dict[str, StreamRunner] = {}
        self.ports: dict[str, int] = {}
        self.servers: list[Etsi004Server] = []
        self.run(self._start(kme, limits))

    async def _start(self, kme, limits) -> None:
        self.kme, self.limits = kme, limits
        self.tasks = []
        for node in "ab":
            self.servers.append(await self._start_one(node))

    async def _start_one(self, node: str) -> Etsi004Server:
        runner = self.runners[node] = StreamRunner(
            NodeId(node),
            lambda sae: NodeId(NODES[sae]) if sae in NODES else None,
            self.supply,
            lambda _key: 1,
            SystemRandom(),
            SystemClock(),
            self.notes_of(node),
        )
        self.tasks.append(asyncio.create_task(runner.keep_ticking()))
        server = Etsi004Server(
            runner,
            lambda identity: next(
                (name for name in identity.candidates if NODES.get(name) == node and name not in self.put_out), None
            ),
            server_context(self.kme.certificate, self.kme.private_key, self.kme.ca_certificate),
            self.limits,
        )
        self.ports[node] = await server.start("127.0.0.1", self.ports.get(node, 0))
        return server

    async def stop_one(self, node: str) -> None:
        """A key manager goes down, and what it knew of its streams with it."""
        await self.servers["ab".index(node)].stop()
        await self.runners[node].stop()

    async def start_one(self, node: str) -> None:
        """It comes back at the same port."""
        self.servers["ab".index(node)] = await self._start_one(node)

    def notes_of(self, origin: str):
        kmes = self

        class Notes:
            def tell(self, node, octets):
                kmes.loop.call_soon(kmes.runners[node].receive, NodeId(origin), octets)

        return Notes()

    def run(self, work):
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(10)

    async def _stop(self) -> None:
        for server in self.servers:
            await server.stop()
        for runner in self.runners.values():
            await runner.stop()
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)

    def __enter__(self):
        return self

    def __exit__(self, *_nothing) -> None:
        self.run(self._stop())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(10)
        self.loop.close()
        assert not self.problems

    def client(self, sae: str, credentials) -> Client004:
        return Client004(host="localhost", port=self.ports[NODES[sae]], timeout_s=8, **credentials.arguments())
