"""GS QKD 014 on the wire: every rule, every mandated message, every reading of a gap, over real TLS."""

import base64
import json
import logging
import ssl
import uuid

import pytest
from api_kit import RunningServer, Wire, keys_of

from qtrunk.api.etsi014 import Etsi014
from qtrunk.api.tls import identity_of
from qtrunk.base.errors import (
    KeyNotFound,
    NotAuthorised,
    RouteUnavailable,
    StoreError,
)
from qtrunk.topology import KeyApi

ENC = "/api/v1/keys/bob/enc_keys"
DEC = "/api/v1/keys/alice/dec_keys"
NOT_FOUND = "one or more keys specified are not found on KME"
UNSUPPORTED = "not all extension_mandatory parameters are supported"


def key_ids(*ids: str) -> dict:
    return {"key_IDs": [{"key_ID": key_id} for key_id in ids]}


# ── Get status ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_status_has_every_member_of_the_standard_with_its_type(as_alice):
    answer = as_alice.ask("GET", "/api/v1/keys/bob/status")
    assert answer.status == 200
    assert answer.headers["Content-Type"] == "application/json"
    assert answer.json() == {
        "source_KME_ID": "kme-a",
        "target_KME_ID": "kme-b",
        "master_SAE_ID": "alice",
        "slave_SAE_ID": "bob",
        "key_size": 256,
        "stored_key_count": 10_000,
        "max_key_count": 100_000,
        "max_key_per_request": 8,
        "max_key_size": 1024,
        "min_key_size": 64,
        "max_SAE_ID_count": 2,
        "status_extension": {"qtrunk_fill_bps": 1234.5},
    }


@pytest.mark.parametrize("path", ["/api/v1/keys/nobody/status", "/api/v1/keys/alice/status"])
def test_status_of_an_unknown_sae_or_of_oneself_is_refused(as_alice, path):
    answer = as_alice.ask("GET", path)
    assert answer.status == 400
    assert answer.message


# ── Get key ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("body", [None, "", "{}", " \r\n", '{"number": null, "size": null}'])
def test_a_request_without_members_gives_one_key_of_the_default_size(as_alice, body):
    answer = as_alice.ask("POST", ENC, body)
    assert answer.status == 200
    assert [len(octets) for octets in keys_of(answer).values()] == [32]


def test_a_simple_request_may_be_a_get(as_alice):
    assert [len(octets) for octets in keys_of(as_alice.ask("GET", ENC)).values()] == [32]
    answer = as_alice.ask("GET", f"{ENC}?number=3&size=128")
    assert answer.status == 200
    assert [len(octets) for octets in keys_of(answer).values()] == [16] * 3


def test_keys_are_uuids_with_padded_standard_base64_under_lower_case_names(as_alice, supply):
    answer = as_alice.ask("POST", ENC, {"number": 2, "size": 64})
    document = answer.json()
    assert list(document) == ["keys"]
    for entry in document["keys"]:
        assert list(entry) == ["key_ID", "key"]
        assert str(uuid.UUID(entry["key_ID"])) == entry["key_ID"]
        assert entry["key"] == base64.b64encode(supply.issued[entry["key_ID"]].octets).decode()
        assert entry["key"].endswith("=")


def test_nobody_on_the_way_may_keep_an_answer(as_alice):
    assert as_alice.ask("POST", ENC).headers["Cache-Control"] == "no-store"


@pytest.mark.parametrize(
    "request_body",
    [
        {"number": 0},
        {"number": -1},
        {"number": 9},
        {"number": 10**40},
        {"number": "1"},
        {"number": 1.5},
        {"number": True},
        {"number": [1]},
        {"size": 56},
        {"size": 1032},
        {"size": -64},
        {"size": 0},
        {"size": "256"},
        {"additional_slave_SAE_IDs": ["carol", "dave", "erin"]},
        {"additional_slave_SAE_IDs": ["carol", "carol"]},
        {"additional_slave_SAE_IDs": ["bob"]},
        {"additional_slave_SAE_IDs": ["alice"]},
        {"additional_slave_SAE_IDs": ["nobody"]},
        {"additional_slave_SAE_IDs": [""]},
        {"additional_slave_SAE_IDs": ["ca rol"]},
        {"additional_slave_SAE_IDs": "carol"},
        {"additional_slave_SAE_IDs": [1]},
        {"extension_mandatory": {"a": 1}},
        {"extension_mandatory": ["a"]},
        {"extension_optional": [{"a": 1}] * 65},
    ],
    ids=str,
)
def test_a_wrong_request_is_refused_and_takes_no_key(as_alice, supply, request_body):
    answer = as_alice.ask("POST", ENC, request_body)
    assert answer.status == 400
    assert answer.message
    assert supply.allocations == 0


