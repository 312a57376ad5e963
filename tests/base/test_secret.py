"""Secrets show nothing by accident, compare safely, and are wiped, but never under a reader's eyes."""

import copy
import pickle

import pytest

from qtrunk.base.secret import Secret


def test_a_secret_shows_its_length_and_nothing_else():
    secret = Secret(b"attack at dawn")
    assert "dawn" not in f"{secret} {secret!r} {[secret]}"
    assert len(secret) == 14


def test_a_secret_is_compared_by_content_and_never_hashed_or_copied():
    assert Secret(b"a") == Secret(b"a")
    assert Secret(b"a") != Secret(b"b")
    assert Secret(b"a") != b"a"
    for action in (hash, copy.copy, copy.deepcopy, pickle.dumps):
        with pytest.raises(TypeError):
            action(Secret(b"a"))


def test_a_view_is_read_only_and_wiping_shows_through_it():
    secret = Secret(b"abc")
    view = secret.reveal()
    with pytest.raises(TypeError):
        view[0] = 1
    secret.wipe()
    assert bytes(view) == bytes(3)


def test_a_view_of_a_temporary_secret_keeps_its_octets():
    def give() -> Secret:
        return Secret(b"key of the moment")

    assert bytes(give().reveal()) == b"key of the moment"
