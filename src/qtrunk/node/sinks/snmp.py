"""Alarms as SNMP notifications: version 3 with authentication and privacy (RFC 3414, RFC 7860, RFC 3826), or 2c; as
traps, or as informs, which the receiver confirms (RFC 3416 sections 4.2.6, 4.2.7). Objects are those of
`QTRUNK-ALARM-MIB.mib` beside this file.

The sender of a trap is the authoritative engine: receivers know its keys by its engine ID, and refuse what is older
than they have seen by its count of boots. That count is on the disk before it is used.
Needs pysnmp (docs/decisions/0023).
"""

import asyncio
import os
import socket
import threading
from hashlib import sha256
from importlib import import_module
from pathlib import Path
from typing import Any

from qtrunk.base.errors import ConfigError
from qtrunk.node.sinks.notice import Notice, SinkError
from qtrunk.node.sinks.settings import SnmpSettings
from qtrunk.node.sinks.syslog import ENTERPRISE

TIMEOUT_S, RETRIES = 5.0, 1
WHOLE_S = 30.0
BOOTS_MAX = (1 << 31) - 2
TEXT_OCTETS_MAX = 255
"""Of one object (SnmpAdminString): so nearly all alarms have room in a datagram that is not cut on its way."""
PASSPHRASE_OCTETS_MIN = 8
"""RFC 3414 section 11.2."""
MIB = Path(__file__).with_name("QTRUNK-ALARM-MIB.mib")
ROOT = f"1.3.6.1.4.1.{ENTERPRISE}.1"
RAISED, CLEARED = f"{ROOT}.0.1", f"{ROOT}.0.2"
OBJECTS = f"{ROOT}.1.1"
SEVERITIES = {"cleared": 1, "indeterminate": 2, "critical": 3, "major": 4, "minor": 5, "warning": 6}
"""ItuPerceivedSeverity of RFC 3877."""
_AUTHENTICATIONS = {
    "sha-1": "USM_AUTH_HMAC96_SHA",
    "sha-256": "USM_AUTH_HMAC192_SHA256",
    "sha-512": "USM_AUTH_HMAC384_SHA512",
}
_PRIVACIES = {"aes-128": "USM_PRIV_CFB128_AES", "aes-256": "USM_PRIV_CFB256_AES"}


class Engine:
    """What all SNMP receivers of one process share: engine ID and count of boots."""

    def __init__(self, directory: Path, network: str, node: str) -> None:
        self._path = directory / "snmp-boots"
        self._lock = threading.Lock()
        self._boots: int | None = None
        self.id = engine_id(network, node)

    def boots(self) -> int:
        """Of this process, counted on the disk; SinkError where that takes nothing."""
        with self._lock:
            if self._boots is None:
                self._boots = self._count()
            return self._boots

    def _count(self) -> int:
        try:
            boots = min(BOOTS_MAX, 1 + (int(self._path.read_text()) if self._path.exists() else 0))
            part = self._path.with_suffix(".part")
            with part.open("w") as out:
                out.write(f"{boots}\n")
                out.flush()
                os.fsync(out.fileno())
            part.replace(self._path)
        except (OSError, ValueError) as error:
            raise SinkError(f"{self._path}: the count of boots is not kept: {type(error).__name__}") from error
        return boots


def engine_id(network: str, node: str) -> bytes:
    """snmpEngineID of a node, the same for ever: RFC 3411 section 5, octets of our own choice (format 5)."""
    head = (0x80000000 | int(ENTERPRISE)).to_bytes(4, "big")
    return head + b"\x05" + sha256(repr((network, node)).encode()).digest()[:12]


