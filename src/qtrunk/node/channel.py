"""Connections between neighbouring nodes: TLS 1.3 with certificates on both sides, frames inside.

A link has two such connections, so that bulky distillation never delays a relayed key: service `distil` carries
the classical channel of the protocol, service `kx` carries key relay. Alice's node dials, Bob's node listens.
TLS keeps strangers and accidents out; what the security proofs need is the information-theoretic authentication
inside (distil.parties, relay.kx), which does not rely on TLS.
"""

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Callable
from pathlib import Path

from qtrunk.api.tls import GROUP, PeerIdentity, identity_of
from qtrunk.base.errors import AuthenticationFailed, WireError
from qtrunk.base.wire import FRAME_HEADER_OCTETS, Message, decode, encode, frame, frame_length
from qtrunk.node.config import Address

HELLO_TIMEOUT_S = 5.0
CONNECT_TIMEOUT_S = 5.0
RETRY_S = 0.3
PROBE_S, PATH_S = 1, 5
"""A connection on which nothing comes is probed each second, and given up after so many."""
_READ_LIMIT = 1 << 20
_NODE_PREFIX = "urn:qtrunk:kme:"

Revoked = Callable[[PeerIdentity], bool]
"""Whether a certificate that TLS has verified is void all the same."""


class Hello(Message, frozen=True, tag="hello"):
    """First frame of a connection, in both directions: who speaks about which link."""

    version: int
    node: str
    link: str
    service: str


HELLO_VERSION = 3


class Channel:
    """One open connection; frames out and in."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, is_revoked: Revoked) -> None:
        self._reader = reader
        self._writer = writer
        self._is_revoked = is_revoked
        self._identity: PeerIdentity | None = None

    def send(self, payload: bytes) -> None:
        """Queue one frame; a closed connection swallows it (the peer will be asked again on reconnection)."""
        if not self._writer.is_closing():
            self._writer.write(frame(payload))

    async def receive(self) -> bytes:
        """The next frame; asyncio.IncompleteReadError or ConnectionError when the connection ends."""
        header = await self._reader.readexactly(FRAME_HEADER_OCTETS)
        payload = await self._reader.readexactly(frame_length(header))
        if self._identity is None or self._is_revoked(self._identity):
            # Also on a connection that was open before: nothing of it counts any more.
            self.close()
            raise ConnectionAbortedError("the peer's certificate is revoked")
        return payload

    def watch(self) -> None:
        """From now on the operating system ends the connection where machine or path of the peer is gone for PATH_S,
        whether anything is sent or not (tcp(7), RFC 5482). Not for channels whose reader may pause.
        """
        sock = self._writer.get_extra_info("socket")
        # A connection may be gone before anybody reads of it: there is no socket any more, or none that takes anything.
        if sock is not None:
            with contextlib.suppress(OSError):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, PROBE_S)
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, PROBE_S)
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 1000 * PATH_S)

    def close(self) -> None:
        """Drop the connection now."""
        self._writer.transport.abort()

    def peer_node(self) -> str:
        """The node ID in the peer's certificate, or AuthenticationFailed."""
        try:
            der = self._writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
            self._identity = identity_of(der)
        except ValueError as problem:
            raise AuthenticationFailed("the peer's certificate cannot be read") from problem
        for uri in self._identity.uris:
            if uri.startswith(_NODE_PREFIX):
                return uri[len(_NODE_PREFIX) :]
        raise AuthenticationFailed(f"the peer's certificate names no node (URI {_NODE_PREFIX}ID)")


def node_context(certificate: Path, private_key: Path, ca_certificate: Path, *, server: bool) -> ssl.SSLContext:
    """TLS 1.3 only, certificates of our CA on both sides. Names are checked against node IDs, not host names."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if server else ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    context.set_ecdh_curve(GROUP)
    context.load_cert_chain(certificate, private_key)
    context.load_verify_locations(ca_certificate)
    context.verify_mode = ssl.CERT_REQUIRED
    return context


async def _exchange_hello(channel: Channel, own: Hello) -> Hello:
    channel.send(encode(own))
    return await _hello(channel)


async def _hello(channel: Channel) -> Hello:
    async with asyncio.timeout(HELLO_TIMEOUT_S):
        return decode(await channel.receive(), Hello)


class InterNodeServer:
    """Bob's side: accepts neighbours and hands each connection to the link and service it names."""

    def __init__(self, node: str, context: ssl.SSLContext, is_revoked: Revoked) -> None:
        self._node = node
        self._is_revoked = is_revoked
        self._context = context
        self._expected: dict[tuple[str, str], tuple[str, Callable[[Channel], None]]] = {}
        self._server: asyncio.Server | None = None

    def expect(self, link: str, service: str, peer: str, accept: Callable[[Channel], None]) -> None:
        """Hand connections of `peer` for this link and service to `accept`."""
        self._expected[link, service] = (peer, accept)

    def forget(self, link: str) -> None:
        """Take no more connections for this link."""
        self._expected = {key: value for key, value in self._expected.items() if key[0] != link}

    async def start(self, address: Address) -> None:
        """Listen."""
        self._server = await asyncio.start_server(
            self._accept, address.host, address.port, ssl=self._context, limit=_READ_LIMIT
        )

    def close(self) -> None:
        """Stop listening."""
        if self._server is not None:
            self._server.close()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        channel = Channel(reader, writer, self._is_revoked)
        try:
            peer = channel.peer_node()
            hello = await _hello(channel)
            expected = self._expected.get((hello.link, hello.service))
            if expected is None or expected[0] != peer or hello.node != peer:
                raise AuthenticationFailed(f"{peer} may not speak about link {hello.link[:80]!r}")
            if hello.version != HELLO_VERSION:
                raise WireError(f"{peer} speaks version {hello.version}, this node {HELLO_VERSION}")
            channel.send(encode(Hello(version=HELLO_VERSION, node=self._node, link=hello.link, service=hello.service)))
        except (OSError, TimeoutError, asyncio.IncompleteReadError, WireError, AuthenticationFailed):
            channel.close()
            return
        expected[1](channel)


async def dial(
    address: Address, context: ssl.SSLContext, *, node: str, peer: str, link: str, service: str, is_revoked: Revoked
) -> Channel:
    """Connect to a neighbour; AuthenticationFailed or WireError when it is not who it must be."""
    async with asyncio.timeout(CONNECT_TIMEOUT_S):
        reader, writer = await asyncio.open_connection(address.host, address.port, ssl=context, limit=_READ_LIMIT)
    channel = Channel(reader, writer, is_revoked)
    try:
        if channel.peer_node() != peer:
            raise AuthenticationFailed(f"{address.host}:{address.port} is not node {peer}")
        hello = await _exchange_hello(channel, Hello(version=HELLO_VERSION, node=node, link=link, service=service))
        if (hello.version, hello.node, hello.link, hello.service) != (HELLO_VERSION, peer, link, service):
            raise WireError(f"node {peer} answered for another link, service or version")
    except BaseException:
        channel.close()
        raise
    return channel