@pytest.mark.parametrize(
    "body",
    ["[]", "1", '"x"', "null", "{", '{"number":}', "\ud800".encode("utf-8", "surrogatepass"), b"\xff{}", b"\x00"],
)
def test_a_body_that_is_no_json_object_is_refused(as_alice, supply, body):
    answer = as_alice.ask("POST", ENC, body)
    assert answer.status == 400
    assert answer.message.startswith("body: ")
    assert supply.allocations == 0


def test_a_deeply_nested_body_is_refused(as_alice, supply):
    answer = as_alice.ask("POST", ENC, '{"x":' + "[" * 30_000 + "]" * 30_000 + "}")
    assert answer.status == 400
    assert supply.allocations == 0


@pytest.mark.parametrize("size", [65, 100, 129, 1025, -1])
def test_a_size_that_is_not_whole_octets_gets_the_mandated_message(as_alice, supply, size):
    answer = as_alice.ask("POST", ENC, {"size": size})
    assert (answer.status, answer.json()) == (400, {"message": "size shall be a multiple of 8"})
    assert supply.allocations == 0


def test_an_unknown_mandatory_extension_gets_the_mandated_message_and_its_name(as_alice, supply):
    answer = as_alice.ask("POST", ENC, {"extension_mandatory": [{"acme_route": "direct"}, {"acme_age": 3}]})
    assert answer.status == 400
    assert answer.json() == {
        "message": UNSUPPORTED,
        "details": [
            {"extension_mandatory_unsupported": "acme_route is not supported"},
            {"extension_mandatory_unsupported": "acme_age is not supported"},
        ],
    }
    assert supply.allocations == 0


def test_a_mandatory_extension_without_a_name_is_not_supported_either(as_alice, supply):
    answer = as_alice.ask("POST", ENC, {"extension_mandatory": [{}]})
    assert (answer.status, answer.message) == (400, UNSUPPORTED)
    assert supply.allocations == 0


def test_optional_extensions_and_empty_lists_of_extensions_are_ignored(as_alice):
    body = {"extension_optional": [{"acme_colour": ["red", None, {"deep": 1}]}], "extension_mandatory": []}
    assert as_alice.ask("POST", ENC, body).status == 200


def test_unknown_members_are_ignored(as_alice, as_bob):
    answer = as_alice.ask("POST", ENC, {"number": 1, "acme_hint": {"a": [1]}})
    assert answer.status == 200
    (key_id,) = keys_of(answer)
    body = {"key_IDs": [{"key_ID": key_id, "master_SAE_ID": "x", "key_ID_extension": {}}], "key_IDs_extension": {}}
    assert as_bob.ask("POST", DEC, body).status == 200


@pytest.mark.parametrize("query", ["number=0", "number=9", "number=x", "number=", "number=-1", "number=+1", "size=65"])
def test_a_get_is_checked_like_a_post(as_alice, supply, query):
    answer = as_alice.ask("GET", f"{ENC}?{query}")
    assert answer.status == 400
    assert answer.message
    assert supply.allocations == 0


@pytest.mark.parametrize(
    "query",
    ["number=1&number=2", "additional_slave_SAE_IDs=carol", "extension_optional=x", "Number=1", "=", "&", "%ff=1"],
)
def test_what_a_get_cannot_carry_is_refused_not_ignored(as_alice, supply, query):
    assert as_alice.ask("GET", f"{ENC}?{query}").status == 400
    assert as_alice.ask("GET", ENC, {"additional_slave_SAE_IDs": ["carol"]}).status == 400
    assert supply.allocations == 0


