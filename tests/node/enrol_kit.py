"""An authority and its enrolment service for tests, on a loop of its own thread."""

import asyncio
import threading
import time

import uvloop

from qtrunk.api.roles import OperatorRole
from qtrunk.kms import audit
from qtrunk.node.alarms import AlarmBoard
from qtrunk.node.ca import holder, service
from qtrunk.node.ca.authority import Authority
from qtrunk.node.ca.identity import Identity, Kind
from qtrunk.node.world import SystemRandom


class Clock:
    shift_s = 0.0

    def unix_s(self):
        return time.time() + self.shift_s

    def monotonic_s(self):
        return time.monotonic()


class Office:
    """An authority and its service, on a loop of its own thread."""

    def __init__(self, directory):
        self.directory = directory
        self.clock = Clock()
        self.alarms = []
        self.authority = Authority(directory, self.clock, SystemRandom(), alarm=self.alarms.append)
        self._loop = uvloop.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self.port = self.run(self._start())
        self.url = f"https://localhost:{self.port}"

    async def _start(self):
        board = AlarmBoard(self.clock)
        self.service = service.Service(self.authority, self.directory, self.clock, SystemRandom(), board)
        return await self.service.start("127.0.0.1", 0)

    def run(self, work):
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(10)

    def close(self):
        self.run(self.service.stop())
        self.run(asyncio.sleep(0))
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()
        self.authority.close()

    def invite(self, kind, name, *, roles=(), hosts=(), ttl_s=60.0, replaces=False):
        return self.authority.invite(Identity(kind, name, roles, hosts), ttl_s, "test", replaces=replaces)

    def audited(self):
        return [(record.who, record.what, record.outcome) for record in audit.records(self.directory / "audit")]

    def enrolled(self, kind, name, out, **more):
        """A party that has joined; its directory."""
        holder.join(self.url, self.invite(kind, name, **more), out)
        return out

    def officer(self, name, out):
        return self.enrolled(Kind.OPERATOR, name, out, roles=(OperatorRole.OFFICER,))
