"""Is the neighbour there, does it know the same adverts, and what time is it there? Hellos over the relay's channel.

Who has something to do asks (`is_question`) every QUICK_S, who is at rest every SLOW_S, and whoever is asked says hello
in answer at once: as dead peer detection does it (RFC 3706, section 5), the one who needs to know asks, and one at rest
need not speak. Anything that is heard is an answer. A neighbour that is asked and says nothing is asked every QUICK_S;
after SILENCE_S without a word of it, it is gone. That finds a process that hangs. A machine or a path that is gone the
operating system finds, whatever the pace (`channel.Channel.watch`).

A hello names the sender's clocks, and gives the last hello's own time back with how long it lay (as NTP does it, RFC
5905 section 8, without a wait in between), so every hello is a measurement of the neighbour's time of day.

Sans I/O. Errors: WireError.
"""

from dataclasses import dataclass
from math import isfinite

from qtrunk.base.errors import WireError
from qtrunk.base.ids import LinkId
from qtrunk.base.ports import Clock
from qtrunk.base.wire import Message, decode, encode

QUICK_S, SLOW_S = 2.0, 60.0
CALM_S = 10.0
"""A node asks seldom once nothing has happened in it for so long."""
JOINT = 0.7
"""Of a period: who is so far on is asked along with others, so that a node wakes once for all its links."""
SILENCE_S = 5.0
ROUND_TRIP_MAX_S = 5.0
"""What took longer says nothing of the time."""
TICKS_APART_S = 0.1
"""Two clocks may differ so much over the time that a hello lies: a short round trip may then seem less than nothing."""


class Greeting(Message, frozen=True, tag="greeting"):
    """A hello."""

    digest: bytes
    """Of the adverts that the sender knows (`node.advert`)."""
    is_question: bool
    sent_s: float
    """When it was sent, by a clock of the sender that only goes on; means nothing to others but to give it back."""
    unix_s: float
    """The sender's time of day."""
    echo_s: float | None = None
    """`sent_s` of the receiver's hello that the sender heard last; None: of none."""
    held_s: float = 0.0
    """How long ago that came, s."""


@dataclass(frozen=True, slots=True)
class Measured:
    """A neighbour's time, from one hello."""

    ahead_s: float
    """Its Unix time less the own monotonic time: a step of the own clock does not make it wrong."""
    round_trip_s: float
    at_s: float
    """Own monotonic time."""


@dataclass(slots=True)
class _Neighbour:
    heard_s: float
    said_s: float = float("-inf")
    asked_s: float | None = None
    """When it was asked first since it was heard last."""
    echo: tuple[float, float] | None = None
    """Its own time in its last hello, and when that came."""


class Greeter:
    """One node's hellos over all its links."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._neighbours: dict[LinkId, _Neighbour] = {}

    def up(self, link: LinkId) -> None:
        """A new connection."""
        self._neighbours[link] = _Neighbour(self._clock.monotonic_s())

    def down(self, link: LinkId) -> None:
        """It is gone."""
        self._neighbours.pop(link, None)

    def heard(self, link: LinkId) -> None:
        """Something came of the neighbour over a link."""
        neighbour = self._neighbours[link]
        neighbour.heard_s, neighbour.asked_s = self._clock.monotonic_s(), None

    def due(self, *, is_quick: bool) -> list[LinkId]:
        """Whom to ask now: where anybody is due, all who would soon be."""
        now_s = self._clock.monotonic_s()
        known = self._neighbours.items()
        spans = {link: (now_s - one.said_s) / _period_s(one, is_quick=is_quick) for link, one in known}
        if max(spans.values(), default=0.0) < 1.0:
            return []
        return [link for link, span in spans.items() if span >= JOINT]

    def silent(self, *, is_quick: bool) -> list[LinkId]:
        """Who is gone."""
        now_s = self._clock.monotonic_s()
        return [link for link, one in self._neighbours.items() if now_s >= _gone_s(one, is_quick=is_quick)]

    def rest_s(self, *, is_quick: bool) -> float:
        """Until somebody is due or gone, and a little more."""
        until_s = [
            min(one.said_s + _period_s(one, is_quick=is_quick), _gone_s(one, is_quick=is_quick))
            for one in self._neighbours.values()
        ]
        return max(0.0, min(until_s, default=float("inf")) - self._clock.monotonic_s()) + 1e-3

    def say(self, link: LinkId, digest: bytes, *, is_question: bool) -> bytes:
        """What to send as a hello."""
        now_s, neighbour = self._clock.monotonic_s(), self._neighbours[link]
        neighbour.said_s = now_s
        if is_question and neighbour.asked_s is None:
            neighbour.asked_s = now_s
        echo = neighbour.echo
        hello = Greeting(
            digest=digest,
            is_question=is_question,
            sent_s=now_s,
            unix_s=self._clock.unix_s(),
            echo_s=echo[0] if echo else None,
            held_s=now_s - echo[1] if echo else 0.0,
        )
        return encode(hello)

    def receive(self, link: LinkId, octets: bytes) -> tuple[Greeting, bool, Measured | None]:
        """A hello of the neighbour: what it says, whether to answer it, and what it tells of the time there."""
        hello = decode(octets, Greeting)
        for name, value in (("sent_s", hello.sent_s), ("unix_s", hello.unix_s), ("held_s", hello.held_s)):
            if not isfinite(value):
                raise WireError(f"greeting: {name} is no time")
        now_s, neighbour = self._clock.monotonic_s(), self._neighbours[link]
        neighbour.echo = (hello.sent_s, now_s)
        # One of two that cross is as good as an answer.
        is_wanted = hello.is_question and now_s >= neighbour.said_s + QUICK_S / 2
        if hello.echo_s is None:
            return hello, is_wanted, None
        round_trip_s = now_s - hello.echo_s - hello.held_s
        if not -TICKS_APART_S <= round_trip_s <= ROUND_TRIP_MAX_S or hello.held_s < 0.0:
            return hello, is_wanted, None
        round_trip_s = max(0.0, round_trip_s)
        return hello, is_wanted, Measured(hello.unix_s - (now_s - round_trip_s / 2), round_trip_s, now_s)


def _period_s(one: _Neighbour, *, is_quick: bool) -> float:
    return QUICK_S if is_quick or one.asked_s is not None else SLOW_S


def _gone_s(one: _Neighbour, *, is_quick: bool) -> float:
    """When it is gone, unless it says something. Of one that is asked every QUICK_S, silence began before that."""
    if one.asked_s is None:
        return float("inf")
    return max(one.heard_s + SILENCE_S, one.asked_s + SILENCE_S - (QUICK_S if is_quick else 0.0))