@pytest.mark.parametrize("path", [f"{ENC}?number=2", "/api/v1/keys/bob/status?number=2"])
def test_query_parameters_where_there_are_none_are_refused(as_alice, supply, path):
    method = "GET" if "status" in path else "POST"
    assert as_alice.ask(method, path).status == 400
    assert supply.allocations == 0


@pytest.mark.parametrize("path", ["nobody", "alice", "bo%20b", "%20", "b%2Fob", "%00", "%ff", "", ".", "..", "b" * 65])
def test_a_slave_that_is_no_other_sae_is_refused(as_alice, supply, path):
    answer = as_alice.ask("POST", f"/api/v1/keys/{path}/enc_keys")
    assert answer.status == 400
    assert answer.message
    assert supply.allocations == 0


def test_an_sae_id_is_decoded_once(as_alice, supply):
    assert as_alice.ask("GET", "/api/v1/keys/a%3Ab%40c/status").json()["slave_SAE_ID"] == "a:b@c"
    assert as_alice.ask("GET", "/api/v1/keys/b%6Fb/status").json()["slave_SAE_ID"] == "bob"
    assert as_alice.ask("GET", "/api/v1/keys/b%256Fb/status").status == 400


def test_a_request_for_suspiciously_short_keys_is_logged(as_alice, caplog):
    with caplog.at_level(logging.WARNING):
        assert as_alice.ask("POST", ENC, {"number": 1, "size": 64}).status == 200
    assert "64 bits" in caplog.text


def test_an_empty_list_of_further_slaves_is_accepted_unless_strict(as_alice, supply, kme, alice):
    body = {"additional_slave_SAE_IDs": []}
    assert as_alice.ask("POST", ENC, body).status == 200
    with (
        RunningServer(Etsi014(supply, supply.sae_of, KeyApi(strict=True)).handle, kme) as strict,
        Wire(strict.port, alice) as wire,
    ):
        assert wire.ask("POST", ENC, body).status == 400
        assert wire.ask("POST", ENC, {"additional_slave_SAE_IDs": ["carol"]}).status == 200


# ── Get key with key IDs ────────────────────────────────────────────────────────────────────────────────────────────


def test_both_ends_get_the_same_key_once(as_alice, as_bob):
    given = keys_of(as_alice.ask("POST", ENC, {"number": 3}))
    wanted = list(reversed(given))
    answer = as_bob.ask("POST", DEC, key_ids(*wanted))
    assert answer.status == 200
    assert [entry["key_ID"] for entry in answer.json()["keys"]] == wanted
    assert keys_of(answer) == given
    again = as_bob.ask("POST", DEC, key_ids(*wanted))
    assert (again.status, again.json()) == (400, {"message": NOT_FOUND})


def test_one_key_may_be_collected_by_get_and_in_any_case_of_its_id(as_alice, as_bob):
    (first, second) = (given := keys_of(as_alice.ask("POST", ENC, {"number": 2})))
    assert keys_of(as_bob.ask("GET", f"{DEC}?key_ID={first}")) == {first: given[first]}
    assert keys_of(as_bob.ask("GET", f"{DEC}?key_ID={second.upper()}")) == {second: given[second]}


def test_one_unknown_key_fails_the_batch_and_spends_nothing(as_alice, as_bob):
    given = keys_of(as_alice.ask("POST", ENC, {"number": 2}))
    answer = as_bob.ask("POST", DEC, key_ids(*given, str(uuid.uuid4())))
    assert (answer.status, answer.json()) == (400, {"message": NOT_FOUND})
    assert keys_of(as_bob.ask("POST", DEC, key_ids(*given))) == given


def test_only_a_named_slave_gets_a_key_and_it_hears_401_with_a_message(as_alice, as_bob, as_carol):
    given = keys_of(as_alice.ask("POST", ENC))
    answer = as_carol.ask("POST", DEC, key_ids(*given))
    assert answer.status == 401
    assert answer.message
    assert keys_of(as_bob.ask("POST", DEC, key_ids(*given))) == given


