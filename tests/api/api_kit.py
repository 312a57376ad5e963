"""What the tests of the interfaces stand on: a throw-away PKI, a supply without a network, servers, raw clients."""

import asyncio
import base64
import datetime as dt
import hashlib
import http.client
import ipaddress
import json
import socket
import ssl
import threading
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import uvloop
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from qtrunk.api.front import FrontContext, FrontServer
from qtrunk.api.https import HttpsServer, Limits, PeerIdentity, server_context
from qtrunk.base.errors import KeyExhausted, KeyNotFound, NotAuthorised, RequestRefused
from qtrunk.base.ids import KeyId, SaeId
from qtrunk.base.ports import SuppliedKey, SupplyStatus
from qtrunk.base.secret import Secret

ANSWER_WITHIN_S = 10.0


@dataclass
class Credentials:
    certificate: Path
    private_key: Path
    ca_certificate: Path

    def arguments(self) -> dict[str, Path]:
        return vars(self)

    def der(self) -> bytes:
        return ssl.PEM_cert_to_DER_cert(self.certificate.read_text())


class Pki:
    """One CA in a directory of the test."""

    def __init__(self, directory: Path, name: str = "test CA") -> None:
        directory.mkdir()
        self.directory = directory
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        self.ca_certificate = directory / "ca.pem"
        certificate = self._sign(self._name, self._key, 10, [x509.BasicConstraints(ca=True, path_length=0)])
        self.ca_certificate.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))

    def issue(
        self,
        common: str,
        *,
        uris: Sequence[str] = (),
        dns: Sequence[str] = (),
        addresses: Sequence[str] = (),
        lives_s: float = 86400,
        usages: Sequence[x509.ObjectIdentifier] = (ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH),
    ) -> Credentials:
        key = ec.generate_private_key(ec.SECP256R1())
        names: list[x509.GeneralName] = [x509.UniformResourceIdentifier(uri) for uri in uris]
        names += [x509.DNSName(name) for name in dns]
        names += [x509.IPAddress(ipaddress.ip_address(address)) for address in addresses]
        extensions: list[x509.ExtensionType] = [x509.ExtendedKeyUsage(usages)]
        if names:
            extensions.append(x509.SubjectAlternativeName(names))
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)])
        certificate = self._sign(subject, key, lives_s, extensions)
        place = self.directory / uuid.uuid4().hex
        place.mkdir()
        (place / "cert.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        (place / "key.pem").write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        return Credentials(place / "cert.pem", place / "key.pem", self.ca_certificate)

    def sae(self, name: str, **more) -> Credentials:
        return self.issue(name, uris=[f"urn:qtrunk:sae:{name}"], **more)

    def kme(self, name: str, **more) -> Credentials:
        return self.issue(name, uris=[f"urn:qtrunk:kme:{name}"], dns=["localhost"], addresses=["127.0.0.1"], **more)

    def _sign(self, subject, key, lives_s: float, extensions) -> x509.Certificate:
        now = dt.datetime.now(dt.UTC)
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - dt.timedelta(days=2))
            .not_valid_after(now + dt.timedelta(seconds=max(lives_s, 86400) if key is self._key else lives_s))
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False)
        )
        for extension in extensions:
            builder = builder.add_extension(extension, critical=isinstance(extension, x509.BasicConstraints))
        return builder.sign(self._key, hashes.SHA256())


@dataclass
class Issued:
    initiator: SaeId
    waiting: set[SaeId]
    named: frozenset[SaeId]
    octets: bytes


