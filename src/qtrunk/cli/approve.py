"""`qtrunk approve` and `qtrunk roles`: what needs two persons, and who may do what."""

import hashlib
from typing import BinaryIO

import click
import msgspec

from qtrunk.api.jsonclient import Service
from qtrunk.api.roles import TABLE
from qtrunk.base.errors import AuthenticationFailed
from qtrunk.cli import options, show
from qtrunk.cli.remote import remote_options
from qtrunk.kms.approvals import Proposal

_PATH = "/admin/v1/approvals"


@click.group()
def approve() -> None:
    """What needs two security officers: proposals, and the second person's yes or no.

    The enrolment service takes `invite` (of operators and replacements) and `revoke`, a node `add-ca` and
    `add-verifying-key`. A proposal lives 15 minutes; who proposed it runs it, once.
    """


@approve.command("propose")
@click.argument("action")
@click.argument("parameters")
@remote_options
def approve_propose(action: str, parameters: str, service: Service) -> None:
    """Propose ACTION with PARAMETERS, a JSON object, such as '{"kind": "sae", "name": "bank", "reason": "lost"}'."""
    try:
        wanted = msgspec.json.decode(parameters, type=dict[str, object])
    except msgspec.MsgspecError as problem:
        raise click.BadParameter(f"a JSON object is needed ({problem})", param_hint="PARAMETERS") from problem
    answer = service.ask("POST", _PATH, {"action": action, "parameters": wanted})
    click.echo(msgspec.json.decode(answer, type=Proposal).id)


@approve.command("list")
@remote_options
@options.format_option
def approve_list(service: Service, format_: str) -> None:
    """Every proposal and where it stands."""
    octets = service.ask("GET", _PATH)
    found = msgspec.json.decode(octets, type=list[Proposal])
    if format_ == "json":
        options.print_json(found)
        return
    rows = [
        (entry.id, entry.action, entry.proposer.name, entry.second.name if entry.second else "", entry.state)
        for entry in found
    ]
    show.console().print(show.plain_table("", ("ID", "action", "proposed by", "second", "state"), rows))


@approve.command("show")
@click.argument("identifier", metavar="ID")
@remote_options
def approve_show(identifier: str, service: Service) -> None:
    """One proposal, with the exact operation."""
    octets = service.ask("GET", f"{_PATH}/{identifier}")
    options.print_json(_checked(octets))


@approve.command("yes")
@click.argument("identifier", metavar="ID")
@click.option("--digest", help="SHA-256 of the operation that you were shown; without it you are asked.")
@remote_options
def approve_yes(identifier: str, digest: str | None, service: Service) -> None:
    """Approve another officer's proposal."""
    if digest is None:
        proposal = _checked(service.ask("GET", f"{_PATH}/{identifier}"))
        click.echo(f"{proposal.proposer.name} proposes: {proposal.operation}")
        click.confirm("Approve just this?", abort=True)
        digest = proposal.digest
    service.ask("POST", f"{_PATH}/{identifier}/yes", {"digest": digest})
    click.echo("approved.")


@approve.command("no")
@click.argument("identifier", metavar="ID")
@remote_options
def approve_no(identifier: str, service: Service) -> None:
    """Refuse a proposal, or take back one's own."""
    service.ask("POST", f"{_PATH}/{identifier}/no")
    click.echo("refused.")


@approve.command("run")
@click.argument("identifier", metavar="ID")
@click.option("--secret-file", type=click.File("rb"), help="What the operation needs in secret; - is standard input.")
@remote_options
def approve_run(
    identifier: str,
    secret_file: BinaryIO | None,
    service: Service,
) -> None:
    """Execute one's own approved proposal; prints its result."""
    body = None if secret_file is None else secret_file.read().decode().strip()
    octets = service.ask("POST", f"{_PATH}/{identifier}/run", body)
    options.print_json(msgspec.json.decode(octets))


def _checked(octets: bytes) -> Proposal:
    """A proposal whose digest is that of the operation shown, whatever the server says."""
    proposal = msgspec.json.decode(octets, type=Proposal)
    if hashlib.sha256(proposal.operation.encode()).hexdigest() != proposal.digest:
        raise AuthenticationFailed(
            f"proposal {proposal.id}: its digest is not that of the operation; do not approve it"
        )
    return proposal


@click.command()
@options.format_option
def roles(format_: str) -> None:
    """Who may ask for what on the administration interfaces; what is not here nobody may."""
    rows = [(rule.method, rule.path, ", ".join(sorted(rule.roles)), rule.purpose) for rule in TABLE]
    if format_ == "json":
        options.print_json([dict(zip(("method", "path", "roles", "purpose"), row, strict=True)) for row in rows])
        return
    for method, path, names, purpose in rows:
        click.echo(f"{method:5}{path:32}{purpose}\n{'':37}{names}")