def test_the_path_must_name_the_true_master(as_alice, as_bob):
    given = keys_of(as_alice.ask("POST", ENC))
    assert as_bob.ask("POST", "/api/v1/keys/carol/dec_keys", key_ids(*given)).status == 401
    assert keys_of(as_bob.ask("POST", DEC, key_ids(*given))) == given


def test_a_master_cannot_collect_its_own_key(as_alice):
    given = keys_of(as_alice.ask("POST", ENC))
    assert as_alice.ask("POST", "/api/v1/keys/bob/dec_keys", key_ids(*given)).status == 401
    assert as_alice.ask("POST", DEC, key_ids(*given)).status == 400


def test_every_further_slave_gets_its_own_copy(as_alice, as_bob, as_carol):
    given = keys_of(as_alice.ask("POST", ENC, {"number": 2, "additional_slave_SAE_IDs": ["carol"]}))
    for slave in (as_bob, as_carol):
        assert keys_of(slave.ask("POST", DEC, key_ids(*given))) == given
        assert slave.ask("POST", DEC, key_ids(*given)).message == NOT_FOUND


KNOWN_ID = "7a8a2fd6-2d2c-4a0e-8f0a-3d1f5f0b9c11"


@pytest.mark.parametrize(
    "body",
    [
        None,
        {},
        {"key_IDs": []},
        {"key_IDs": None},
        {"key_IDs": [KNOWN_ID]},
        {"key_IDs": [{}]},
        {"Key_IDs": [{"key_ID": KNOWN_ID}]},
        key_ids(KNOWN_ID, KNOWN_ID),
        key_ids(KNOWN_ID, KNOWN_ID.upper()),
        key_ids("not-a-uuid"),
        key_ids(""),
        key_ids(KNOWN_ID.replace("-", "")),
        key_ids("{" + KNOWN_ID + "}"),
        key_ids(*(str(uuid.UUID(int=i)) for i in range(129))),
    ],
    ids=lambda body: json.dumps(body)[:60],
)
def test_a_wrong_list_of_key_ids_is_refused(as_bob, body):
    answer = as_bob.ask("POST", DEC, body)
    assert answer.status == 400
    assert answer.message != NOT_FOUND


@pytest.mark.parametrize("query", ["", "?key_ID=", "?key_ID=x", f"?key_ID={KNOWN_ID}&key_ID={KNOWN_ID}", "?key_id=1"])
def test_a_wrong_get_of_a_key_id_is_refused(as_bob, query):
    answer = as_bob.ask("GET", DEC + query)
    assert answer.status == 400
    assert answer.message != NOT_FOUND


def test_clients_that_expect_404_can_have_it(supply, kme, bob):
    with (
        RunningServer(Etsi014(supply, supply.sae_of, KeyApi(not_found_status=404)).handle, kme) as lenient,
        Wire(lenient.port, bob) as wire,
    ):
        answer = wire.ask("GET", f"{DEC}?key_ID={KNOWN_ID}")
        assert (answer.status, answer.message) == (404, NOT_FOUND)
        assert wire.ask("GET", f"{DEC}?key_ID=x").status == 400


def test_no_other_status_can_be_chosen_for_a_missing_key(supply):
    with pytest.raises(ValueError, match="403"):
        Etsi014(supply, supply.sae_of, KeyApi(not_found_status=403))


# ── failures ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_an_empty_pool_is_503_with_the_time_to_come_back(as_alice, supply):
    supply.stock = 1
    answer = as_alice.ask("POST", ENC, {"number": 2})
    assert answer.status == 503
    assert answer.headers["Retry-After"] == "7"
    assert "2 keys are needed, 1 are there" in answer.message
    assert as_alice.ask("POST", ENC, {"number": 1}).status == 200


@pytest.mark.parametrize(
    "problem", [RouteUnavailable("no way to bob"), StoreError("disk full at /secret/place"), KeyNotFound("given up")]
)
def test_what_fails_behind_the_interface_is_503_and_leaves_the_connection(as_alice, supply, problem):
    supply.fails = problem
    answer = as_alice.ask("POST", ENC)
    assert answer.status == 503
    assert int(answer.headers["Retry-After"]) >= 1
    assert "/secret/place" not in answer.message
    supply.fails = None
    assert as_alice.ask("POST", ENC).status == 200