@dataclass
class FakeSupply:
    """The supply side of a key manager, with all its SAEs at one place and a stock that can run out."""

    saes: frozenset[str] = frozenset({"alice", "bob", "carol", "dave", "a:b@c", "erin"})
    stock: int = 10_000
    fails: Exception | None = None
    delay_s: float = 0.0
    per_request: int = 8
    allocations: int = 0
    issued: dict[KeyId, Issued] = field(default_factory=dict)
    handed_out: list[SuppliedKey] = field(default_factory=list)

    def sae_of(self, identity: PeerIdentity) -> SaeId | None:
        return next((SaeId(name) for name in identity.candidates if name in self.saes), None)

    def status(self, initiator: SaeId, target: SaeId) -> SupplyStatus:
        self._check(target)
        return SupplyStatus(
            source_kme="kme-a",
            target_kme="kme-b",
            key_bits=256,
            stored_key_count=self.stock,
            key_count_max=100_000,
            keys_per_request_max=self.per_request,
            key_bits_max=1024,
            key_bits_min=64,
            additional_targets_max=2,
            fill_bps=1234.5,
        )

    async def initiate(
        self, initiator: SaeId, targets: Sequence[SaeId], number: int, key_bits: int
    ) -> list[SuppliedKey]:
        for target in targets:
            self._check(target)
        if self.delay_s:
            await asyncio.sleep(self.delay_s)
        if self.fails:
            raise self.fails
        if number > self.stock:
            raise KeyExhausted(f"{number} keys are needed, {self.stock} are there", 7)
        self.stock -= number
        self.allocations += number
        keys = []
        for _ in range(number):
            key_id = KeyId(str(uuid.uuid4()))
            octets = hashlib.shake_256(key_id.encode()).digest(key_bits // 8)
            self.issued[key_id] = Issued(initiator, set(targets), frozenset(targets), octets)
            keys.append(SuppliedKey(key_id=key_id, material=Secret(octets)))
        self.handed_out += keys
        return keys

    async def collect(self, target: SaeId, initiator: SaeId, key_ids: Sequence[KeyId]) -> list[SuppliedKey]:
        if self.fails:
            raise self.fails
        found = [self.issued.get(key_id) for key_id in key_ids]
        for entry in found:
            if entry is not None and (target not in entry.named or entry.initiator != initiator):
                raise NotAuthorised("not yours")
        for entry in found:
            if entry is None or target not in entry.waiting:
                raise KeyNotFound("unknown or spent")
        keys = []
        for key_id, entry in zip(key_ids, found, strict=True):
            assert entry is not None
            entry.waiting.discard(target)
            keys.append(SuppliedKey(key_id=key_id, material=Secret(entry.octets)))
        return keys

    def _check(self, target: SaeId) -> None:
        if target not in self.saes:
            raise RequestRefused(f"SAE {target} is not known in this network")


class RunningServer:
    """A server on a loop of its own thread."""

    def __init__(
        self,
        handler,
        kme: Credentials,
        *,
        limits: Limits | None = None,
        minimum_version=None,
        uv=True,
        is_front=False,
        **more,
    ) -> None:
        arguments = (kme.certificate, kme.private_key, kme.ca_certificate)
        versions = () if minimum_version is None else (minimum_version,)
        if is_front:
            self.server = FrontServer(handler, FrontContext(*arguments, *versions), limits, **more)
        else:
            self.server = HttpsServer(handler, server_context(*arguments, *versions), limits, **more)
        self.problems: list[dict] = []
        self._loop = uvloop.new_event_loop() if uv else asyncio.new_event_loop()
        self._loop.set_exception_handler(lambda _loop, context: self.problems.append(context))
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self.port = self.run(self.server.start("127.0.0.1", 0))

    def run(self, work):
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(ANSWER_WITHIN_S)

    def stop(self) -> None:
        self.run(self.server.stop())
        self.run(self._settle())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(ANSWER_WITHIN_S)
        self._loop.close()

    @staticmethod
    async def _settle() -> None:
        others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    def __enter__(self) -> "RunningServer":
        return self

    def __exit__(self, *_nothing) -> None:
        self.stop()
        assert not self.problems, self.problems


@dataclass
class Answer:
    status: int
    headers: http.client.HTTPMessage
    octets: bytes

    def json(self):
        return json.loads(self.octets)

    @property
    def message(self) -> str:
        found = self.json()["message"]
        assert isinstance(found, str)
        return found


def tls_socket(port: int, own: Credentials | None, ca: Path, maximum_version=None) -> ssl.SSLSocket:
    context = ssl.create_default_context(cafile=str(ca))
    if own is not None:
        context.load_cert_chain(own.certificate, own.private_key)
    if maximum_version is not None:
        context.maximum_version = maximum_version
    plain = socket.create_connection(("127.0.0.1", port), ANSWER_WITHIN_S)
    plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    try:
        return context.wrap_socket(plain, server_hostname="localhost")
    except BaseException:
        plain.close()
        raise


class Wire:
    """A client that sends just what it is told, on one connection."""

    def __init__(self, port: int, own: Credentials | None, ca: Path | None = None, **more) -> None:
        assert own is not None or ca is not None
        self.sock = tls_socket(port, own, ca or own.ca_certificate, **more)

    def __enter__(self) -> "Wire":
        return self

    def __exit__(self, *_nothing) -> None:
        self.sock.close()

    def send(self, octets: bytes) -> None:
        self.sock.sendall(octets)

    def answer(self, method: str = "GET") -> Answer:
        response = http.client.HTTPResponse(_Unbuffered(self.sock), method=method)
        response.begin()
        octets = response.read()
        return Answer(response.status, response.headers, octets)

    def ask(self, method: str, path: str, body: bytes | str | dict | None = None, *headers: str) -> Answer:
        octets = (
            json.dumps(body).encode() if isinstance(body, dict) else body.encode() if isinstance(body, str) else body
        )
        lines = [f"{method} {path} HTTP/1.1", "Host: localhost", *headers]
        if octets is not None:
            lines.append(f"Content-Length: {len(octets)}")
        self.send("\r\n".join([*lines, "", ""]).encode() + (octets or b""))
        return self.answer(method)

    def is_closed(self) -> bool:
        """Whether the server ends the connection, soon, and without another octet."""
        try:
            return self.sock.recv(1) == b""
        except (ConnectionError, ssl.SSLError):
            return True


class _Unbuffered:
    """http.client reads ahead; one octet at a time keeps pipelined answers apart."""

    def __init__(self, sock: ssl.SSLSocket) -> None:
        self._sock = sock

    def makefile(self, _mode: str):
        return _Reader(self._sock)


class _Reader:
    def __init__(self, sock: ssl.SSLSocket) -> None:
        self._sock = sock

    def readline(self, limit: int = -1) -> bytes:
        line = bytearray()
        while not line.endswith(b"\n") and (limit < 0 or len(line) < limit):
            octet = self._sock.recv(1)
            if not octet:
                break
            line += octet
        return bytes(line)

    def read(self, count: int = -1) -> bytes:
        octets = bytearray()
        while count < 0 or len(octets) < count:
            part = self._sock.recv(65536 if count < 0 else count - len(octets))
            if not part:
                break
            octets += part
        return bytes(octets)

    def readinto(self, buffer) -> int:
        octets = self.read(len(buffer))
        buffer[: len(octets)] = octets
        return len(octets)

    def flush(self) -> None:
        """Nothing is written here."""

    def close(self) -> None:
        """The socket stays: the next answer comes over it."""


def keys_of(answer: Answer) -> dict[str, bytes]:
    return {entry["key_ID"]: base64.b64decode(entry["key"], validate=True) for entry in answer.json()["keys"]}
