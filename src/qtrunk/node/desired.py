"""What controllers set at a node by ETSI GS QKD 015, on the disk before it is in force and again after a start.

{"version": 1, "changed_unix_s": …, "links_off": ["a-b"], "apps": [["bank", "vault", 1000, null, 3]]}
"""

import os
from collections.abc import Sequence
from pathlib import Path

import msgspec

from qtrunk.base.errors import ConfigError, StoreError
from qtrunk.base.ids import LinkId, SaeId
from qtrunk.kms.applications import Pair, Setting


class _File(msgspec.Struct, frozen=True):
    version: int
    changed_unix_s: float
    links_off: list[str]
    apps: Sequence[tuple[str, str, int | None, int | None, int | None]]


class Desired:
    """One node's. Change a copy's worth of it through `store`."""

    def __init__(self, path: Path) -> None:
        """ConfigError where the file cannot be read: a node must not start with settings that it does not know."""
        self._path = path
        self.links_off: frozenset[LinkId] = frozenset()
        self.apps: dict[Pair, Setting] = {}
        self.changed_unix_s = 0.0
        if not path.exists():
            return
        try:
            found = msgspec.json.decode(path.read_bytes(), type=_File)
        except (OSError, msgspec.MsgspecError) as error:
            raise ConfigError([f"{path}: {error}"]) from error
        self.links_off = frozenset(LinkId(link) for link in found.links_off)
        self.changed_unix_s = found.changed_unix_s
        self.apps = {
            (SaeId(initiator), SaeId(target)): Setting(max_bps=most, min_bps=least, priority=priority)
            for initiator, target, most, least, priority in found.apps
        }

    def store(self, links_off: frozenset[LinkId], apps: dict[Pair, Setting], now_unix_s: float) -> None:
        """Write what is wanted from now on; StoreError where it cannot be, and nothing has changed."""
        rows = [
            (*pair, setting.max_bps, setting.min_bps, setting.priority)
            for pair, setting in sorted(apps.items())
            if setting != Setting()
        ]
        octets = msgspec.json.encode(_File(1, now_unix_s, sorted(links_off), rows))
        part = self._path.with_suffix(".part")
        try:
            with part.open("wb") as out:
                out.write(octets)
                out.flush()
                os.fsync(out.fileno())
            part.replace(self._path)
            directory = os.open(self._path.parent, os.O_RDONLY)
            try:
                os.fsync(directory)
            finally:
                os.close(directory)
        except OSError as error:
            raise StoreError(f"{self._path}: {error.strerror}") from error
        self.links_off, self.changed_unix_s = links_off, now_unix_s
        self.apps = {pair: setting for pair, setting in apps.items() if setting != Setting()}