def test_an_unforeseen_failure_is_503_says_nothing_and_is_logged_without_its_text(
    as_alice, supply, alice, server, caplog
):
    supply.fails = RuntimeError("key 00112233445566778899aabbccddeeff")
    answer = as_alice.ask("POST", ENC)
    assert answer.status == 503
    assert "001122" not in answer.message
    assert "RuntimeError" in caplog.text
    assert "001122" not in caplog.text
    assert as_alice.is_closed()
    supply.fails = None
    with Wire(server.port, alice) as again:
        assert again.ask("POST", ENC).status == 200


def test_a_refusal_of_the_supply_does_not_say_why(as_alice, supply):
    supply.fails = NotAuthorised("key 1 belongs to carol")
    answer = as_alice.ask("POST", ENC)
    assert answer.status == 401
    assert "carol" not in answer.message


# ── paths, methods, identities ──────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "path",
    [
        *(
            "/",
            "//",
            "/api/v1/keys/bob",
            "/api/v1/keys/bob/enc_keys/",
            "/api/v1/keys//enc_keys",
            "/api/v2/keys/bob/status",
        ),
        *("/API/v1/keys/bob/status", "/api/v1/keys/bob/status/x", "/api/v1/keys/bob/../bob/status", "/admin/v1/status"),
        "/api/v1/keys%2Fbob/status",
    ],
)
def test_an_unknown_path_is_400_with_a_message(as_alice, path):
    answer = as_alice.ask("GET", path)
    assert answer.status == 400
    assert answer.message


@pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "PROPFIND"])
@pytest.mark.parametrize("what", ["status", "enc_keys", "dec_keys"])
def test_another_method_is_400_with_a_message(as_alice, supply, method, what):
    answer = as_alice.ask(method, f"/api/v1/keys/bob/{what}")
    assert answer.status == 400
    assert method in answer.message
    assert supply.allocations == 0


def test_a_post_of_status_is_400(as_alice):
    assert as_alice.ask("POST", "/api/v1/keys/bob/status").status == 400


def test_head_gets_no_body_and_takes_no_key(as_alice, supply):
    answer = as_alice.ask("HEAD", ENC)
    assert (answer.status, answer.octets) == (400, b"")
    assert int(answer.headers["Content-Length"]) > 0
    assert supply.allocations == 0
    assert as_alice.ask("POST", ENC).status == 200


def test_a_certificate_of_no_known_sae_is_401_whatever_it_asks(server, pki, supply):
    with Wire(server.port, pki.sae("mallory")) as wire:
        for path in (ENC, DEC, "/api/v1/keys/bob/status", "/nowhere"):
            answer = wire.ask("GET", path)
            assert answer.status == 401
            assert answer.message
    assert supply.allocations == 0


def test_revoking_an_sae_works_on_open_connections(as_alice, supply):
    assert as_alice.ask("POST", ENC).status == 200
    supply.saes = supply.saes - {"alice"}
    assert as_alice.ask("POST", ENC).status == 401


@pytest.mark.parametrize(
    ("names", "sae"),
    [
        ({"common": "x", "uris": ["urn:qtrunk:sae:alice"]}, "alice"),
        ({"common": "x", "uris": ["urn:acme:sae:a:b@c"], "dns": ["bob"]}, "a:b@c"),
        ({"common": "x", "uris": ["alice"]}, "alice"),
        ({"common": "bob", "dns": ["alice"]}, "alice"),
        ({"common": "alice"}, "alice"),
        ({"common": "alice", "dns": ["gateway.example"]}, "alice"),
        ({"common": "alice", "uris": ["spiffe://example/bank"]}, "alice"),
        ({"common": "alice", "uris": ["urn:qtrunk:sae:mallory"]}, None),
        ({"common": "alice", "uris": ["urn:qtrunk:kme:alice"]}, None),
        ({"common": "alice", "uris": ["urn:qtrunk:operator:alice"]}, None),
        ({"common": "x", "uris": ["urn:qtrunk:kme:x:sae:alice"]}, None),
        ({"common": "x", "uris": ["urn:qtrunk:sae:"]}, None),
    ],
    ids=str,
)
def test_an_sae_is_known_by_the_most_telling_name_of_its_certificate(pki, supply, names, sae):
    assert supply.sae_of(identity_of(pki.issue(**names).der())) == sae


