"""`qtrunk vault`: where a node's master key comes from, who may unseal it, and copies of its records.

Of a node that runs, by its administration interface: `status`, `unseal`, `share`, `seal`. On the node's own machine, by
its files: the rest; all but `backup` need the node to be stopped, and refuse while it runs.

Secrets come from a prompt that shows nothing, or from a file (`-` is standard input); never from the command line.
"""

import functools
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, BinaryIO, TypeVar, cast

import click
import msgspec

from qtrunk.api.jsonclient import Service
from qtrunk.base.errors import AuthenticationFailed, ConfigError, LabError, RequestRefused, StoreError
from qtrunk.base.ids import LinkId
from qtrunk.base.secret import Secret
from qtrunk.cli import options, show
from qtrunk.cli.remote import remote_options
from qtrunk.kms.approvals import Proposal, State
from qtrunk.kms.journal import Journal
from qtrunk.kms.vault import backup, rotation
from qtrunk.kms.vault.opened import METHODS, Vault
from qtrunk.kms.vault.unsealing import Keys, Unsealing
from qtrunk.node.config import NodeConfig, load
from qtrunk.node.keys import IN_SERVICE, keys_of
from qtrunk.node.lab import Lab
from qtrunk.node.world import SystemClock

F = TypeVar("F", bound=Callable[..., Any])
SEALED_STATUS = 3
"""Exit status of `qtrunk vault status` for a node that is not in service."""
APPROVAL_POLL_S = 1.0
_APPROVALS = "/admin/v1/approvals"


@click.group()
def vault() -> None:
    """The master key of a node's store: who may unseal it, its rotation, copies of the records."""


# ── a node that runs ────────────────────────────────────────────────────────────────────────────────────────────────


@vault.command("status")
@remote_options
@options.format_option
def vault_status(service: Service, format_: str) -> None:
    """Whether a node is sealed, and who may unseal it. Exit status 3 while it is not in service."""
    found = msgspec.json.decode(service.ask("GET", "/admin/v1/status"), type=dict[str, Any])
    if format_ == "json":
        options.print_json({"node": found["node"], "state": found["state"], **found["vault"]})
    else:
        click.echo(f"{found['node']}: {found['state']}")
        if "problem" in found["vault"]:
            click.echo(f"vault: {found['vault']['problem']}")
        rows = [_row(entry, found["vault"]["shares"]) for entry in found["vault"].get("unsealers", [])]
        show.console().print(show.plain_table("", ("unsealer", "method", "by itself", "shares", ""), rows))
    if found["state"] != IN_SERVICE:
        click.get_current_context().exit(SEALED_STATUS)


def _row(entry: dict[str, Any], shares: dict[str, int]) -> tuple[str, ...]:
    given = f"{shares.get(entry['name'], 0)} of {entry['needed']} given" if "needed" in entry else ""
    kind = "for laboratories: who has the disk has the keys" if entry["is_laboratory"] else ""
    return entry["name"], entry["method"], "yes" if entry["is_unattended"] else "no", given, kind


@vault.command("unseal")
@click.option("--unsealer", help="Which one, where the vault has several that take a passphrase or PIN.")
@click.option("--secret-file", type=click.File("rb"), help="The passphrase or PIN; - is standard input.")
@click.option(
    "--no-secret", is_flag=True, help="Try what opens by itself: after `seal`, with a credential or key file."
)
@click.option("--wait-s", type=click.FloatRange(0), default=900.0, help="For the second officer's yes.")
@remote_options
def vault_unseal(
    unsealer: str | None, secret_file: BinaryIO | None, no_secret: bool, wait_s: float, service: Service
) -> None:
    """Unseal a node by a passphrase, a PIN, or what opens by itself. A second officer must approve it.

    Proposes `unseal`, waits until another officer says `qtrunk approve yes ID`, asks for the secret, and gives it.
    """
    parameters = {} if unsealer is None else {"unsealer": unsealer}
    answer = service.ask("POST", _APPROVALS, {"action": "unseal", "parameters": parameters})
    proposal = msgspec.json.decode(answer, type=Proposal)
    click.echo(f"waiting for another officer: qtrunk approve yes {proposal.id}", err=True)
    deadline_s = time.monotonic() + wait_s
    while proposal.state == State.PROPOSED:
        if time.monotonic() > deadline_s:
            raise RequestRefused(f"proposal {proposal.id}: nobody approved it in time")
        time.sleep(APPROVAL_POLL_S)
        proposal = msgspec.json.decode(service.ask("GET", f"{_APPROVALS}/{proposal.id}"), type=Proposal)
    if proposal.state != State.APPROVED:
        raise RequestRefused(f"proposal {proposal.id} is {proposal.state}")
    secret = None if no_secret else _text_of(_asked(secret_file, "passphrase or PIN"))
    service.ask("POST", f"{_APPROVALS}/{proposal.id}/run", secret)
    click.echo("unsealed; the node goes into service.")


