"""`qtrunk enrol`: who is let into the network, and who is put out again."""

import asyncio
import contextlib
import datetime as dt
import logging
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import click
import msgspec

from qtrunk.api.jsonclient import Service, parse_address
from qtrunk.api.roles import OperatorRole
from qtrunk.base.errors import ConfigError, QtrunkError
from qtrunk.base.secret import Secret
from qtrunk.cli import options, show
from qtrunk.cli.remote import authority_of
from qtrunk.node.alarms import AlarmBoard
from qtrunk.node.ca import holder, service
from qtrunk.node.ca.authority import Authority
from qtrunk.node.ca.identity import Identity, Kind
from qtrunk.node.ca.records import Issued
from qtrunk.node.world import SystemClock, SystemRandom

F = TypeVar("F", bound=Callable[..., Any])
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_KINDS = click.Choice([Kind.SAE.value, Kind.NODE.value, Kind.OPERATOR.value, Kind.CONTROLLER.value])
_ROLES = click.Choice([role.value for role in OperatorRole])


def _seconds(_context: click.Context, _option: click.Parameter, value: str) -> float:
    if not (value[:-1].isascii() and value[:-1].isdigit() and value[-1] in _UNITS):
        raise click.BadParameter("a number and s, m, h or d, such as 1h")
    return float(int(value[:-1]) * _UNITS[value[-1]])


def _ca_option(command: F) -> F:
    return click.option(
        "--ca",
        type=click.Path(path_type=Path, file_okay=False),
        default=lambda: options.default_state() / "pki",
        show_default="that of the lab",
        help="Directory of the authority.",
    )(command)


def _out_option(command: F) -> F:
    return click.option(
        "--out", type=click.Path(path_type=Path, file_okay=False), required=True, help="Directory of the holder."
    )(command)


def _party_options(command: F) -> F:
    for option in (
        click.option("--kind", type=_KINDS, required=True),
        click.option("--name", required=True, help="SAE ID, node ID, or an operator's name."),
    ):
        command = option(command)
    return command


def _identity_options(command: F) -> F:
    for option in (
        click.option("--role", "roles", type=_ROLES, multiple=True, help="Of an operator."),
        click.option("--host", "hosts", multiple=True, help="DNS name or address of a node."),
    ):
        command = option(command)
    return _party_options(command)


def _service_options(command: F) -> F:
    for option in (
        click.option("--authority", help="https://HOST:PORT of the enrolment service, to be asked instead of --ca."),
        click.option(
            "--credentials", type=click.Path(path_type=Path, file_okay=False), help="With --authority: an operator's."
        ),
    ):
        command = option(command)
    return command


def _service(authority: str, credentials: Path | None) -> Service:
    if credentials is None:
        raise ConfigError(["--credentials: needed with --authority"])
    return authority_of(authority, credentials)


@contextlib.contextmanager
def _authority(directory: Path) -> Iterator[Authority]:
    if not (directory / "ca.pem").exists():
        raise ConfigError([f"--ca {directory}: no authority; `qtrunk enrol init` makes one"])
    opened = Authority(directory, SystemClock(), SystemRandom())
    try:
        yield opened
    finally:
        opened.close()


@contextlib.contextmanager
def _told(out: Path) -> Iterator[None]:
    """What the disk of a holder refuses, in one clear line."""
    try:
        yield
    except OSError as problem:
        raise ConfigError([f"--out {out}: {problem}"]) from problem


def _who() -> str:
    """The audit log's name for who uses the authority's files directly."""
    return f"local user {os.getuid()}"


@click.group()
def enrol() -> None:
    """Let SAEs, nodes and operators into the network, and put them out again."""


@enrol.command("init")
@_ca_option
@click.option("--name", default="qtrunk CA", help="Of the authority, in its certificate.")
def enrol_init(ca: Path, name: str) -> None:
    """Make an authority. Its directory owns the network: keep it on a machine of its own."""
    if (ca / "ca.pem").exists():
        raise ConfigError([f"--ca {ca}: there is an authority already"])
    Authority(ca, SystemClock(), SystemRandom(), name).close()
    click.echo(f"{ca}: made. Now invite two security officers: `qtrunk enrol invite --kind operator --role …`")


@enrol.command("serve")
@_ca_option
@click.option("--listen", default="127.0.0.1:8443", metavar="HOST:PORT")
def enrol_serve(ca: Path, listen: str) -> None:
    """Run the enrolment service until it is stopped."""
    host, port = parse_address(listen)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    asyncio.run(_serve(ca, host, port))


async def _serve(directory: Path, host: str, port: int) -> None:
    clock, random = SystemClock(), SystemRandom()
    alarms = AlarmBoard(clock)

    def alarm(text: str) -> None:
        alarms.raise_alarm("enrolment", "TokenMisused", "major", text)
        logging.warning("alarm: %s", text)

    with _authority(directory) as opened:
        opened.alarm = alarm
        running = service.Service(opened, directory, clock, random, alarms)
        stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        logging.info("https://%s:%s", host, await running.start(host, port))
        await stop.wait()
        await running.stop()


@enrol.command("invite")
@_identity_options
@click.option("--ttl", callback=_seconds, default="1h", metavar="DURATION", help="How long the invitation is good.")
@click.option("--replace", is_flag=True, help="The name was enrolled before: revoke that when the invited party joins.")
@_ca_option
@_service_options
def enrol_invite(
    kind: str,
    name: str,
    roles: tuple[str, ...],
    hosts: tuple[str, ...],
    ttl: float,
    replace: bool,
    ca: Path,
    authority: str | None,
    credentials: Path | None,
) -> None:
    """Print a one-time token for a new party. It is shown this once; give it over a way that you trust."""
    invited = service.Invited(Kind(kind), name, [OperatorRole(role) for role in roles], list(hosts), ttl, replace)
    if authority is not None:
        octets = _service(authority, credentials).ask("POST", "/admin/v1/invitations", invited)
        click.echo(msgspec.json.decode(octets, type=dict[str, str])["token"])
        return
    with _authority(ca) as opened:
        if invited.needs_two():
            opened.check_alone()
        token = opened.invite(invited.identity(), ttl, _who(), replaces=replace)
    click.echo(bytes(token.reveal()))