def test_a_header_never_changes_who_asks(as_alice):
    headers = ("X-SSL-Client-CN: bob", "X-Forwarded-Client-Cert: CN=bob", "Authorization: Basic Ym9iOmJvYg==")
    answer = as_alice.ask("GET", "/api/v1/keys/carol/status", None, *headers)
    assert answer.json()["master_SAE_ID"] == "alice"


# ── what clients in the field do ────────────────────────────────────────────────────────────────────────────────────


def test_a_wireguard_style_client_works_with_gets_alone(as_alice, as_bob):
    agent = ("User-Agent: Go-http-client/1.1", "Accept-Encoding: gzip")
    (given,) = as_alice.ask("GET", f"{ENC}?number=1&size=256", None, *agent).json()["keys"]
    (taken,) = as_bob.ask("GET", f"{DEC}?key_ID={given['key_ID']}", None, *agent).json()["keys"]
    assert taken["key"] == given["key"]


def test_a_client_that_posts_without_body_or_type_gets_a_key(as_alice):
    as_alice.send(f"POST {ENC} HTTP/1.1\r\nHost: kme\r\n\r\n".encode())
    assert as_alice.answer().status == 200


def test_a_libcurl_style_client_that_posts_json_as_a_form_gets_its_key(as_alice, as_bob):
    given = keys_of(as_alice.ask("GET", f"{ENC}?number=1&size=256"))
    form = "Content-Type: application/x-www-form-urlencoded"
    assert keys_of(as_bob.ask("POST", DEC, key_ids(*given), form)) == given


def test_a_router_that_posts_number_and_size_gets_its_key(as_alice):
    assert len(keys_of(as_alice.ask("POST", ENC, '{"number":1,"size":512}', "Content-Type: application/json"))) == 1


def test_a_client_that_always_sends_every_member_gets_its_key(as_alice):
    body = {
        "number": 1,
        "size": 256,
        "additional_slave_SAE_IDs": [],
        "extension_mandatory": [],
        "extension_optional": [],
    }
    assert as_alice.ask("POST", ENC, body).status == 200


def test_a_box_that_knows_only_tls_1_2_can_be_let_in_by_choice_only(supply, server, kme, alice):
    with pytest.raises((ssl.SSLError, ConnectionError)):
        Wire(server.port, alice, maximum_version=ssl.TLSVersion.TLSv1_2)
    service = Etsi014(supply, supply.sae_of).handle
    with (
        RunningServer(service, kme, minimum_version=ssl.TLSVersion.TLSv1_2) as older,
        Wire(older.port, alice, maximum_version=ssl.TLSVersion.TLSv1_2) as wire,
    ):
        assert wire.sock.version() == "TLSv1.2"
        assert wire.ask("POST", ENC).status == 200


# ── key material ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_keys_are_wiped_once_they_are_in_the_answer(as_alice, supply):
    given = keys_of(as_alice.ask("POST", ENC, {"number": 2}))
    assert all(any(octets) for octets in given.values())
    assert len(supply.handed_out) == 2
    assert not any(any(key.material.reveal()) for key in supply.handed_out)


def test_no_key_and_no_body_is_ever_logged(as_alice, as_bob, caplog):
    with caplog.at_level(logging.DEBUG):
        given = keys_of(as_alice.ask("POST", ENC, {"number": 2}))
        as_bob.ask("POST", DEC, key_ids(*given))
        as_bob.ask("POST", DEC, key_ids(*given))
        as_alice.ask("POST", ENC, '{"number": "c2VjcmV0"}')
    assert "unknown or spent" in caplog.text
    for octets in given.values():
        assert base64.b64encode(octets).decode() not in caplog.text
        assert octets.hex() not in caplog.text
    assert "c2VjcmV0" not in caplog.text
