"""Refused key requests: one is a warning, many are graver, and neither flaps."""

from qtrunk.api.tls import PeerIdentity
from qtrunk.node.refusals import RESOURCE, Refusals

SAE = PeerIdentity(("firewall",), (), "ab" * 32, 2e9)
NOBODY = PeerIdentity((), (), "cd" * 32, 2e9)


def up(board):
    return [(one.type, one.severity) for one in board.of(RESOURCE)]


def test_one_is_a_warning_for_five_minutes_after_the_last(clock, board):
    refusals = Refusals(clock, board)
    refusals.look()
    assert up(board) == []
    refusals.note(SAE)
    refusals.look()
    assert up(board) == [("SaeAuthFailure", "warning")]
    assert "the last: firewall" in board.of(RESOURCE)[0].text
    for seconds, is_up in ((61, True), (299, True), (2, False)):
        clock.now_s += seconds
        refusals.look()
        assert bool(up(board)) is is_up
    assert board.all()[0].count > 1


def test_thirty_a_minute_are_major_until_there_are_few(clock, board):
    refusals = Refusals(clock, board)
    for count in (29, 1):
        for _ in range(count):
            refusals.note(NOBODY)
        refusals.look()
        assert up(board) == [("SaeAuthFailure", "warning" if count == 29 else "major")]
    assert "certificate cdcdcdcdcdcdcdcd" in board.of(RESOURCE)[0].text
    for _ in range(12):
        clock.now_s += 10
        refusals.note(SAE)
        refusals.look()
    # Six a minute for less than a minute after the thirty left the window.
    assert up(board) == [("SaeAuthFailure", "major")]
    for _ in range(2):
        clock.now_s += 10
        refusals.note(SAE)
        refusals.look()
    assert up(board) == [("SaeAuthFailure", "warning")]


def test_a_flood_is_counted_in_bounds(clock, board):
    refusals = Refusals(clock, board)
    for _ in range(5000):
        refusals.note(SAE)
    refusals.look()
    assert board.of(RESOURCE)[0].text.startswith("1000 key requests")