@vault.command("share")
@click.option("--secret-file", type=click.File("rb"), help="The share; - is standard input.")
@remote_options
def vault_share(secret_file: BinaryIO | None, service: Service) -> None:
    """Give one share to a sealed node. The last one must come from another officer than the first."""
    share = _text_of(_asked(secret_file, "share"))
    answer = msgspec.json.decode(service.ask("POST", "/admin/v1/vault/shares", {"share": share}), type=dict[str, Any])
    given = ", ".join(f"{count} of {name}" for name, count in answer["shares"].items())
    click.echo(f"{answer['state']}; shares that wait: {given}" if given else f"{answer['state']}.")


@vault.command("seal")
@remote_options
def vault_seal(service: Service) -> None:
    """Take a node out of service at once; its process begins anew without any key, and waits to be unsealed."""
    service.ask("POST", "/admin/v1/vault/seal")
    click.echo("sealed.")


# ── the node's own machine ──────────────────────────────────────────────────────────────────────────────────────────


def local_options(command: F) -> F:
    """NODE of a lab (`--state DIR`), or `--config FILE` of any node."""
    for option in (
        click.option("--node", help="A node of the lab."),
        click.option(
            "--config",
            type=click.Path(path_type=Path, dir_okay=False, exists=True),
            help="A node's configuration file.",
        ),
        options.state_option,
    ):
        command = option(command)

    @functools.wraps(command)
    def with_config(*arguments: object, node: str | None, config: Path | None, state: Path, **more: object) -> object:
        return command(*arguments, config=_config(node, config, state), **more)

    return cast("F", with_config)


def _config(node: str | None, config: Path | None, state: Path) -> NodeConfig:
    if (node is None) == (config is None):
        raise ConfigError(["--node or --config: one of them is needed"])
    if config is not None:
        return load(config)
    lab = Lab.open(state)
    if node not in lab.ports:
        raise LabError(f"{node!r} is not a node of {lab.topology.name}; nodes: {', '.join(sorted(lab.ports))}")
    return load(lab.state / "nodes" / str(node) / "node.json")


def opening_options(command: F) -> F:
    """Who opens the vault, where it does not open by itself."""
    for option in (
        click.option("--unsealer", help="Who opens the vault, where there are several."),
        click.option(
            "--secret-file",
            "secret_files",
            type=click.File("rb"),
            multiple=True,
            help="The passphrase or PIN, or one file for each share; - is standard input.",
        ),
    ):
        command = option(command)
    return command


def making_options(command: F) -> F:
    """What a new unsealer is made of."""
    for option in (
        click.option("--method", type=click.Choice(sorted(METHODS)), required=True),
        click.option("--name", default="main", help="Of the unsealer."),
        click.option(
            "--set",
            "settings",
            multiple=True,
            metavar="NAME=VALUE",
            help="shares: needed, count. pkcs11: module, token, pin_credential. systemd: credential. file: path.",
        ),
        click.option("--new-secret-file", type=click.File("rb"), help="The new passphrase, or the token's PIN."),
        click.option(
            "--shares-to",
            type=click.Path(path_type=Path, file_okay=False),
            help="A new directory, one file for each share: hand them out, then remove it.",
        ),
    ):
        command = option(command)
    return command


