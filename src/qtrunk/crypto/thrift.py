"""Thrift with authentication key: an attacker who breaks exchanges must not make the ends spend all of it.

Whoever spends says so, and says when it bought something; after a few losses in a row comes a pause, ever longer.
"""

FREE_LOSSES = 4
LOSS_PAUSE_S, LOSS_PAUSE_MAX_S = 4.0, 3600.0
"""After so many losses of authentication key in a row each further one costs a pause, twice as long every time."""


class Thrift:
    """Whether authentication key buys something. Spent and not followed by a success it is taken for lost."""

    def __init__(self) -> None:
        self.losses = 0
        """In a row."""
        self.not_before_s = 0.0
        """No more is to be spent until then."""

    def spent(self, now_s: float) -> None:
        """A portion is gone."""
        self.losses += 1
        if self.losses > FREE_LOSSES:
            pause_s = LOSS_PAUSE_S * 2.0 ** min(30, self.losses - FREE_LOSSES - 1)
            self.not_before_s = now_s + min(LOSS_PAUSE_MAX_S, pause_s)

    def succeeded(self) -> None:
        """What it was spent for came about."""
        self.losses, self.not_before_s = 0, 0.0