@enrol.command("join")
@click.argument("url")
@click.option("--token-file", type=click.File("rb"), required=True, help="With the token; - is standard input.")
@_out_option
def enrol_join(url: str, token_file: BinaryIO, out: Path) -> None:
    """Enrol at the service of URL. The private key is made in --out and never leaves it."""
    with _told(out):
        found = holder.join(url, Secret(token_file.read(4096)), out)
    click.echo(f"{found.kind} {found.name}: enrolled; certificate and key are in {out}")


@enrol.command("renew")
@_out_option
@click.option("--force", is_flag=True, help="Ask though it is not due; the authority has the last word.")
def enrol_renew(out: Path, force: bool) -> None:
    """Renew the certificate in --out once two thirds of its life are over; fetch revocation list and directory.

    Run it daily from a timer.
    """
    with _told(out):
        is_renewed = holder.renew(out, dt.datetime.now(dt.UTC), is_forced=force)
        holder.refresh(out)
    click.echo("renewed." if is_renewed else "not due yet.")


@enrol.command("keep")
@_out_option
@click.option("--every", callback=_seconds, default="3s", metavar="DURATION", help="How often to look.")
def enrol_keep(out: Path, every: float) -> None:
    """Renew when due, and fetch revocation list and directory again and again, until stopped.

    Beside each node that is not on the authority's machine: what is revoked there is out here within seconds.
    """
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    with contextlib.suppress(KeyboardInterrupt):
        while True:
            try:
                with _told(out):
                    if holder.renew(out, dt.datetime.now(dt.UTC)):
                        logging.info("%s: renewed", out)
                    holder.refresh(out)
            except QtrunkError as problem:
                logging.warning("%s", problem)
            time.sleep(every)


@enrol.command("refresh")
@_out_option
def enrol_refresh(out: Path) -> None:
    """Fetch the revocation list and, for a node, the signed directory of the nodes' verifying keys."""
    with _told(out):
        holder.refresh(out)
    click.echo("up to date.")


@enrol.command("request")
@_identity_options
@_out_option
def enrol_request(kind: str, name: str, roles: tuple[str, ...], hosts: tuple[str, ...], out: Path) -> None:
    """For an outside authority: make a key in --out, and a certificate request with the right names."""
    identity = Identity(Kind(kind), name, tuple(OperatorRole(role) for role in roles), hosts)
    with _told(out):
        click.echo(holder.request(identity, out))


@enrol.command("install")
@_identity_options
@_out_option
@click.option("--certificate", type=click.File("rb"), required=True, help="PEM; with intermediate ones after it.")
@click.option("--ca-certificate", type=click.File("rb"), required=True, help="PEM of the CA that is to be believed.")
def enrol_install(
    kind: str,
    name: str,
    roles: tuple[str, ...],
    hosts: tuple[str, ...],
    out: Path,
    certificate: BinaryIO,
    ca_certificate: BinaryIO,
) -> None:
    """Check what an outside authority made of the request (key, names, chain, usage, dates), then put it in force."""
    identity = Identity(Kind(kind), name, tuple(OperatorRole(role) for role in roles), hosts)
    with _told(out):
        holder.install(identity, out, certificate.read(), ca_certificate.read(), dt.datetime.now(dt.UTC))
    click.echo(f"{identity.label}: certificate and key are in {out}")


@enrol.command("revoke")
@_party_options
@click.option("--reason", required=True)
@_ca_option
def enrol_revoke(kind: str, name: str, reason: str, ca: Path) -> None:
    """Revoke every living certificate of a party, as who owns the authority's files.

    Where there are two security officers it takes both: `qtrunk approve propose revoke …`.
    """
    with _authority(ca) as opened:
        opened.check_alone()
        count = opened.revoke(Kind(kind), name, reason, _who())
    click.echo(f"{count} revoked; the new list is {ca / 'ca.crl'}")


@enrol.command("list")
@_ca_option
@_service_options
@options.format_option
def enrol_list(ca: Path, authority: str | None, credentials: Path | None, format_: str) -> None:
    """Every certificate that the authority issued."""
    if authority is not None:
        octets = _service(authority, credentials).ask("GET", "/admin/v1/certificates")
        found = msgspec.json.decode(octets, type=list[Issued])
    else:
        with _authority(ca) as opened:
            found = opened.issued()
    if format_ == "json":
        options.print_json(found)
        return
    now_unix_s = SystemClock().unix_s()
    rows = [(*_row(issued), _state(issued, now_unix_s)) for issued in found]
    columns = ("kind", "name", "roles", "until", "serial", "state")
    show.console().print(show.plain_table("", columns, rows))


def _row(issued: Issued) -> tuple[str, str, str, str, str]:
    until = dt.datetime.fromtimestamp(issued.until_unix_s, dt.UTC)
    return issued.kind, issued.name, ", ".join(issued.roles), f"{until:%Y-%m-%d %H:%M}", issued.serial[:12]


def _state(issued: Issued, now_unix_s: float) -> str:
    if issued.revoked_unix_s is not None:
        return f"revoked: {issued.reason}"
    return "living" if issued.is_living(now_unix_s) else "expired"
