"""Every mistake of a file, collected: one line each, with its path, what is wrong and what is allowed.

A path is written as TOML would: `links.gu-an-xiong-xian.length_km`, `saes[2].node`; indices count from 0.
Values from the file are shown quoted, shortened and without control characters, because the lines go to a
terminal.
"""

import datetime as dt
import difflib
import json
import re
from collections.abc import Iterable, Sequence

from qtrunk.base.errors import ConfigError

_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")
_SHOWN_CHARACTERS = 40
_NAMES_LISTED = 20
# Similarity is quadratic in the length of the words, and no name is longer than this.
_COMPARED_CHARACTERS = 64
_INT_SHOWN_UP_TO = 10**15


class Problems:
    """What is wrong with a file, in the order in which it was found."""

    def __init__(self) -> None:
        self._lines: list[str] = []

    def __len__(self) -> int:
        return len(self._lines)

    def add(self, path: str, text: str) -> None:
        """Note that the value at `path` is wrong because of `text`."""
        self._lines.append(f"{path}: {text}")

    def raise_if_any(self) -> None:
        """ConfigError with all of them, if there are any."""
        if self._lines:
            raise ConfigError(self._lines)


def child(path: str, key: str) -> str:
    """The path of a key in the table at `path` (the empty path is the file itself)."""
    name = key if _BARE_KEY.fullmatch(key) else quoted(key)
    return f"{path}.{name}" if path else name


def quoted(text: str) -> str:
    """Text of the file in double quotes: shortened, and never with a character that acts on a terminal."""
    short = text if len(text) <= _SHOWN_CHARACTERS else text[:_SHOWN_CHARACTERS] + "…"
    return json.dumps(short, ensure_ascii=not short.isprintable())


def shown(value: object) -> str:
    """A value of the file as a problem names it; long ones are described instead."""
    match value:
        case str():
            return quoted(value)
        case bool():
            return "true" if value else "false"
        case int():
            # Python refuses to print integers of many thousand digits, which hexadecimal TOML can hold.
            return str(value) if abs(value) < _INT_SHOWN_UP_TO else f"a {value.bit_length()}-bit integer"
        case float():
            return f"{value:.12g}"
        case list():
            return f"a list of {len(value)}"
        case dict():
            return "a table"
        case dt.datetime() | dt.date() | dt.time():
            return value.isoformat()
        case _:
            raise AssertionError(f"{type(value)} is no TOML type")


def choices(wrong: str, allowed: Iterable[str], noun: str) -> str:
    """The end of a message about a wrong name: the likeliest right one, and the list of all."""
    names = list(allowed)
    if not names:
        return f"; there are no {noun}"
    near = difflib.get_close_matches(wrong[:_COMPARED_CHARACTERS], names, n=1)
    guess = f"; did you mean {quoted(near[0])}?" if near else ";"
    return f"{guess} {noun}: {listed(names)}"


def listed(names: Sequence[str]) -> str:
    """Names with commas between, a long list cut."""
    more = len(names) - _NAMES_LISTED
    return ", ".join(names[:_NAMES_LISTED]) + (f" and {more} more" if more > 0 else "")
