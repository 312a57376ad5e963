"""Certificate and key change together, whatever step a crash falls into."""

import pytest

from qtrunk.base.errors import StoreError
from qtrunk.node.ca import files


class KilledError(BaseException):
    """Nothing catches this, as nothing catches a kill."""


def pair(directory):
    return (directory / "key.pem").read_bytes(), (directory / "cert.pem").read_bytes()


@pytest.mark.parametrize("step", range(12))
def test_a_kill_at_any_step_leaves_the_old_pair_or_the_new_one(tmp_path, monkeypatch, step):
    files.switch(tmp_path, b"key 1", b"certificate 1")
    steps = 0

    def mortal(real):
        def call(*arguments, **more):
            nonlocal steps
            steps += 1
            if steps > step:
                raise KilledError
            return real(*arguments, **more)

        return call

    with monkeypatch.context() as patch:
        for name in ("replace", "symlink_to", "mkdir"):
            patch.setattr(files.Path, name, mortal(getattr(files.Path, name)))
        patch.setattr(files.os, "fsync", mortal(files.os.fsync))
        try:
            files.switch(tmp_path, b"key 2", b"certificate 2")
        except KilledError:
            assert pair(tmp_path) in ((b"key 1", b"certificate 1"), (b"key 2", b"certificate 2"))
    files.switch(tmp_path, b"key 3", b"certificate 3")
    assert pair(tmp_path) == (b"key 3", b"certificate 3")
    assert (tmp_path / "key.pem").stat().st_mode & 0o777 == 0o600
    assert len(list((tmp_path / "versions").iterdir())) <= 2


def test_files_of_an_older_version_are_replaced_by_links(tmp_path):
    (tmp_path / "key.pem").write_bytes(b"old")
    (tmp_path / "cert.pem").write_bytes(b"old")
    files.switch(tmp_path, b"key", b"certificate")
    assert pair(tmp_path) == (b"key", b"certificate")


def test_a_disk_that_refuses_leaves_what_was_there(tmp_path, monkeypatch):
    files.write(tmp_path / "x", b"before")

    def full(_descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(StoreError, match="No space"):
        files.write(tmp_path / "x", b"after")
    assert (tmp_path / "x").read_bytes() == b"before"
