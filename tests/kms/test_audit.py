"""The audit log: nothing happens unrecorded, and what was recorded cannot be changed unseen."""

import errno
import json
import os

import pytest

from qtrunk.base.errors import AuthenticationFailed, StoreError
from qtrunk.kms import audit


class Clock:
    def unix_s(self):
        return 1_800_000_000.25

    def monotonic_s(self):
        return 0.0


def filled(directory, count=4):
    log = audit.AuditLog(directory, Clock())
    for number in range(count):
        log.record(
            "operator ada",
            "revoke",
            f"sae s{number}",
            details={"n": number, "names": ["x", "y"], "is": True, "no": None},
        )
    head = log.head
    log.close()
    return head


def test_records_come_back_in_order_and_verify(tmp_path):
    head = filled(tmp_path)
    assert head.sequence == 4
    assert audit.verify(tmp_path) == head
    found = list(audit.records(tmp_path, after=2))
    assert [(record.sequence, record.on) for record in found] == [(3, "sae s2"), (4, "sae s3")]
    assert found[0].time == "2027-01-15T08:00:00.250+00:00"
    assert (tmp_path / audit.LOG_NAME).stat().st_mode & 0o777 == 0o600


def test_an_opened_log_goes_on_where_it_was(tmp_path):
    filled(tmp_path)
    assert filled(tmp_path, 1).sequence == 5
    assert audit.verify(tmp_path).sequence == 5


def changed(line, **members):
    return json.dumps({**json.loads(line), **members}, sort_keys=True, separators=(",", ":")).encode()


@pytest.mark.parametrize(
    "edit",
    [
        lambda lines: [changed(lines[0], who="nobody"), *lines[1:]],
        lambda lines: [*lines[:-1], changed(lines[-1], outcome="failed")],
        lambda lines: [*lines[:1], *lines[2:]],
        lambda lines: [lines[1], lines[0], *lines[2:]],
        lambda lines: lines[:-1],
        lambda lines: lines[:1],
        lambda lines: [],
        lambda lines: [*lines, lines[-1]],
        lambda lines: [*lines, b"nonsense"],
    ],
    ids=["first", "last", "dropped", "swapped", "cut by one", "cut", "emptied", "doubled", "nonsense"],
)
def test_any_edit_is_found_by_verify_and_at_the_next_opening(tmp_path, edit):
    filled(tmp_path)
    path = tmp_path / audit.LOG_NAME
    path.write_bytes(b"".join(line + b"\n" for line in edit(path.read_bytes().splitlines())))
    with pytest.raises(AuthenticationFailed):
        audit.verify(tmp_path)
    with pytest.raises(AuthenticationFailed):
        audit.AuditLog(tmp_path, Clock())


def test_a_removed_or_damaged_head_is_found(tmp_path):
    filled(tmp_path)
    (tmp_path / audit.HEAD_NAME).write_bytes(b"{")
    with pytest.raises(AuthenticationFailed, match="damaged"):
        audit.verify(tmp_path)
    (tmp_path / audit.HEAD_NAME).unlink()
    with pytest.raises(AuthenticationFailed, match="gone"):
        audit.verify(tmp_path)


def test_a_history_written_anew_by_the_owner_of_both_files_fails_against_a_noted_head(tmp_path):
    noted = filled(tmp_path)
    for name in (audit.LOG_NAME, audit.HEAD_NAME):
        (tmp_path / name).unlink()
    filled(tmp_path, 6)
    rewritten = audit.verify(tmp_path)
    assert audit.verify(tmp_path, rewritten) == rewritten
    with pytest.raises(AuthenticationFailed, match="noted"):
        audit.verify(tmp_path, audit.Head(noted.sequence, "00" * 32))


def test_a_crash_between_line_and_head_or_inside_a_line_loses_nothing_that_was_acknowledged(tmp_path):
    filled(tmp_path, 3)
    old_head = (tmp_path / audit.HEAD_NAME).read_bytes()
    filled(tmp_path, 1)
    (tmp_path / audit.HEAD_NAME).write_bytes(old_head)
    with (tmp_path / audit.LOG_NAME).open("ab") as out:
        out.write(b'{"half')
    assert filled(tmp_path, 1).sequence == 5
    assert audit.verify(tmp_path).sequence == 5


def test_when_the_disk_takes_nothing_the_act_does_not_happen_and_the_log_stays_whole(tmp_path, monkeypatch):
    log = audit.AuditLog(tmp_path, Clock())
    log.record("ada", "first")
    done = []

    def full(*_arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    for call in ("pwrite", "fsync"):
        with monkeypatch.context() as patch:
            patch.setattr(os, call, full)
            with pytest.raises(StoreError, match="refused"), log.during("ada", "export"):
                done.append(call)
            assert "No space" in log.problem
    assert not done
    with log.during("ada", "export"):
        done.append("export")
    assert log.problem is None
    assert [record.outcome for record in audit.records(tmp_path)] == ["done", "begun", "done"]
    log.close()


def test_when_the_disk_takes_the_line_and_not_the_head_the_line_does_not_stay(tmp_path, monkeypatch):
    log = audit.AuditLog(tmp_path, Clock())
    log.record("ada", "first")
    with monkeypatch.context() as patch:
        patch.setattr(
            audit.AuditLog, "_write_head", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOSPC, "No space"))
        )
        with pytest.raises(StoreError, match="refused"):
            log.record("ada", "revoke")
    assert [record.what for record in audit.records(tmp_path)] == ["first"]
    log.record("ada", "second")
    assert [record.what for record in audit.records(tmp_path)] == ["first", "second"]
    log.close()


def test_a_failed_act_is_recorded_without_the_text_of_errors_that_nobody_foresaw(tmp_path):
    log = audit.AuditLog(tmp_path, Clock())
    with pytest.raises(ValueError, match="0123"), log.during("ada", "export", "k"):
        raise ValueError("key 0123456789abcdef")
    log.close()
    assert [record.outcome for record in audit.records(tmp_path)] == ["begun", "failed"]
    assert b"0123" not in (tmp_path / audit.LOG_NAME).read_bytes()


@pytest.mark.parametrize(
    "value", [b"octets", bytearray(b"k"), 1.5, {"a": 1}, [b"k"], [1], "x" * 5000, 1 << 64], ids=repr
)
def test_octets_and_objects_cannot_be_recorded(tmp_path, value):
    log = audit.AuditLog(tmp_path, Clock())
    with pytest.raises(TypeError):
        log.record("ada", "export", details={"thing": value})
    log.close()
    assert audit.verify(tmp_path).sequence == 0


def test_two_writers_take_turns_and_make_one_chain(tmp_path):
    first, second = audit.AuditLog(tmp_path, Clock()), audit.AuditLog(tmp_path, Clock())
    for log in (first, second, second, first):
        log.record("ada", "something")
    assert audit.verify(tmp_path) == first.head
    assert first.head.sequence == 4
    first.close()
    second.close()


def test_a_log_that_is_cut_under_its_writer_takes_nothing_more(tmp_path):
    log = audit.AuditLog(tmp_path, Clock())
    log.record("ada", "first")
    log.record("ada", "second")
    lines = (tmp_path / audit.LOG_NAME).read_bytes().splitlines(keepends=True)
    (tmp_path / audit.LOG_NAME).write_bytes(lines[0])
    with pytest.raises(StoreError, match="cut or"):
        log.record("ada", "third")
    assert log.problem
    log.close()
