"""An enclosure that is opened: an alarm that nothing but an operator ends, and by policy a sealed node."""

import pytest

from qtrunk.control.alarms import OperatorState
from qtrunk.node.config import EnclosureConfig
from qtrunk.node.tamper import FILE, RESOURCE, UNREADABLE_S, TamperWatch, contact_of


class Box:
    """An enclosure with its contact, and the node's watch."""

    def __init__(self, directory, board, clock):
        self.file, self.directory, self.board, self.clock = directory / "value", directory, board, clock
        self.file.write_text("1\n")
        self.told = []
        self.start()

    def start(self):
        contact = contact_of(EnclosureConfig(str(self.file)))
        self.watch = TamperWatch(contact, self.board, self.clock, self.directory, self.told.append)
        self.watch.look()

    def is_(self, text):
        self.file.write_text(text)
        self.watch.look()

    def alarm(self):
        found = self.board.of(RESOURCE)
        return found[0] if found else None

    def say(self, state):
        self.board.act(self.alarm().id, "ada", state, "I was there")
        self.watch.look()


@pytest.fixture
def box(tmp_path, board, clock):
    return Box(tmp_path, board, clock)


def test_a_shut_one_says_nothing(box):
    assert (box.alarm(), box.told, box.watch.is_open) == (None, [], False)
    assert not (box.directory / FILE).exists()


def test_one_look_is_enough_and_shutting_it_is_not(box):
    box.is_("0\n")
    assert (box.alarm().type, box.alarm().severity, box.watch.is_open) == ("TamperInput", "critical", True)
    box.is_("1\n")
    assert "somebody has to acknowledge" in box.alarm().text
    assert not box.watch.is_open
    assert len(box.told) == 1
    box.say(OperatorState.ACK)
    assert box.alarm() is None
    assert not (box.directory / FILE).exists()


def test_acknowledged_while_open_it_ends_when_shut(box):
    box.is_("0")
    box.say(OperatorState.CLOSED)
    assert box.alarm() is not None
    box.is_("1")
    assert box.alarm() is None


def test_the_next_opening_is_not_the_one_that_was_acknowledged(box):
    box.is_("0")
    box.is_("1")
    box.board.act(box.alarm().id, "ada", OperatorState.ACK, "I was there")
    box.is_("0")
    box.is_("1")
    assert box.alarm().operator_state is OperatorState.NONE
    assert len(box.told) == 2


def test_it_outlives_a_restart_and_is_told_once(box, board):
    box.is_("0")
    box.file.write_text("1")
    board.clear(RESOURCE)
    box.start()
    assert box.alarm() is not None
    assert len(box.told) == 1


@pytest.mark.parametrize("text", ["", "x", "10", "\x00"])
def test_anything_but_the_value_for_closed_is_open(box, text):
    box.is_(text)
    assert box.watch.is_open


def test_a_contact_that_cannot_be_read_is_open_after_a_while(box, clock):
    box.file.unlink()
    box.watch.look()
    assert box.alarm() is None, "its driver may just start anew"
    clock.now_s += UNREADABLE_S
    box.watch.look()
    assert "cannot be read" in box.alarm().text
    assert box.watch.is_open


def test_what_was_kept_and_cannot_be_read_counts_as_tampered(box):
    (box.directory / FILE).write_text("{")
    box.start()
    assert box.alarm() is not None
    assert box.watch.is_tampered
