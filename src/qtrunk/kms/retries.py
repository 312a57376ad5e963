"""What requests were given a moment ago, so that a client who lost the answer gets the same keys again (`kms.pools`).

A request is known by its mark, which names the client's certificate and the request (`base.ports.KeySupply`). Times
are of the clock that only goes on: a step of the time of day neither gives a client other keys nor keeps old ones.
"""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

from qtrunk.base.ports import Clock
from qtrunk.kms.consume import NO_MARK
from qtrunk.kms.poolstate import Segment

RETRIES_MAX = 1 << 16
"""Beyond that the oldest are forgotten before their time."""
Part = tuple[Segment, int, int, int]
"""Segment, first unit, octets of a key, keys."""


@dataclass(slots=True)
class _Answer:
    until_s: float
    parts: list[Part]
    file: int
    """Of the consume journal, not after the one that has its records."""


class Retries:
    """The answers of the last `window_s` seconds."""

    def __init__(self, window_s: float, clock: Clock) -> None:
        self.window_s = window_s
        self._clock = clock
        self._answers: OrderedDict[bytes, _Answer] = OrderedDict()

    def given(self, mark: bytes) -> list[Part]:
        """What this very request was given; empty: nothing, or too long ago."""
        answer = self._answers.get(mark) if mark != NO_MARK else None
        return answer.parts if answer is not None and answer.until_s >= self._clock.monotonic_s() else []

    def remember(self, mark: bytes, parts: Sequence[Part], file: int, age_s: float = 0.0) -> None:
        """Parts of the answer to a request; `age_s`: how old it is, as far as a node that starts anew can tell."""
        known = self._answers.get(mark)
        if known is not None and known.until_s < self._clock.monotonic_s():
            # Too old to be given again: this is another request.
            del self._answers[mark]
        elif known is not None:
            # One request may have taken from several segments.
            known.parts += parts
            return
        self._answers[mark] = _Answer(self._clock.monotonic_s() + self.window_s - max(0.0, age_s), list(parts), file)
        if len(self._answers) > RETRIES_MAX:
            self._answers.popitem(last=False)

    def forget(self, mark: bytes) -> None:
        """The keys of this request were not given out after all."""
        self._answers.pop(mark, None)

    def forget_segment(self, segment: Segment) -> None:
        """A segment ends: nothing of it can be given again."""
        for mark in [
            mark for mark, answer in self._answers.items() if any(part[0] is segment for part in answer.parts)
        ]:
            del self._answers[mark]

    def left_s(self, since_s: float) -> float:
        """How long somebody may still ask again for what was given out until then."""
        return since_s + self.window_s - self._clock.monotonic_s()

    def is_over(self, since_s: float) -> bool:
        """Whether nobody may ask again for what was given out until then."""
        return self.left_s(since_s) < 0.0

    def expire(self) -> None:
        """Let go of what nobody may ask for again."""
        now_s = self._clock.monotonic_s()
        while self._answers and next(iter(self._answers.values())).until_s < now_s:
            self._answers.popitem(last=False)

    def first_file(self, current: int) -> int:
        """The first file of the consume journal that has records of these answers; `current` if none has."""
        return min([current, *(answer.file for answer in self._answers.values())])
