"""How things look in a terminal: tables of links, alarms and SAEs; bits and rates for people."""

from collections.abc import Iterable, Mapping, Sequence

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from qtrunk.control.alarms import Severity
from qtrunk.control.catalogue import is_shared

_STATE_STYLE = {"ACTIVE": "bold green", "PASSIVE": "yellow", "PENDING": "cyan", "OFF": "bold red"}


def quantity(value: object, unit: str) -> str:
    """A count of bits or bit/s with a decimal prefix: 1.32 Mbit."""
    number = float(str(value or 0))
    for factor, prefix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= factor:
            return f"{number / factor:.3g} {prefix}{unit}"
    return f"{number:.0f} {unit}"


def percent(value: object) -> str:
    """A ratio as per cent, or a dash where there is none yet."""
    return f"{100 * float(str(value)):.2f} %" if value is not None else "–"


def clock(link: Mapping[str, object]) -> str:
    """Of the real clock, what the light of a link's last block ran at; of what it should, where it ran slower."""
    should = float(str(link.get("clock_fraction") or 1))
    factor = float(str(link.get("real_time_factor") or 0))
    if factor == 0:
        return "–"
    return f"{100 * should:.3g} %" if factor > 0.985 else f"{100 * factor * should:.2g} of {100 * should:.3g} %"


def plain_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    """A table of text."""
    table = Table(title=title, title_justify="left", header_style="bold")
    for column in columns:
        table.add_column(column)
    for row in rows:
        table.add_row(*row)
    return table


def link_table(status: dict[str, object]) -> Table:
    """The live table: link, length, loss, QBER, sifted and secret rate, pool, state."""
    table = Table(title=f"{status['topology']}", title_justify="left", header_style="bold")
    table.add_column("link")
    for column in ("length", "loss", "QBER", "sifted", "secret", "pool", "auth", "clock"):
        table.add_column(column, justify="right")
    table.add_column("state")
    links = status["links"]
    assert isinstance(links, list)
    for link in links:
        state = str(link["state"])
        table.add_row(
            str(link["link"]),
            f"{float(link['length_km']):.1f} km",
            f"{float(link['loss_db']):.1f} dB",
            percent(link.get("qber_test")),
            quantity(link.get("sifted_bps"), "bit/s"),
            quantity(link.get("secret_bps"), "bit/s"),
            quantity(link.get("pool_bits"), "bit"),
            quantity(link.get("auth_bits"), "bit"),
            clock(link),
            Text(state, _STATE_STYLE.get(state, "")),
        )
    return table


def alarm_lines(status: dict[str, object]) -> list[Text]:
    """One line for each active alarm, the worst first; what both ends of a link say is shown once, what a node says of
    itself with its name.
    """
    seen: dict[tuple[str, str], tuple[str, str]] = {}
    nodes = status["nodes"]
    assert isinstance(nodes, list)
    links = {link["link"] for link in status["links"]}  # type: ignore[attr-defined]
    for node in nodes:
        if node["error"]:
            seen[str(node["node"]), "NodeUnreachable"] = ("critical", str(node["error"]))
        for alarm in (node.get("alarms") or {}).get("active", []):
            is_everybodys = is_shared(alarm["type"]) or alarm["resource"] in links
            resource = alarm["resource"] if is_everybodys else f"{node['node']}/{alarm['resource']}"
            seen.setdefault((resource, alarm["type"]), (alarm["severity"], alarm["text"]))
    worst_first = sorted(seen.items(), key=lambda one: (-Severity.of(one[1][0]), one[0]))
    return [
        Text(f"ALARM {resource} {type_}: {severity}: {text}", "bold red")
        for (resource, type_), (severity, text) in worst_first
    ]


def overview(status: dict[str, object]) -> RenderableType:
    """The links and what is wrong with them."""
    return Group(link_table(status), *controller_lines(status), *diagnosis_lines(status), *alarm_lines(status))


def diagnosis_lines(status: dict[str, object]) -> list[Text]:
    """One line for each link to which something seems to have happened: what, why, by which end."""
    links = status["links"]
    assert isinstance(links, list)
    return [
        Text(f"{link['link']}: likely {first['kind']} ({first['reason']}), says its {first['by']}", "yellow")
        for link in links
        for first in (link.get("diagnosis") or [])[:1]
    ]


def controller_lines(status: dict[str, object]) -> list[Text]:
    """One line about the controllers: who leads, with which plan; nothing where the lab has none."""
    found = status.get("controllers")
    if not isinstance(found, list) or not found:
        return []
    leading = [one for one in found if one["is_leading"]]
    words = [f"{one['controller']} leads, plan {one['plan_version']}" for one in leading]
    words += [f"{one['controller']} stands by" for one in found if one["answers"] and not one["is_leading"]]
    words += [f"{one['controller']} does not answer" for one in found if not one["answers"]]
    text = "; ".join(words)
    return [Text(f"controllers: {text}" + ("" if leading else "; nodes go on with the routes they have"))]


def console() -> Console:
    """Standard output; tables keep their columns when it is a file or a pipe."""
    made = Console(highlight=False, soft_wrap=False)
    return made if made.is_terminal else Console(highlight=False, width=140)
