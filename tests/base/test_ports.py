"""Many keys in one piece are a sequence of keys like any other."""

import uuid

import pytest

from qtrunk.base.ports import SuppliedKeys
from qtrunk.base.secret import Secret


def test_keys_in_one_piece_are_a_sequence_of_keys():
    ids, material = bytes(range(48)), bytes(range(100, 196))
    keys = SuppliedKeys(ids, Secret(material), 32)
    assert [key.key_id for key in keys] == [str(uuid.UUID(bytes=ids[i : i + 16])) for i in (0, 16, 32)]
    assert [bytes(key.material.reveal()) for key in keys] == [material[i : i + 32] for i in (0, 32, 64)]
    assert bytes(keys[-1].material.reveal()) == material[64:]
    assert len(keys[1:]) == 2
    with pytest.raises(IndexError):
        keys[3]


@pytest.mark.parametrize(("ids", "octets"), [(47, 96), (48, 95), (48, 64), (0, 32)])
def test_ids_that_do_not_fit_their_keys_are_refused(ids, octets):
    with pytest.raises(ValueError, match="ids"):
        SuppliedKeys(bytes(ids), Secret(bytes(octets)), 32)
