"""SKIP for routers: both sides of a pair fetch the same key, once; what is wrong is said in the draft's statuses."""

import json
import os

import pytest
from api_kit import RunningServer, Wire

from qtrunk.api.skip import Skip
from qtrunk.base.errors import KeyExhausted
from qtrunk.base.ids import SaeId

PEERS = {
    "alice": [(SaeId("bob"), "kme-b")],
    "bob": [(SaeId("alice"), "kme-a")],
    "carol": [(SaeId("alice"), "kme-a"), (SaeId("bob"), "kme-a")],
}


class Dice:
    def octets(self, count: int) -> bytes:
        return os.urandom(count)


@pytest.fixture
def provider(shared_server, supply) -> RunningServer:
    shared_server.server.handler = Skip(supply, supply.sae_of, lambda sae: PEERS.get(sae, []), Dice()).handle
    return shared_server


@pytest.fixture
def ask(provider):
    def asked(own, path, method="GET", body=None):
        with Wire(provider.port, own) as wire:
            answer = wire.ask(method, path, body)
        return answer.status, json.loads(answer.octets)

    return asked


@pytest.mark.parametrize("remote", ["bob", "kme-b"])
def test_both_routers_of_a_pair_get_the_same_key_once(ask, alice, bob, remote):
    status, given = ask(alice, f"/key?remoteSystemID={remote}")
    assert status == 200
    assert set(given) == {"keyId", "key"}
    assert len(given["keyId"]) == 32
    assert len(bytes.fromhex(given["key"])) == 32
    other = "alice" if remote == "bob" else "kme-a"
    assert ask(bob, f"/key/{given['keyId']}?remoteSystemID={other}") == (200, given)
    status, refusal = ask(bob, f"/key/{given['keyId']}?remoteSystemID={other}")
    assert status == 400
    assert given["key"] not in json.dumps(refusal)


def test_sizes_are_bits(ask, alice):
    assert len(ask(alice, "/key?remoteSystemID=bob&size=512")[1]["key"]) == 128
    for size in ("12", "100000", "x", "-8"):
        status, refusal = ask(alice, f"/key?remoteSystemID=bob&size={size}")
        assert status == 400
        assert "size" in refusal["message"]


def test_capabilities_name_both_ends(ask, alice):
    assert ask(alice, "/capabilities") == (
        200,
        {"entropy": True, "key": True, "algorithm": "QKD", "localSystemID": "alice", "remoteSystemID": ["bob"]},
    )


def test_entropy_is_as_long_as_was_asked_for(ask, alice):
    status, first = ask(alice, "/entropy?minentropy=100")
    assert (status, first["minentropy"], len(first["randomStr"])) == (200, 104, 26)
    assert ask(alice, "/entropy")[1]["minentropy"] == 256
    assert ask(alice, "/entropy?minentropy=100")[1]["randomStr"] != first["randomStr"]
    for wrong in ("0", "9000", "a"):
        assert ask(alice, f"/entropy?minentropy={wrong}")[0] == 400


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("/key", "remoteSystemID: is missing"),
        ("/key?remoteSystemID=alice", "the calling system itself"),
        ("/key?remoteSystemID=bob&bits=3", "query parameter 'bits'"),
        ("/key/xyz?remoteSystemID=bob", "32 hexadecimal digits"),
        ("/key/" + "z" * 32 + "?remoteSystemID=bob", "key_ID"),
    ],
)
def test_what_is_wrong_is_named(ask, alice, path, text):
    status, refusal = ask(alice, path)
    assert status == 400
    assert text in refusal["message"]


def test_a_key_manager_with_several_peers_is_no_name(ask, carol):
    status, refusal = ask(carol, "/key?remoteSystemID=kme-a")
    assert status == 400
    assert "name one: alice, bob" in refusal["message"]


def test_the_drafts_statuses(ask, alice, pki, supply):
    assert ask(alice, "/keys")[0] == 404
    assert ask(alice, "/key?remoteSystemID=bob", method="POST", body="{}")[0] == 405
    assert ask(pki.sae("stranger"), "/capabilities")[0] == 401
    supply.fails = KeyExhausted("no key now", 7)
    status, refusal = ask(alice, "/key?remoteSystemID=bob")
    assert (status, refusal["message"]) == (503, "no key now")
