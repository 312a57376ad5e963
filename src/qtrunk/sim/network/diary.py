"""What a scripted day was: what each tenant saw in each part of it, what happened when, which alarms there were.

For days in simulation (`sim.network.day`) and with real processes alike.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field


@dataclass
class Seen:
    """What one tenant saw in one part of the day."""

    done: int = 0
    slowest_s: float = 0.0
    failures: list[tuple[str, str]] = field(default_factory=list)
    """The part of the day in which each of them ended, and why."""


@dataclass
class Diary:
    """Of one day. Seconds are since its beginning."""

    seen: dict[tuple[str, str], dict[str, Seen]] = field(default_factory=dict)
    """By the tenant's SAEs, initiator and target, and the part of the day."""
    log: list[tuple[float, str, str]] = field(default_factory=list)
    """When, in which part, what happened."""
    alarms: dict[tuple[str, str], tuple[float, float]] = field(default_factory=dict)
    """By resource and type: when it was seen up first and last."""
    excused: set[tuple[str, str]] = field(default_factory=set)
    """Part of the day, and an SAE whose node was dead in it."""
    asked_s: float = 0.0
    """When tenants began to ask: alarms that were over by then are of no use to the report."""

    def note_alarms(self, up: Iterable[tuple[str, str]], now_s: float) -> None:
        """These are up now, by resource and type."""
        for name in up:
            self.alarms[name] = (self.alarms.get(name, (now_s, now_s))[0], now_s)

    def wrong(self) -> list[str]:
        """Failures that nothing excuses."""
        return [
            f"{initiator} to {target}, {part}, {text}"
            for (initiator, target), parts in self.seen.items()
            for part, seen in parts.items()
            for end, text in seen.failures
            if not {(one, sae) for one in (part, end) for sae in (initiator, target)} & self.excused
        ]

    def report(self) -> str:
        """All of it as tables in Markdown."""
        parts = list(dict.fromkeys(part for _, part, _ in self.log))
        lines = ["| tenant | " + " | ".join(parts) + " |", "| --- " * (1 + len(parts)) + "|"]
        for (initiator, target), seen in self.seen.items():
            cells = [_cell(seen.get(part, Seen())) for part in parts]
            lines.append(f"| {initiator} to {target.split('-')[-1]} | " + " | ".join(cells) + " |")
        lines += ["", "| at | part | what happened |", "| --- | --- | --- |"]
        lines += [f"| {at_s:.0f} s | {part} | {what} |" for at_s, part, what in self.log]
        lines += ["", "| alarm | of | seen up from | to |", "| --- | --- | --- | --- |"]
        lines += [
            f"| `{type_}` | {resource} | {up_s:.0f} s | {down_s:.0f} s |"
            for (resource, type_), (up_s, down_s) in sorted(self.alarms.items(), key=lambda one: (one[1], one[0]))
            if down_s >= self.asked_s
        ]
        return "\n".join(lines) + "\n"


def _cell(seen: Seen) -> str:
    failed = f", **{len(seen.failures)} failed**" if seen.failures else ""
    return f"{seen.done}{failed}, {1000 * seen.slowest_s:.0f} ms"