@vault.command("init")
@making_options
@local_options
def vault_init(
    method: str,
    name: str,
    settings: Sequence[str],
    new_secret_file: BinaryIO | None,
    shares_to: Path | None,
    config: NodeConfig,
) -> None:
    """Make a vault for a node that has none. What its store has is wrapped by a new key; the bare file is shredded."""
    keys = keys_of(config)
    if not keys.is_bare:
        raise StoreError(f"vault {keys.path}: there is one already; `qtrunk vault add` gives it another unsealer")
    _check_stopped(keys)
    _check_shares(method, shares_to)
    new = _new_secret(method, settings, new_secret_file)
    vault, shares = keys.make(name, method, _settings(settings), new)
    vault.wipe()
    _hand_out(shares, shares_to)
    click.echo(f"vault {keys.path}: made; unsealer {name} ({method}).")


@vault.command("add")
@making_options
@opening_options
@local_options
def vault_add(
    method: str,
    name: str,
    settings: Sequence[str],
    new_secret_file: BinaryIO | None,
    shares_to: Path | None,
    unsealer: str | None,
    secret_files: Sequence[BinaryIO],
    config: NodeConfig,
) -> None:
    """One more way to unseal a node."""
    keys = keys_of(config)
    _check_shares(method, shares_to)
    vault = _opened(keys, unsealer, secret_files)
    try:
        shares = vault.add(name, method, _settings(settings), _new_secret(method, settings, new_secret_file))
    finally:
        vault.wipe()
    _hand_out(shares, shares_to)
    click.echo(f"vault {keys.path}: unsealer {name} ({method}) added.")


@vault.command("remove")
@click.argument("name")
@opening_options
@local_options
def vault_remove(name: str, unsealer: str | None, secret_files: Sequence[BinaryIO], config: NodeConfig) -> None:
    """Take an unsealer away, and change the keys, so that no old copy of the vault file opens anything new."""
    keys = keys_of(config)
    _check_stopped(keys)
    vault = _opened(keys, unsealer, secret_files)
    try:
        vault.remove(name)
        rotation.rotate(vault, keys.store)
    finally:
        vault.wipe()
    click.echo(f"vault {keys.path}: unsealer {name} removed, master key changed.")


@vault.command("rotate")
@opening_options
@local_options
def vault_rotate(unsealer: str | None, secret_files: Sequence[BinaryIO], config: NodeConfig) -> None:
    """A new master key for everything that the old one wrapped; nobody's passphrase or share changes."""
    keys = keys_of(config)
    _check_stopped(keys)
    vault = _opened(keys, unsealer, secret_files)
    try:
        rotation.rotate(vault, keys.store)
    finally:
        vault.wipe()
    click.echo(f"vault {keys.path}: master key changed.")


@vault.command("backup")
@click.argument("target", type=click.Path(path_type=Path, dir_okay=False))
@local_options
def vault_backup(target: Path, config: NodeConfig) -> None:
    """Copy the records of a node's store, which may run, to TARGET. Not one key is in it."""
    backup.backup(keys_of(config).store, target)
    click.echo(f"{target}: {target.stat().st_size} octets of records, no key.")


@vault.command("restore")
@click.argument("source", type=click.Path(path_type=Path, dir_okay=False, exists=True))
@local_options
def vault_restore(source: Path, config: NodeConfig) -> None:
    """A store with the records of SOURCE, where there is none. Every key that lived in it is destroyed on the record.

    Each neighbour then runs `qtrunk vault begin-anew` for its link, and both ends get a new pre-shared secret.
    """
    gone = backup.restore(source, keys_of(config).store, config.node_id, SystemClock())
    click.echo(f"restored; {_told(gone)} destroyed.")
    _tell_secrets(config, [entry.link for entry in config.links])


