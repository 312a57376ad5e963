"""`alarms.toml`: the receivers of a node's alarms. Secrets are in files that it names, never in it.

    [webhook.NAME]  url, ca_certificate?, token_file?, least?, roots_only?
    [syslog.NAME]   host, port?, transport? (udp, tcp, tls), facility?, ca_certificate?, certificate?, private_key?, …
    [snmp.NAME]     host, port?, is_confirmed?, version? (3, 2c), community_file (2c),
                    user, authentication?, authentication_file, privacy?, privacy_file (3), …
    [mail.NAME]     host, port?, tls? (starttls, implicit, none), sender, to, user?, password_file?, interval_s?, …

`least` is the mildest severity that is told (`warning`); `roots_only` leaves out what follows from something else
(mail: true, others: false).
"""

import tomllib
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

import msgspec

from qtrunk.base.errors import ConfigError

Port = Annotated[int, msgspec.Meta(ge=1, le=65535)]
Address = Annotated[str, msgspec.Meta(pattern=r"^[^@\s<>,]+@[^@\s<>,]+$", max_length=254)]
Severities = Literal["indeterminate", "warning", "minor", "major", "critical"]


class Common(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What every receiver has."""

    least: Severities = "warning"
    roots_only: bool = False


class WebhookSettings(Common, frozen=True, kw_only=True):
    """`[webhook.NAME]`."""

    url: str
    ca_certificate: str | None = None
    """PEM file; None: the CAs of the operating system."""
    token_file: str | None = None
    """A bearer token."""


class SyslogSettings(Common, frozen=True, kw_only=True):
    """`[syslog.NAME]`."""

    host: str
    port: Port = 514
    transport: Literal["udp", "tcp", "tls"] = "udp"
    facility: Annotated[int, msgspec.Meta(ge=0, le=23)] = 16
    ca_certificate: str | None = None
    certificate: str | None = None
    private_key: str | None = None


class MailSettings(Common, frozen=True, kw_only=True):
    """`[mail.NAME]`."""

    host: str
    port: Port = 587
    tls: Literal["starttls", "implicit", "none"] = "starttls"
    sender: Address
    to: Annotated[list[Address], msgspec.Meta(min_length=1, max_length=100)]
    user: str | None = None
    password_file: str | None = None
    ca_certificate: str | None = None
    interval_s: Annotated[float, msgspec.Meta(ge=0, le=86400)] = 300.0
    roots_only: bool = True


class SnmpSettings(Common, frozen=True, kw_only=True):
    """`[snmp.NAME]`."""

    host: str
    port: Port = 162
    version: Literal["3", "2c"] = "3"
    is_confirmed: bool = False
    """Informs instead of traps."""
    user: Annotated[str, msgspec.Meta(min_length=1, max_length=32)] | None = None
    authentication: Literal["sha-1", "sha-256", "sha-512"] = "sha-256"
    authentication_file: str | None = None
    privacy: Literal["aes-128", "aes-256"] = "aes-128"
    privacy_file: str | None = None
    community_file: str | None = None


class SinkSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The whole file."""

    webhook: dict[str, WebhookSettings] = {}
    syslog: dict[str, SyslogSettings] = {}
    mail: dict[str, MailSettings] = {}
    snmp: dict[str, SnmpSettings] = {}


def load(path: Path) -> SinkSettings:
    """Read the file; no file is no receivers. ConfigError names what is wrong."""
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
        settings = msgspec.convert(document, SinkSettings)
    except FileNotFoundError:
        return SinkSettings()
    except (OSError, ValueError, msgspec.MsgspecError) as error:
        raise ConfigError([f"{path}: {error}"]) from error
    problems = [
        f"{path}: webhook.{name}.url: https://HOST/… without user and password is needed"
        for name, one in settings.webhook.items()
        if not _is_https(one.url)
    ]
    for name, one in settings.mail.items():
        if (one.user is None) != (one.password_file is None):
            problems.append(f"{path}: mail.{name}: user and password_file go together")
        if one.user is not None and one.tls == "none":
            problems.append(f"{path}: mail.{name}.tls: a password is not sent in the clear")
    problems += [f"{path}: snmp.{name}.{problem}" for name, one in settings.snmp.items() for problem in _lacks(one)]
    if problems:
        raise ConfigError(problems)
    return settings


def _is_https(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return parts.scheme == "https" and bool(parts.hostname) and "@" not in parts.netloc and parts.port != 0
    except ValueError:
        return False


def _lacks(one: SnmpSettings) -> list[str]:
    """What the version of a receiver needs and has not, or has and cannot use."""
    fields = {"3": ("user", "authentication_file", "privacy_file"), "2c": ("community_file",)}
    return [
        f"{name}: {'is needed' if version == one.version else 'is not'} for version {one.version}"
        for version, names in fields.items()
        for name in names
        if (getattr(one, name) is None) == (version == one.version)
    ]