class Snmp:
    """One message for each notice. All of it happens in the loop of the one thread that calls `send`."""

    batch, interval_s = 16, 0.0

    def __init__(self, settings: SnmpSettings, engine: Engine) -> None:
        self._settings = settings
        self._engine = engine
        self._where = f"SNMP at {settings.host}:{settings.port}"
        try:
            # Where it is missing, the node must say so at its start, not with the first alarm.
            self._library: Any = import_module("pysnmp.hlapi.v3arch.asyncio")
            self._errors = import_module("pysnmp.error").PySnmpError, import_module("pyasn1.error").PyAsn1Error
        except ImportError as error:
            raise ConfigError(["alarms.toml: snmp needs pysnmp: pip install 'qtrunk[snmp]'"]) from error
        self._loop: asyncio.AbstractEventLoop | None = None
        self._dispatcher: Any = None
        self._user: Any = None

    def send(self, notices: list[Notice]) -> None:
        """See Sink."""
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
        self._loop.run_until_complete(self._send(notices))

    def close(self) -> None:
        """See Sink."""
        if self._loop is None:
            return
        self._loop.run_until_complete(self._let_go())
        self._loop.close()
        self._loop = self._dispatcher = None

    async def _let_go(self) -> None:
        if self._dispatcher is not None:
            self._dispatcher.close_dispatcher()
        left = asyncio.all_tasks() - {asyncio.current_task()}
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)

    async def _send(self, notices: list[Notice]) -> None:
        try:
            if self._dispatcher is None:
                # The library keeps keys of users: what is read later would change nothing.
                self._user = self._make_user()
                self._dispatcher = self._make_dispatcher()
            target = await self._target()
            async with asyncio.timeout(WHOLE_S):
                for notice in notices:
                    await self._notify(target, notice)
        except TimeoutError:
            raise SinkError(f"{self._where}: no confirmation") from None
        except OSError as error:
            raise SinkError(f"{self._where}: {error.strerror or type(error).__name__}") from None

    async def _notify(self, target: Any, notice: Notice) -> None:
        library = self._library
        kind = "inform" if self._settings.is_confirmed else "trap"
        what = library.NotificationType(library.ObjectIdentity(CLEARED if notice.severity == "cleared" else RAISED))
        what.add_varbinds(*((name, self._value(value)) for name, value in varbinds(notice)))
        try:
            problem, status, _, _ = await library.send_notification(
                self._dispatcher, self._user, target, library.ContextData(), kind, what, lookupMib=False
            )
        except self._errors as error:
            # Only the kind: the words of an error may hold a passphrase.
            raise SinkError(f"{self._where}: {type(error).__name__}") from None
        if problem or status:
            raise SinkError(f"{self._where}: {problem or status}")

    def _value(self, value: int | str) -> Any:
        library = self._library
        return library.Integer32(value) if isinstance(value, int) else library.OctetString(value.encode())

    def _make_dispatcher(self) -> Any:
        """The library's engine with our identity. It would take one itself, but keep its boots below /tmp."""
        made = self._library.SnmpEngine()
        own, boots = made.get_mib_builder().import_symbols("__SNMP-FRAMEWORK-MIB", "snmpEngineID", "snmpEngineBoots")
        own.syntax = own.syntax.clone(self._engine.id)
        boots.syntax = boots.syntax.clone(self._engine.boots())
        made.snmpEngineID = own.syntax
        return made

    async def _target(self) -> Any:
        settings = self._settings
        found = await asyncio.get_running_loop().getaddrinfo(settings.host, settings.port, type=socket.SOCK_DGRAM)
        family, _, _, _, address = found[0]
        kind = self._library.Udp6TransportTarget if family == socket.AF_INET6 else self._library.UdpTransportTarget
        return await kind.create(address[:2], timeout=TIMEOUT_S, retries=RETRIES)

    def _make_user(self) -> Any:
        settings, library = self._settings, self._library
        if settings.version == "2c":
            return library.CommunityData(_secret(settings.community_file, 1))
        return library.UsmUserData(
            settings.user,
            authKey=_secret(settings.authentication_file, PASSPHRASE_OCTETS_MIN),
            privKey=_secret(settings.privacy_file, PASSPHRASE_OCTETS_MIN),
            authProtocol=getattr(library, _AUTHENTICATIONS[settings.authentication]),
            privProtocol=getattr(library, _PRIVACIES[settings.privacy]),
        )


def varbinds(notice: Notice) -> list[tuple[str, int | str]]:
    """Object names and values of a notification, in the order of the MIB."""
    values: list[int | str] = [
        notice.network,
        notice.node,
        notice.id,
        notice.resource,
        notice.type,
        SEVERITIES[notice.severity],
        notice.probable_cause,
        notice.text,
        notice.time,
        ", ".join(notice.impacted),
        ", ".join(notice.root_causes),
        notice.remedy,
    ]
    return [
        (f"{OBJECTS}.{number}.0", _short(value) if isinstance(value, str) else value)
        for number, value in enumerate(values, 1)
    ]


def _short(text: str) -> str:
    octets = text.encode()
    if len(octets) <= TEXT_OCTETS_MAX:
        return text
    return octets[: TEXT_OCTETS_MAX - 3].decode(errors="ignore") + "…"


def _secret(path: str | None, least: int) -> str:
    assert path is not None
    try:
        found = Path(path).read_text(encoding="utf-8").strip()
    except ValueError:
        raise SinkError(f"{path}: UTF-8 text is needed") from None
    if len(found.encode()) < least:
        raise SinkError(f"{path}: {least} octets or more are needed")
    return found
