"""Edition 2 beside Edition 1, the loop-back switch, and requests with a name."""

import pytest
from api_kit import FakeSupply, RunningServer, Wire, keys_of

from qtrunk.api.etsi014v2 import key_api
from qtrunk.topology import KeyApi

V1 = "/api/v1/keys"
V2 = "/kdapi/v2"


class NamingSupply(FakeSupply):
    """Keeps what it gave under a request's name."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[bytes | None] = []

    async def initiate(self, initiator, targets, number, key_bits, *, request_id=None):
        self.names.append(request_id)
        return await super().initiate(initiator, targets, number, key_bits)

    async def collect(self, target, initiator, key_ids, *, request_id=None):
        self.names.append(request_id)
        return await super().collect(target, initiator, key_ids)


@pytest.fixture
def serve(shared_server):
    def switched(supply, **settings) -> RunningServer:
        shared_server.server.handler = key_api(supply, supply.sae_of, KeyApi(**settings))
        return shared_server

    return switched


def test_edition_2_is_off_unless_it_is_switched_on(serve, supply, alice):
    with Wire(serve(supply).port, alice) as wire:
        assert wire.ask("POST", f"{V2}/enc_keys", {"target_SAE_ID": "bob"}).status == 400
        assert wire.ask("GET", "/kdapi/versions").status == 400
    assert supply.allocations == 0


def test_both_editions_give_and_collect_the_same_keys(serve, supply, alice, bob):
    port = serve(supply, edition2=True).port
    with Wire(port, alice) as as_alice, Wire(port, bob) as as_bob:
        assert as_alice.ask("GET", "/kdapi/versions").json() == {"versions": ["v2"]}
        given = keys_of(as_alice.ask("POST", f"{V2}/enc_keys", {"target_SAE_ID": "bob", "number": 2}))
        first, second = given
        body = {"initiator_SAE_ID": "alice", "key_IDs": [{"key_ID": first}]}
        assert keys_of(as_bob.ask("POST", f"{V2}/dec_keys", body)) == {first: given[first]}
        assert as_bob.ask("POST", f"{V2}/dec_keys", body).status == 400
        assert keys_of(as_bob.ask("GET", f"{V1}/alice/dec_keys?key_ID={second}")) == {second: given[second]}


def test_status_of_edition_2_says_initiator_and_target(serve, supply, alice):
    with Wire(serve(supply, edition2=True).port, alice) as wire:
        status = wire.ask("POST", f"{V2}/status", {"target_SAE_ID": "bob"}).json()
    assert (status["initiator_SAE_ID"], status["target_SAE_ID"], status["key_size"]) == ("alice", "bob", 256)
    assert not [name for name in status if "master" in name or "slave" in name]


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("GET", "enc_keys", None),
        ("GET", "status", None),
        ("GET", "dec_keys?key_ID=7a8a2fd6-2d2c-4a0e-8f0a-3d1f5f0b9c11", None),
        ("POST", "enc_keys?number=2", {"target_SAE_ID": "bob"}),
        ("POST", "enc_keys", {}),
        ("POST", "enc_keys", {"target_SAE_ID": "alice"}),
        ("POST", "enc_keys", {"target_SAE_ID": "a/b"}),
        ("POST", "enc_keys", {"target_SAE_ID": "bob", "additional_target_SAE_IDs": ["bob"]}),
        ("POST", "enc_keys", {"target_SAE_ID": "bob", "size": 256.5}),
        ("POST", "enc_keys", {"target_SAE_ID": "bob", "extension_mandatory": [{"acme_x": 1}]}),
        ("POST", "dec_keys", {"key_IDs": [{"key_ID": "7a8a2fd6-2d2c-4a0e-8f0a-3d1f5f0b9c11"}]}),
        ("POST", "elsewhere", {}),
    ],
)
def test_a_wrong_request_of_edition_2_is_refused_and_takes_no_key(serve, supply, alice, method, path, body):
    with Wire(serve(supply, edition2=True).port, alice) as wire:
        answer = wire.ask(method, f"{V2}/{path}", body)
    assert (answer.status, supply.allocations) == (400, 0)
    assert "slave" not in answer.message
    assert "master" not in answer.message


# ── loop-back ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_an_sae_is_its_own_slave_only_while_the_test_switch_is_on(serve, supply, alice):
    with Wire(serve(supply).port, alice) as wire:
        assert wire.ask("POST", f"{V1}/alice/enc_keys").status == 400
        assert "qtrunk_loopback_test" not in wire.ask("GET", f"{V1}/bob/status").json()["status_extension"]
    with Wire(serve(supply, loopback_test=True).port, alice) as wire:
        (key_id,) = given = keys_of(wire.ask("POST", f"{V1}/alice/enc_keys"))
        assert keys_of(wire.ask("GET", f"{V1}/alice/dec_keys?key_ID={key_id}")) == given
        assert "qtrunk_loopback_test" in wire.ask("GET", f"{V1}/alice/status").json()["status_extension"]


# ── requests with a name ────────────────────────────────────────────────────────────────────────────────────────────


def test_a_name_reaches_the_supply_and_belongs_to_caller_and_request(serve, alice, carol):
    supply = NamingSupply()
    port = serve(supply, retry_window_s=30).port
    name = "X-Request-ID: 1b4e28ba-2fa1-11d2-883f-0016d3cca427"
    with Wire(port, alice) as wire:
        for path, body, header in (
            (f"{V1}/bob/enc_keys", {"number": 1}, name),
            (f"{V1}/bob/enc_keys", {"number": 1}, name),
            (f"{V1}/bob/enc_keys", {"number": 2}, name),
            (f"{V1}/carol/enc_keys", {"number": 1}, name),
            (f"{V1}/bob/enc_keys", {"number": 1}, "X-Request-ID: another"),
        ):
            assert wire.ask("POST", path, body, header).status == 200
        assert wire.ask("POST", f"{V1}/bob/enc_keys", {"number": 1}).status == 200
    with Wire(port, carol) as wire:
        assert wire.ask("POST", f"{V1}/bob/enc_keys", {"number": 1}, name).status == 200
    first, again, *others, nameless, of_carol = supply.names
    assert first == again
    assert len(first) == 16
    assert len({first, *others, of_carol}) == 5
    assert nameless is None


def test_collecting_has_names_as_well(serve, alice, bob):
    supply = NamingSupply()
    port = serve(supply, retry_window_s=30).port
    with Wire(port, alice) as wire:
        (key_id,) = keys_of(wire.ask("POST", f"{V1}/bob/enc_keys"))
    with Wire(port, bob) as wire:
        answer = wire.ask("GET", f"{V1}/alice/dec_keys?key_ID={key_id}", None, "X-Request-ID: x")
    assert (answer.status, len(supply.names[-1])) == (200, 16)


def test_a_name_is_ignored_while_there_is_no_retry_window(serve, supply, alice):
    with Wire(serve(supply).port, alice) as wire:
        # The fake supply does not even take the argument.
        for name in ("x", "", "no name at all"):
            assert wire.ask("POST", f"{V1}/bob/enc_keys", None, f"X-Request-ID: {name}").status == 200


@pytest.mark.parametrize("name", ["", "x" * 65, "a b", "b\xe9"])
def test_a_name_that_is_none_is_refused_and_takes_no_key(serve, alice, name):
    supply = NamingSupply()
    with Wire(serve(supply, retry_window_s=30).port, alice) as wire:
        answer = wire.ask("POST", f"{V1}/bob/enc_keys", None, f"X-Request-ID: {name}")
    assert (answer.status, supply.allocations) == (400, 0)
    assert "X-Request-ID" in answer.message


def test_two_names_for_one_request_are_refused(serve, alice):
    supply = NamingSupply()
    with Wire(serve(supply, retry_window_s=30).port, alice) as wire:
        assert wire.ask("POST", f"{V1}/bob/enc_keys", None, "X-Request-ID: a", "X-Request-ID: b").status == 400
    assert supply.allocations == 0
