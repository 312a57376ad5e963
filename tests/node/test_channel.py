"""Connections between nodes: a revoked neighbour is turned away, and cut off where it was connected already."""

import asyncio
import socket
import struct
from contextlib import asynccontextmanager

import pytest
from enrol_kit import Clock

from qtrunk.base.errors import AuthenticationFailed
from qtrunk.base.wire import encode, frame
from qtrunk.node.ca import certificates, files
from qtrunk.node.ca.authority import Authority
from qtrunk.node.ca.identity import Identity, Kind
from qtrunk.node.channel import HELLO_VERSION, PATH_S, Hello, InterNodeServer, dial, node_context
from qtrunk.node.config import Address
from qtrunk.node.revocation import Registry
from qtrunk.node.world import SystemRandom


@pytest.fixture
def authority(tmp_path):
    made = Authority(tmp_path / "ca", Clock(), SystemRandom())
    for kind, name in ((Kind.NODE, "a"), (Kind.NODE, "b"), (Kind.SAE, "c")):
        key = certificates.new_key()
        (tmp_path / name).mkdir()
        enrolled = made.issue(Identity(kind, name), key.public_key(), 30, "test")
        files.switch(tmp_path / name, certificates.key_pem(key), enrolled.certificate)
    yield made
    made.close()


def context(directory, name, *, server):
    own = directory / name
    return node_context(own / "cert.pem", own / "key.pem", directory / "ca" / "ca.pem", server=server)


@asynccontextmanager
async def listening(directory, is_revoked):
    """Node b waits for a: where, and the connections that it takes."""
    server = InterNodeServer("b", context(directory, "b", server=True), is_revoked)
    accepted = asyncio.Queue()
    server.expect("a-b", "kx", "a", accepted.put_nowait)
    await server.start(Address("127.0.0.1", 0))
    try:
        yield Address("127.0.0.1", server._server.sockets[0].getsockname()[1]), accepted
    finally:
        server.close()


def test_a_revoked_neighbour_is_cut_off_and_does_not_come_back(authority, tmp_path):
    async def play():
        registry = Registry(tmp_path / "ca" / "ca.crl", tmp_path / "ca" / "ca.pem", Clock())
        async with listening(tmp_path, registry.is_revoked) as (here, accepted):
            own = context(tmp_path, "a", server=False)

            async def connect():
                names = {"node": "a", "peer": "b", "link": "a-b", "service": "kx"}
                return await dial(here, own, **names, is_revoked=registry.is_revoked)

            alice = await connect()
            bob = await accepted.get()
            alice.send(b"before")
            assert await bob.receive() == b"before"
            authority.revoke(Kind.NODE, "a", "stolen", "test")
            registry.look()
            alice.send(b"after")
            with pytest.raises(ConnectionError, match="revoked"):
                await bob.receive()
            with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
                await connect()
            assert accepted.empty()
            alice.close()

    asyncio.run(play())


def test_a_certificate_of_another_kind_is_no_node(authority, tmp_path):
    async def play():
        nobody = Registry(None, tmp_path / "ca" / "ca.pem", Clock())
        server = InterNodeServer("c", context(tmp_path, "b", server=True), nobody.is_revoked)
        server.expect("a-b", "kx", "c", lambda _channel: pytest.fail("let in"))
        await server.start(Address("127.0.0.1", 0))
        here = Address("127.0.0.1", server._server.sockets[0].getsockname()[1])
        names = {"node": "c", "peer": "b", "link": "a-b", "service": "kx", "is_revoked": nobody.is_revoked}
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError, AuthenticationFailed)):
            await dial(here, context(tmp_path, "c", server=False), **names)
        server.close()

    asyncio.run(play())


def test_a_connection_that_is_gone_before_it_is_watched_harms_nobody(authority, tmp_path):
    """A neighbour that says hello and resets: whoever takes the connection finds no socket in it."""

    async def play():
        nobody = Registry(None, tmp_path / "ca" / "ca.pem", Clock())
        own = context(tmp_path, "a", server=False)
        async with listening(tmp_path, nobody.is_revoked) as (here, accepted):
            for _ in range(5):
                _, writer = await asyncio.open_connection(here.host, here.port, ssl=own)
                hello = Hello(version=HELLO_VERSION, node="a", link="a-b", service="kx")
                sock = writer.get_extra_info("socket")
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                writer.write(frame(encode(hello)))
                writer.transport.abort()
                async with asyncio.timeout(10.0):
                    channel = await accepted.get()
                for _ in range(3):
                    channel.watch()
                    await asyncio.sleep(0.0)
                with pytest.raises((OSError, asyncio.IncompleteReadError)):
                    await channel.receive()

    asyncio.run(play())


def test_the_operating_system_watches_the_path_of_a_connection(authority, tmp_path):
    async def play():
        nobody = Registry(None, tmp_path / "ca" / "ca.pem", Clock())
        names = {"node": "a", "peer": "b", "link": "a-b", "service": "kx", "is_revoked": nobody.is_revoked}
        async with listening(tmp_path, nobody.is_revoked) as (here, accepted):
            alice = await dial(here, context(tmp_path, "a", server=False), **names)
            bob = await accepted.get()
            for channel in (alice, bob):
                sock = channel._writer.get_extra_info("socket")
                assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 0
                channel.watch()
                assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
                idle_s = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE)
                between_s = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL)
                assert idle_s + between_s < PATH_S, "more than one probe may be lost"
                assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 1000 * PATH_S
            alice.send(b"still")
            assert await bob.receive() == b"still"
            alice.close()

    asyncio.run(play())
