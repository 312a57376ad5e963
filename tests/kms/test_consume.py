"""The consume journal: what was flushed is there whatever happens; what was not may be torn, and that is no damage."""

import errno
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qtrunk.base.errors import StoreError
from qtrunk.kms import consume
from qtrunk.kms.consume import COLLECTED, INITIATED, NO_MARK, RECORD_OCTETS, ConsumeJournal, JournalDamagedError, Used

MARK = bytes(range(16))


def add(journal: ConsumeJournal, unit: int, mark: bytes = NO_MARK) -> int:
    return journal.append(INITIATED, 1, 2, unit, 32, 3, 1000 + unit, mark)


def opened(path: Path, first_file: int = 1, after: int = 0) -> tuple[ConsumeJournal, list[Used]]:
    journal = ConsumeJournal(path)
    return journal, journal.replay(first_file, after)


def test_what_was_flushed_is_read_again_in_order(tmp_path: Path) -> None:
    journal, before = opened(tmp_path / "c")
    assert before == []
    add(journal, 8, MARK)
    add(journal, 20)
    assert journal.flush() == 2
    add(journal, 32)
    journal.close()
    again, found = opened(tmp_path / "c")
    assert [(used.sequence, used.unit, used.keys, used.mark) for used in found] == [
        (1, 8, 3, MARK),
        (2, 20, 3, NO_MARK),
    ]
    assert add(again, 40) == 3
    again.flush()
    again.close()
    assert [used.unit for used in opened(tmp_path / "c", after=1)[1]] == [8, 20, 40]


def test_files_follow_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(consume, "RECORDS_MAX", 5)
    monkeypatch.setattr(consume, "_OCTETS_MAX", 6 * RECORD_OCTETS)
    journal, _ = opened(tmp_path / "c")
    for unit in range(17):
        add(journal, unit)
        if unit % 4 == 3:
            journal.flush()
            journal.prepare()
    journal.flush()
    journal.close()
    assert journal.files()[:4] == [1, 2, 3, 4]
    assert [used.unit for used in opened(tmp_path / "c")[1]] == list(range(17))
    third = opened(tmp_path / "c", first_file=3)[1]
    assert [used.unit for used in third] == list(range(10, 17))


def test_answers_that_were_not_seen_to_leave_are_in_doubt(tmp_path: Path) -> None:
    journal, _ = opened(tmp_path / "c")
    for unit in range(4):
        add(journal, unit, MARK)
    journal.flush()
    journal.answered = 2
    add(journal, 4, MARK)
    journal.flush()
    journal.close()
    again, found = opened(tmp_path / "c")
    assert [used.is_answered for used in found] == [True, True, False, False, False]
    add(again, 5)
    again.flush()
    again.answered = 6
    again.mark_answered()
    again.flush()
    again.close()
    assert [used.is_answered for used in opened(tmp_path / "c", after=5)[1]] == [True] * 6
    assert [used.unit for used in opened(tmp_path / "c", after=6)[1]] == [0, 1, 2, 3, 4], "no client asks for it again"
    journal = ConsumeJournal(tmp_path / "c")
    assert [used.unit for used in journal.replay(1, after=6, since_unix_ms=1003)] == [3, 4]


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_a_torn_tail_is_not_damage_and_a_damaged_record_is(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("torn") / "c"
    journal, _ = opened(path)
    flushed = data.draw(st.integers(0, 6), label="flushed")
    for unit in range(flushed):
        add(journal, unit)
        journal.flush()
    tail = data.draw(st.integers(1, 6), label="tail")
    for unit in range(flushed, flushed + tail):
        add(journal, unit)
    journal.flush()
    journal.close()
    file = path / "00000001.log"
    # A loss of power may keep any sectors of the last write, which nobody was told of; here any records and parts.
    kept = []
    with file.open("r+b") as out:
        for unit in range(flushed, flushed + tail):
            what = data.draw(st.sampled_from(["kept", "gone", "torn"]), label=f"record {unit}")
            if what == "kept":
                kept.append(unit)
                continue
            out.seek(RECORD_OCTETS * (1 + unit) + (0 if what == "gone" else RECORD_OCTETS // 2))
            out.write(bytes(RECORD_OCTETS if what == "gone" else RECORD_OCTETS // 2))
    again, found = opened(path)
    assert [used.unit for used in found] == [*range(flushed), *kept]
    add(again, 99)
    again.flush()
    again.close()
    third, found = opened(path)
    assert [used.unit for used in found] == [*range(flushed), *kept, 99]
    third.close()
    if flushed:
        # All of this was acknowledged, so a change is damage.
        hit = data.draw(st.integers(0, flushed - 1), label="hit")
        with file.open("r+b") as out:
            out.seek(RECORD_OCTETS * (1 + hit) + 30)
            out.write(b"\xff\xff")
        with pytest.raises(JournalDamagedError, match="durable do not read"):
            opened(path)


@pytest.mark.parametrize("failing", ["pwrite", "fdatasync"])
def test_after_a_failed_flush_everything_goes_to_a_fresh_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    journal, _ = opened(tmp_path / "c")
    add(journal, 1)
    journal.flush()
    add(journal, 2)

    def fail(*_: object) -> int:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as broken:
        broken.setattr(os, failing, fail)
        with pytest.raises(StoreError, match="nothing was recorded"):
            journal.flush()
    assert journal.durable == 1
    assert [used.unit for used in journal.waiting(1, 2)] == [2]
    add(journal, 3)
    assert journal.flush() == 3
    journal.close()
    assert journal.files() == [1, 2]
    assert [used.unit for used in opened(tmp_path / "c")[1]] == [1, 2, 3]


def test_a_foreign_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "00000001.log").write_bytes(b"x" * 640)
    with pytest.raises(JournalDamagedError, match="head"):
        opened(tmp_path / "c")


def test_history_tells_who_was_given_a_place_and_when(tmp_path: Path) -> None:
    journal, _ = opened(tmp_path / "c")
    add(journal, 8)
    journal.append(COLLECTED, 1, 2, 12, 32, 1, 5000, NO_MARK)
    journal.append(COLLECTED, 1, 3, 12, 32, 1, 6000, NO_MARK)
    journal.flush()
    assert journal.history(1, 2, 12) == [{"to": "initiator", "unix_s": 1.008}, {"to": "target", "unix_s": 5.0}]
    assert journal.history(1, 2, 20) == []
    journal.close()