@vault.command("begin-anew")
@click.argument("link")
@local_options
def vault_begin_anew(link: str, config: NodeConfig) -> None:
    """Destroy what is left of LINK, whose other end was restored, so that it can begin with a new pre-shared secret."""
    if config.link(LinkId(link)) is None:
        known = ", ".join(entry.link for entry in config.links)
        raise LabError(f"{link!r} is no link of node {config.node}; links: {known}")
    gone = backup.begin_anew(keys_of(config).store, config.node_id, LinkId(link), SystemClock())
    click.echo(f"{link}: {_told(gone)} destroyed.")
    _tell_secrets(config, [link])


def _told(gone: dict[str, int]) -> str:
    return ", ".join(f"{number} {name}" for name, number in gone.items())


def _tell_secrets(config: NodeConfig, links: Sequence[str]) -> None:
    for entry in config.links:
        if entry.link in links:
            click.echo(f"{entry.link}: put the new pre-shared secret, the same at both ends, in {entry.preshared_file}")


def _opened(keys: Keys, unsealer: str | None, secret_files: Sequence[BinaryIO]) -> Vault:
    """The vault, by itself where no secret is given and it can."""
    if keys.is_bare:
        raise StoreError(f"vault {keys.path}: there is none; `qtrunk vault init` makes one")
    unsealing = Unsealing(keys, SystemClock())
    if not secret_files and unsealer is None:
        vault = unsealing.without_help(lambda text: click.echo(f"note: {text}", err=True))
        if vault is not None:
            return vault
    try:
        for file in secret_files:
            vault = unsealing.offer(_read(file), unsealer)
            if vault is not None:
                return vault
        while not secret_files or unsealing.progress():
            given = sum(unsealing.progress().values())
            vault = unsealing.offer(
                _asked(None, f"share {given + 1}" if given else "passphrase, PIN or share"), unsealer
            )
            if vault is not None:
                return vault
    finally:
        unsealing.forget()
    raise AuthenticationFailed("nothing that was given opens the vault")


def _check_stopped(keys: Keys) -> None:
    if keys.store.exists():
        Journal(keys.store).close()


def _check_shares(method: str, shares_to: Path | None) -> None:
    if (method == "shares") != (shares_to is not None):
        raise ConfigError(["--shares-to: needed for --method shares, and for no other"])
    if shares_to is not None and shares_to.exists():
        raise ConfigError([f"--shares-to {shares_to}: exists; a new directory is needed"])


def _hand_out(shares: Sequence[Secret], directory: Path | None) -> None:
    if directory is None:
        return
    directory.mkdir(mode=0o700, parents=True)
    for number, share in enumerate(shares, 1):
        path = directory / f"share-{number}.txt"
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as out:
            out.write(bytes(share.reveal()) + b"\n")
            out.flush()
            os.fsync(out.fileno())
        share.wipe()
    click.echo(f"{directory}: {len(shares)} shares; hand out one to each holder, then overwrite and remove them.")


def _settings(settings: Sequence[str]) -> dict[str, str | int]:
    found: dict[str, str | int] = {}
    for setting in settings:
        name, equals, value = setting.partition("=")
        if not equals or not value:
            raise ConfigError([f"--set {setting}: NAME=VALUE is needed"])
        found[name] = int(value) if value.isascii() and value.isdigit() else value
    return found


def _new_secret(method: str, settings: Sequence[str], file: BinaryIO | None) -> Secret | None:
    """What a new unsealer of that method needs to be given."""
    has_pin = method == "pkcs11" and not any(setting.startswith("pin_credential=") for setting in settings)
    if method == "passphrase":
        return _asked(file, "new passphrase", is_new=True)
    return _asked(file, "PIN of the token") if has_pin else None


def _asked(file: BinaryIO | None, what: str, *, is_new: bool = False) -> Secret:
    if file is not None:
        return _read(file)
    return Secret(click.prompt(what, hide_input=True, confirmation_prompt=is_new).encode())


def _read(file: BinaryIO) -> Secret:
    return Secret(file.read(4096).removesuffix(b"\n"))


def _text_of(secret: Secret) -> str:
    """For a JSON body; Python cannot wipe a text (docs/memory.md)."""
    try:
        return bytes(secret.reveal()).decode()
    except UnicodeDecodeError:
        raise RequestRefused("secret: UTF-8 text is needed") from None
