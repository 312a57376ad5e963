"""`qtrunk seal` and `qtrunk open`: files under quantum keys, from one end of the network to the other."""

from pathlib import Path

import click

from qtrunk.api.client import Etsi014Client
from qtrunk.base.ids import SaeId
from qtrunk.cli import options
from qtrunk.gateway import files
from qtrunk.gateway.keylocker import KeyLocker
from qtrunk.node.lab import Lab


def _client(lab: Lab, sae: str) -> Etsi014Client:
    """The SAE at its own node's key manager, by the standard interface and nothing else."""
    credentials = lab.credentials(SaeId(sae))
    entry = lab.topology.sae(SaeId(sae))
    assert entry is not None
    return Etsi014Client(
        kme_url=lab.kme_url(entry.node),
        certificate=credentials.certificate,
        private_key=credentials.private_key,
        ca_certificate=credentials.ca_certificate,
        own_sae=entry.id,
        retry_s=lab.topology.key_api.retry_window_s,
    )


@click.command()
@click.argument("file", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option("--from", "initiator", required=True, help="The SAE that protects the file.")
@click.option("--to", "target", required=True, help="The SAE that may open it.")
@click.option("-o", "output", type=click.Path(path_type=Path, dir_okay=False), help="Default: FILE.qsealed")
@click.option(
    "--otp",
    is_flag=True,
    help="One-time pad and information-theoretic tag; takes as much key as the file is long.",
)
@click.option("--force", is_flag=True, help="Overwrite the output.")
@options.state_option
def seal(file: Path, initiator: str, target: str, output: Path | None, otp: bool, force: bool, state: Path) -> None:
    """Protect FILE for another SAE, under a key fetched by ETSI GS QKD 014."""
    lab = Lab.open(state)
    lab.credentials(SaeId(target))
    client = _client(lab, initiator)
    place = output or file.with_name(file.name + files.SUFFIX)
    if otp:
        files.seal_file_otp(file, place, client, SaeId(initiator), SaeId(target), click.echo, force=force)
    else:
        files.seal_file(file, place, client, SaeId(initiator), SaeId(target), force=force)
    click.echo(f"sealed for {target}: {place}")


@click.command("open")
@click.argument("file", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option("--as", "own", required=True, help="The SAE that the file was sealed for.")
@click.option("-o", "output", type=click.Path(path_type=Path, dir_okay=False), help="Default: FILE without .qsealed")
@click.option("--force", is_flag=True, help="Overwrite the output.")
@options.state_option
def open_(file: Path, own: str, output: Path | None, force: bool, state: Path) -> None:
    """Open a FILE that was sealed for this SAE. A file that was changed in any way does not open."""
    lab = Lab.open(state)
    client = _client(lab, own)
    locker = KeyLocker(lab.state / "saes" / own / "locker")
    place = files.open_file(file, output, client, SaeId(own), locker, force=force)
    click.echo(f"opened: {place}")
