"""`qtrunk apply` on a lab that is down: one change at a time, and one that was cut off can be taken up again."""

import fcntl

import pytest
from click.testing import CliRunner

from qtrunk.base.errors import LabError
from qtrunk.cli import apply as command
from qtrunk.config import network
from qtrunk.node.lab import Lab
from qtrunk.node.supervisor import exclusive_lock

ROW = 'name = "row"\ntrunks = [["a", "b", "c"]]\n[link]\nlength_km = 20\n'
SHORT = ROW.replace('["a", "b", "c"]', '["a", "b"]')


def apply(tmp_path, text, *more):
    path = tmp_path / "new.toml"
    path.write_text(text)
    done = CliRunner().invoke(command.apply, [str(path), "--state", str(tmp_path / "lab"), *more])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.output


@pytest.fixture
def made(tmp_path):
    return Lab.prepare(tmp_path / "lab", network.load(ROW))


def test_only_one_changes_a_lab_at_a_time(made, tmp_path):
    with (made.state / "apply.lock").open("w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(LabError, match="another `qtrunk apply`"):
            apply(tmp_path, SHORT)
        assert Lab.open(made.state).topology == made.topology
    assert "- node c" in apply(tmp_path, SHORT)
    assert len(Lab.open(made.state).topology.nodes) == 2


def test_a_lab_that_is_just_starting_is_not_taken_for_one_that_is_down(made, tmp_path):
    with exclusive_lock(made.state), pytest.raises(LabError, match="just starting"):
        apply(tmp_path, SHORT)
    assert Lab.open(made.state).topology == made.topology


def test_a_change_that_could_not_be_written_stands_in_nobodys_way(made, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(Lab, "_write", lambda *_: (_ for _ in ()).throw(LabError("no room")))
        with pytest.raises(LabError, match="no room"):
            apply(tmp_path, SHORT)
    assert Lab.open(made.state).topology == made.topology
    # The link that was to go is still there: no word of "taken out before".
    apply(tmp_path, ROW.replace('name = "row"', 'name = "row"\ntitle = "A row"'))
    apply(tmp_path, SHORT)
    with pytest.raises(LabError, match="were taken out before"):
        apply(tmp_path, ROW)


def test_the_pace_of_a_lab_stays(tmp_path):
    Lab.prepare(tmp_path / "lab", network.load(ROW), clock_fraction=0.1)
    apply(tmp_path, SHORT)
    assert {link.equipment.clock_fraction for link in Lab.open(tmp_path / "lab").topology.links} == {0.1}


def test_processes_of_a_change_that_was_cut_off_are_waited_for(made, monkeypatch):
    """The second command finds nothing changed; what an earlier one took out may still run."""
    running = [set(made.process_names()) | {"node-gone"}, set(made.process_names())]
    monkeypatch.setattr(command, "_processes", lambda _lab: running[0] if len(running) == 1 else running.pop(0))
    monkeypatch.setattr(command, "_take", lambda _service: True)
    monkeypatch.setattr(command, "_begin_anew", lambda *_: None)
    monkeypatch.setattr(command.os, "kill", lambda *_: None)
    command._bring_about(made, command.change(made.topology, made.topology), 1)
    assert running == [made.process_names()]
