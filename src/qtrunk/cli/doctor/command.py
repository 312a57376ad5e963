"""`qtrunk doctor`, and the table of what it examines. Exit status 0: all is well, 1: warnings, 2: errors."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import click
from rich.text import Text

from qtrunk.cli import options, show
from qtrunk.cli.doctor import certificates, clocks, configuration, disks, ledgers, ports, processes, saes
from qtrunk.cli.doctor.finding import Finding, Level
from qtrunk.cli.doctor.site import Site

STYLES = {Level.OK: "green", Level.WARNING: "yellow", Level.ERROR: "bold red"}


def _nothing(_site: Site) -> str:
    return ""


def _nodes(site: Site) -> str:
    return "" if site.nodes else "no node's configuration could be read"


def _lab(site: Site) -> str:
    return _nodes(site) or ("" if site.lab else "of labs only")


def _running(site: Site) -> str:
    return _nodes(site) or ("" if site.is_meant_to_run else "the lab is not up")


def _running_lab(site: Site) -> str:
    return _running(site) or _lab(site)


def _answers(site: Site) -> str:
    if _running(site) or not site.operator:
        return _running(site) or "no operator's certificate (--credentials DIR)"
    return "" if any(not answer.problem for answer in site.answers.values()) else "no node answers an operator"


@dataclass(frozen=True, slots=True)
class Check:
    """One row of the table."""

    name: str
    looks_at: str
    run: Callable[[Site], Iterable[Finding]]
    lacks: Callable[[Site], str]
    """Why it cannot be examined now; empty if it can."""


CHECKS = (
    Check(
        "configuration", "files, links, ports, guarantees fit each other", configuration.check_configuration, _nothing
    ),
    Check("processes", "supervisor, nodes and fibres run and stay up", processes.check_processes, _lab),
    Check("vaults", "no node is sealed, each vault can be read", processes.check_vault, _answers),
    Check(
        "certificates", "life, chain, names, usage, key, file mode, revoked", certificates.check_certificates, _nodes
    ),
    Check("revocation lists", "signed by a CA of the node, not overdue", certificates.check_revocation, _nodes),
    Check("signing keys", "ML-DSA keys fit what others verify with", certificates.check_signing_keys, _nodes),
    Check("ports", "TLS with the node's certificate, the right KME, neighbours", ports.check_ports, _nodes),
    Check("modules", "sockets of the QKD modules", ports.check_modules, _running),
    Check("SAEs", "each is known to its KME, and key lies ready for it", saes.check_saes, _running_lab),
    Check("operator", "every node answers an operator", processes.check_answers, _running),
    Check("alarms", "what nodes say is wrong", processes.check_alarms, _answers),
    Check("ledgers", "every octet accounted for, both ends fit", ledgers.check_ledgers, _answers),
    Check("clocks", "nodes beside this machine and each other", clocks.check_clocks, _answers),
    Check("clock steps", "this machine's clock runs evenly", clocks.check_steps, _nodes),
    Check("disk", "room, inodes, time of a durable write", disks.check_space, _nodes),
    Check("permissions", "directories and secrets are their owner's alone", disks.check_permissions, _nodes),
    Check("pre-shared secrets", "none left in the clear", configuration.check_preshared, _answers),
    Check("audit logs", "the chain of records holds", disks.check_audit, _nodes),
    Check("memory", "secrets locked into memory, no dumps", processes.check_memory, _answers),
    Check("memory limit", "processes may lock enough memory", processes.check_memory_limit, _lab),
)
"""In the order of the report: what explains the most comes first."""


@click.command()
@options.state_option
@click.option(
    "--config",
    "configs",
    type=click.Path(path_type=Path, dir_okay=False),
    multiple=True,
    help="Configuration of a node that is no lab's; instead of --state, may be repeated.",
)
@click.option(
    "--credentials",
    type=click.Path(path_type=Path, file_okay=False),
    help="With --config: directory with an operator's cert.pem, key.pem and ca.pem.",
)
@options.format_option
@click.pass_context
def doctor(
    context: click.Context, state: Path, configs: tuple[Path, ...], credentials: Path | None, format_: str
) -> None:
    """Find what is wrong with a lab or with production nodes of this machine, and say how to put it right.

    Nothing is changed. Exit status 0: all is well, 1: warnings, 2: errors.
    """
    if credentials is not None and not configs:
        raise click.UsageError("--credentials goes with --config; a lab has its own operator")
    site = Site.of_configs(configs, credentials) if configs else Site.of_lab(state)
    found = [(check, why := check.lacks(site), [] if why else list(check.run(site))) for check in CHECKS]
    worst = max((finding.level for *_, findings in found for finding in findings), default=Level.OK)
    if format_ == "json":
        options.print_json({"level": worst.name.lower(), "checks": [_as_json(*row) for row in found]})
    else:
        _print(found)
    context.exit(int(worst))


def _as_json(check: Check, lacks: str, findings: list[Finding]) -> dict[str, object]:
    level = max((finding.level for finding in findings), default=Level.OK).name.lower()
    return {
        "check": check.name,
        "level": "skipped" if lacks else level,
        "not_examined": lacks,
        "findings": [finding.as_json() for finding in findings],
    }


def _print(found: list[tuple[Check, str, list[Finding]]]) -> None:
    console = show.console()

    def line(level: str, style: str, on: str, text: str) -> None:
        console.print(Text.assemble((f"{level:9}", style), (f"{on}: ", "bold"), text), soft_wrap=True)

    for check, lacks, findings in found:
        if lacks:
            line("-", "dim", check.name, f"not examined, {lacks}")
        elif not findings:
            line("ok", STYLES[Level.OK], check.name, check.looks_at)
        for finding in sorted(findings, key=lambda finding: -finding.level):
            line(finding.level.name.lower(), STYLES[finding.level], finding.on, finding.what)
            for label, text in (("why", finding.why), ("fix", finding.fix)):
                if text:
                    console.print(f"           {label}: {text}", soft_wrap=True, markup=False)
    counts = {level: sum(entry.level is level for *_, findings in found for entry in findings) for level in Level}
    skipped = sum(bool(lacks) for _, lacks, _ in found)
    console.print(
        f"checks: {len(found) - skipped}, not examined: {skipped}; "
        f"errors: {counts[Level.ERROR]}, warnings: {counts[Level.WARNING]}"
    )
