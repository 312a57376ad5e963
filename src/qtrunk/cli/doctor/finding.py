"""What a check of `qtrunk doctor` finds: how bad it is, on which object, why it matters and what to do about it."""

from enum import IntEnum

import msgspec


class Level(IntEnum):
    """How bad; the worst of all findings is the exit status."""

    OK = 0
    WARNING = 1
    """Works now, and will not for ever or not as well as it should."""
    ERROR = 2
    """Something does not work, or is not safe."""


class Finding(msgspec.Struct, frozen=True):
    """One thing that is wrong. No secret is ever in it."""

    level: Level
    on: str
    """The object: `node ada`, `link ada-bert`, a file."""
    what: str
    why: str
    """Why it matters: what does not work, or soon will not."""
    fix: str

    def as_json(self) -> dict[str, str]:
        """Plain values, the level as a word."""
        return {
            "level": self.level.name.lower(),
            "on": self.on,
            "what": self.what,
            "why": self.why,
            "fix": self.fix,
        }


def error(on: str, what: str, why: str, fix: str) -> Finding:
    """Something does not work, or is not safe."""
    return Finding(Level.ERROR, on, what, why, fix)


def warning(on: str, what: str, why: str, fix: str) -> Finding:
    """Something that will not work for ever, or not as well as it should."""
    return Finding(Level.WARNING, on, what, why, fix)
