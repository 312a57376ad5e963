"""How commands reach an administration interface: a lab's node, or any address with an operator's certificate."""

import functools
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, cast

import click

from qtrunk.api.jsonclient import Service, parse_address
from qtrunk.api.tls import client_context
from qtrunk.base.errors import ConfigError, LabError
from qtrunk.cli import options
from qtrunk.node.ca.holder import authority_service
from qtrunk.node.lab import HOST, Lab

F = TypeVar("F", bound=Callable[..., Any])


def remote_options(command: F) -> F:
    """`--node NODE` of a lab (`--state DIR`), `--url URL` of a node or `--authority URL`; `--credentials DIR`."""
    for option in (
        click.option("--node", help="A node of the lab."),
        click.option("--url", help="https://HOST:PORT of a node's administration interface."),
        click.option("--authority", help="https://HOST:PORT of the enrolment service."),
        click.option(
            "--credentials",
            type=click.Path(path_type=Path, file_okay=False),
            help="Directory with cert.pem, key.pem and ca.pem.  [default: the lab's operator]",
        ),
        options.state_option,
    ):
        command = option(command)

    @functools.wraps(command)
    def with_service(
        *arguments: object,
        node: str | None,
        url: str | None,
        authority: str | None,
        credentials: Path | None,
        state: Path,
        **more: object,
    ) -> object:
        return command(*arguments, service=_service(node, url, authority, credentials, state), **more)

    # The options were put on what is wrapped; click looks for them on what wraps.
    return cast("F", with_service)


def _service(
    node: str | None, url: str | None, authority: str | None, credentials: Path | None, state: Path
) -> Service:
    if [node, url, authority].count(None) != 2:
        raise ConfigError(["--node, --url or --authority: one of them is needed"])
    if credentials is None:
        own = Lab.open(state).operator()
        credentials = own.certificate.parent
        ca_certificate = own.ca_certificate
    else:
        ca_certificate = credentials / "ca.pem"
    context = _context(credentials, ca_certificate)
    if authority is not None:
        return authority_service(*parse_address(authority), context)
    if url is not None:
        return Service(*parse_address(url), context)
    assert node is not None
    return _of_lab(Lab.open(state), node, context)


def lab_service(lab: Lab, node: str) -> Service:
    """A node of a lab, asked by the lab's operator."""
    own = lab.operator()
    return _of_lab(lab, node, _context(own.certificate.parent, own.ca_certificate))


def _of_lab(lab: Lab, node: str, context: ssl.SSLContext) -> Service:
    if node not in lab.ports:
        raise LabError(f"{node!r} is not a node of {lab.topology.name}; nodes: {', '.join(sorted(lab.ports))}")
    return Service(HOST, lab.ports[node].admin_api, context)


def service_of_url(url: str, credentials: Path) -> Service:
    """A node's administration interface at `url`, asked by an operator."""
    return Service(*parse_address(url), _context(credentials, credentials / "ca.pem"))


def authority_of(url: str, credentials: Path) -> Service:
    """The enrolment service at `url`, asked by an operator."""
    return authority_service(*parse_address(url), _context(credentials, credentials / "ca.pem"))


def _context(credentials: Path, ca_certificate: Path) -> ssl.SSLContext:
    try:
        return client_context(credentials / "cert.pem", credentials / "key.pem", ca_certificate)
    except OSError as problem:
        raise ConfigError([f"--credentials {credentials}: {problem}"]) from problem
