"""The administration interface: operators only, never key."""

import pytest
from api_kit import RunningServer, Wire

from qtrunk.api.admin import Admin
from qtrunk.base.errors import StoreError
from qtrunk.base.ids import KeyId

KNOWN = KeyId("7a8a2fd6-2d2c-4a0e-8f0a-3d1f5f0b9c11")
PATHS = ("/admin/v1/status", "/admin/v1/ledger", f"/admin/v1/keys/{KNOWN}")


def broken() -> dict[str, object]:
    raise StoreError("the ledger cannot be read")


@pytest.fixture(scope="module")
def admin(kme):
    receipts = {KNOWN: {"key_id": KNOWN, "route": ["a", "b"]}}
    ledgers = [{"a-b": {"own_octets": 7}}]
    handler = Admin(lambda: {"node": "a"}, receipts.get, lambda: ledgers.pop() if ledgers else broken(), dict).handle
    with RunningServer(handler, kme) as running:
        yield running


@pytest.fixture(scope="module")
def operator(pki):
    return pki.issue("ops", uris=["urn:qtrunk:operator:ops", "urn:qtrunk:role:operator"])


def test_an_operator_reads_status_receipts_and_ledger(admin, operator):
    with Wire(admin.port, operator) as wire:
        answers = [wire.ask("GET", path) for path in PATHS]
    assert [answer.status for answer in answers] == [200, 200, 200]
    assert [answer.json() for answer in answers] == [
        {"node": "a"},
        {"a-b": {"own_octets": 7}},
        {"key_id": KNOWN, "route": ["a", "b"]},
    ]


@pytest.mark.parametrize(
    "names",
    [
        {"common": "alice", "uris": ["urn:qtrunk:sae:alice"]},
        {"common": "a", "uris": ["urn:qtrunk:kme:a"]},
        {"common": "urn:qtrunk:operator:ops"},
        {"common": "ops", "dns": ["urn.qtrunk.operator.ops"]},
        {"common": "ops", "uris": ["urn:qtrunk:operator:"]},
        {"common": "ops", "uris": ["x:urn:qtrunk:operator:ops"]},
        {"common": "ops", "uris": ["urn:qtrunk:role:operator"]},
        {"common": "ops", "uris": ["urn:qtrunk:operator:a", "urn:qtrunk:operator:b", "urn:qtrunk:role:operator"]},
    ],
    ids=str,
)
def test_nobody_else_reads_anything(admin, pki, names):
    with Wire(admin.port, pki.issue(**names)) as wire:
        for path in (*PATHS, "/"):
            answer = wire.ask("GET", path)
            assert answer.status == 401
            assert list(answer.json()) == ["message"]


def test_what_is_not_there_is_404_and_what_is_wrong_is_400(admin, operator):
    with Wire(admin.port, operator) as wire:
        assert wire.ask("GET", "/admin/v1/keys/7a8a2fd6-2d2c-4a0e-8f0a-000000000000").status == 404
        assert wire.ask("GET", "/admin/v1/nothing").status == 404
        assert wire.ask("GET", "/api/v1/keys/bob/status").status == 404
        assert wire.ask("GET", "/admin/v1/keys/nonsense").status == 400
        assert wire.ask("POST", "/admin/v1/status").status == 400


def test_a_store_that_cannot_be_read_is_503(admin, operator):
    with Wire(admin.port, operator) as wire:
        wire.ask("GET", "/admin/v1/ledger")
        answer = wire.ask("GET", "/admin/v1/ledger")
    assert (answer.status, answer.message) == (503, "the ledger cannot be read")
