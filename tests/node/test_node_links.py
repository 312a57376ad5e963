"""The connections of a node's links."""

import asyncio

import pytest

from qtrunk.base.ids import LinkId, NodeId
from qtrunk.node.node import Node
from qtrunk.stages import Role
from qtrunk.topology import Node as Site
from qtrunk.topology import trunk


class Server:
    """What a neighbour's connection is handed to."""

    def expect(self, _link, _service, _peer, accept):
        self.accept = accept


class Channel:
    is_closed = False

    def close(self):
        self.is_closed = True


def test_a_connection_whose_link_goes_in_the_turn_in_which_it_came_is_closed():
    (link,) = trunk("t", [Site(id=NodeId(name)) for name in "ab"], [(10, 3)]).links
    node = Node.__new__(Node)
    node._server, node._link_tasks = Server(), {LinkId(link.id): set()}

    async def serve(_channel):
        pytest.fail("served")

    async def play():
        node._connect(link, Role.BOB, None, "kx", serve, None)
        channel = Channel()
        node._server.accept(channel)
        (task,) = node._link_tasks[link.id]
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.sleep(0)
        assert channel.is_closed

    asyncio.run(play())
