"""What controllers set: on the disk before it is in force, refused where it does not read."""

import pytest

from qtrunk.base.errors import ConfigError, StoreError
from qtrunk.kms.applications import Setting
from qtrunk.node.desired import Desired


def test_what_was_set_is_there_after_a_start(tmp_path):
    desired = Desired(tmp_path / "sdn.json")
    assert (desired.links_off, desired.apps) == (frozenset(), {})
    apps = {("bank", "vault"): Setting(max_bps=5, priority=0), ("a", "b"): Setting()}
    desired.store(frozenset({"a-b"}), apps, 12.5)
    again = Desired(tmp_path / "sdn.json")
    assert again.links_off == {"a-b"}
    assert again.apps == {("bank", "vault"): Setting(max_bps=5, priority=0)} == desired.apps
    assert again.changed_unix_s == 12.5


def test_what_cannot_be_written_is_not_in_force(tmp_path):
    desired = Desired(tmp_path / "away" / "sdn.json")
    with pytest.raises(StoreError):
        desired.store(frozenset({"a-b"}), {}, 1.0)
    assert desired.links_off == frozenset()


@pytest.mark.parametrize("text", ["", "{}", '{"version": 1}', "[]"])
def test_a_damaged_file_stops_the_start(tmp_path, text):
    (tmp_path / "sdn.json").write_text(text)
    with pytest.raises(ConfigError):
        Desired(tmp_path / "sdn.json")
