"""A channel that brought nonsense is an alarm until the next one brings sense, whether or not the link makes key."""

import asyncio

import pytest

from qtrunk.base.errors import WireError
from qtrunk.base.ids import LinkId, NodeId
from qtrunk.node.advert import Adverts, LinkLevel
from qtrunk.node.alarms import AlarmBoard
from qtrunk.node.kxrunner import _ADVERT, KxRunner

LINK = LinkId("a-b")


class Clock:
    def unix_s(self) -> float:
        return 1.7e9

    def monotonic_s(self) -> float:
        return 0.0


class Machine:
    def link_up(self, _link):
        return []

    link_down = link_up


class Channel:
    def __init__(self, *messages):
        self.messages = list(messages)

    async def receive(self):
        if not self.messages:
            raise OSError("over")
        message = self.messages.pop(0)
        if message is WireError:
            raise WireError("no frame")
        return message

    def close(self):
        pass

    def send(self, _octets):
        pass

    def watch(self):
        pass


@pytest.fixture
def board():
    return AlarmBoard(Clock())


def test_an_alarm_of_nonsense_ends_with_the_first_message_of_sense(board):
    advert = _ADVERT + Adverts(NodeId("b")).note_own([LinkLevel(LINK, 1, 1.0, True)], 1, 0.0)
    runner = KxRunner(Machine(), Adverts(NodeId("a")), board, Clock())

    def carry(*messages):
        asyncio.run(runner.serve(LINK, Channel(*messages)))
        return {alarm.type for alarm in board.of(LINK) if not alarm.is_cleared}

    assert carry(advert) == set()
    assert carry(WireError) == {"ProtocolError"}
    assert carry() == {"ProtocolError"}, "a connection alone says nothing"
    assert carry(advert, advert) == set()
    board.raise_alarm(LINK, "ProtocolError", "major", "of the link's own protocol")
    assert carry(advert) == {"ProtocolError"}, "not the relay's to clear"


def test_what_comes_in_the_moment_in_which_its_link_is_taken_out_is_nobodys(board):
    """The frame is here already, the task that takes it runs once the network is another."""

    class Growing(Machine):
        def __init__(self):
            self.links = {LINK}

        def link_gone(self, link):
            self.links.discard(link)
            return []

        def receive(self, link, _octets):
            assert link in self.links, "a KeyError in production, and the end of the node"
            return []

    class Coming(Channel):
        async def receive(self):
            message = await super().receive()
            runner.drop(LINK)
            return message

    runner = KxRunner(Growing(), Adverts(NodeId("a")), board, Clock())
    asyncio.run(runner.serve(LINK, Coming(b"\x00late")))
    assert not runner.is_up(LINK)
