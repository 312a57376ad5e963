"""What is different between two topologies of one network, in words, and what of it a running network cannot take.

Nodes, links, SAEs, demands and tenants may come and go while all else stays in service; the last three may also change.
What a link is made of, where a node listens and how the key interface reads the standard are fixed while processes run.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Generic, Protocol, TypeVar

from qtrunk.base.errors import ConfigError
from qtrunk.base.ids import NodeId
from qtrunk.config.problem import shown
from qtrunk.topology import Demand, Link, Topology


class _Named(Protocol):
    @property
    def id(self) -> str: ...


T = TypeVar("T", bound=_Named)
_STOPPED = "stop the lab (`qtrunk down`) to change it"


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """From one topology to another."""

    lines: tuple[str, ...]
    """For people: `+` what comes, `-` what goes, `~` what changes."""
    refused: tuple[str, ...]
    """What cannot change while the network runs, and why."""
    new_nodes: tuple[NodeId, ...]
    gone_nodes: tuple[NodeId, ...]
    new_links: tuple[Link, ...]
    gone_links: tuple[Link, ...]

    def check_live(self) -> None:
        """ConfigError with all that a running network cannot take."""
        if self.refused:
            raise ConfigError(list(self.refused))


def change(old: Topology, new: Topology) -> Change:
    """What turns `old` into `new`."""
    links, nodes = _Parts("link", old.links, new.links), _Parts("node", old.nodes, new.nodes)
    saes, tenants = _Parts("SAE", old.saes, new.saes), _Parts("tenant", old.tenants, new.tenants)
    refused = [f"{name}: {_STOPPED}" for name in ("name", "key_api", "neighbours") if _differ(old, new, name)]
    refused += [f"links.{line}; {_STOPPED}, or take it out first" for line in links.changed()]
    refused += [f"nodes.{line}; {_STOPPED}" for line in nodes.changed(("name", "name_local"))]
    refused += [
        f"saes: {one.id}: moves from node {old_one.node} to {one.node}; take it out first, or give it another ID"
        for old_one, one in saes.both()
        if old_one.node != one.node
    ]
    lines = [line for parts in (nodes, links, saes, tenants) for line in parts.lines()]
    return Change(
        lines=(*lines, *_demands(old, new), *(f"~ {name}" for name in ("name", "title") if _differ(old, new, name))),
        refused=tuple(refused),
        new_nodes=tuple(node.id for node in nodes.came()),
        gone_nodes=tuple(node.id for node in nodes.went()),
        new_links=tuple(links.came()),
        gone_links=tuple(links.went()),
    )


class _Parts(Generic[T]):
    """The parts of one kind, before and after, by ID."""

    def __init__(self, kind: str, old: Iterable[T], new: Iterable[T]) -> None:
        self._kind = kind
        self._old: Mapping[str, T] = {one.id: one for one in old}
        self._new: Mapping[str, T] = {one.id: one for one in new}

    def came(self) -> list[T]:
        """New ones."""
        return [one for name, one in self._new.items() if name not in self._old]

    def went(self) -> list[T]:
        """Those that are gone."""
        return [one for name, one in self._old.items() if name not in self._new]

    def both(self) -> list[tuple[T, T]]:
        """Those that stay, before and after."""
        return [(one, self._new[name]) for name, one in self._old.items() if name in self._new]

    def changed(self, but: Collection[str] = ()) -> list[str]:
        """Those that stay and differ, with the fields that do, but for some."""
        found = [(one.id, _differences(before, one, but)) for before, one in self.both()]
        return [f"{name}: {', '.join(differences)}" for name, differences in found if differences]

    def lines(self) -> list[str]:
        """For people."""
        came, went = ([f"{sign} {self._kind} {one.id}" for one in ones] for sign, ones in self._signed())
        return [*came, *went, *(f"~ {self._kind} {line}" for line in self.changed())]

    def _signed(self) -> tuple[tuple[str, list[T]], tuple[str, list[T]]]:
        return ("+", self.came()), ("-", self.went())


def _differences(old: object, new: object, but: Collection[str]) -> list[str]:
    """`field before -> after`; of a table in it only its name."""
    found: list[str] = []
    for entry in fields(old):  # type: ignore[arg-type]  # parts of a topology are dataclasses
        before, after = getattr(old, entry.name), getattr(new, entry.name)
        if entry.name not in but and before != after:
            is_plain = isinstance(before, str | int | float) and isinstance(after, str | int | float)
            found.append(f"{entry.name} {shown(before)} -> {shown(after)}" if is_plain else entry.name)
    return found


def _differ(old: Topology, new: Topology, name: str) -> bool:
    return bool(getattr(old, name) != getattr(new, name))


def _demands(old: Topology, new: Topology) -> list[str]:
    before, after = ({frozenset(one.between): one for one in ones.demands} for ones in (old, new))
    lines = [f"+ demand {_pair(one)} {one.rate_bps:g} bit/s" for pair, one in after.items() if pair not in before]
    lines += [f"- demand {_pair(one)}" for pair, one in before.items() if pair not in after]
    return lines + [
        f"~ demand {_pair(one)} {before[pair].rate_bps:g} -> {one.rate_bps:g} bit/s"
        for pair, one in after.items()
        if pair in before and before[pair].rate_bps != one.rate_bps
    ]


def _pair(demand: Demand) -> str:
    return f"{demand.between[0]} {demand.between[1]}"
