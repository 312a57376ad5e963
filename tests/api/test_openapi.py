"""The description for machines says what the server does: its examples are sent, every answer is measured by it."""

import base64
import json
import re
from importlib.resources import files
from urllib.parse import quote

import pytest
from api_kit import Answer, Wire, keys_of

DOCUMENT = json.loads((files("qtrunk.api") / "etsi014.json").read_text())
STATUS, ENC, DEC = (f"/api/v1/keys/{{{who}_SAE_ID}}/{what}" for who, what in
                    (("slave", "status"), ("slave", "enc_keys"), ("master", "dec_keys")))  # fmt: skip


def resolved(node):
    while "$ref" in node:
        found = DOCUMENT
        for part in node["$ref"].removeprefix("#/").split("/"):
            found = found[part]
        node = {**found, **{key: value for key, value in node.items() if key != "$ref"}}
    return node


TYPES = {
    "object": lambda value: isinstance(value, dict),
    "array": lambda value: isinstance(value, list),
    "string": lambda value: isinstance(value, str),
    "integer": lambda value: isinstance(value, int) and not isinstance(value, bool),
    "number": lambda value: isinstance(value, (int, float)) and not isinstance(value, bool),
    "null": lambda value: value is None,
}
UNDERSTOOD = {
    *("type", "required", "properties", "additionalProperties", "items", "minItems", "maxItems"),
    *("minLength", "maxLength", "pattern", "minimum", "maximum", "uniqueItems", "multipleOf"),
    *("description", "format", "contentEncoding", "$ref"),
}  # fmt: skip


def check(value, schema, where: str = "$") -> None:
    """JSON Schema, as far as the document uses it; a keyword that this does not know fails."""
    schema = resolved(schema)
    assert set(schema) <= UNDERSTOOD, where
    kinds = [schema["type"]] if isinstance(schema["type"], str) else schema["type"]
    assert any(TYPES[kind](value) for kind in kinds), where
    match value:
        case dict():
            assert set(schema.get("required", ())) <= set(value), where
            for name, member in value.items():
                if name in schema.get("properties", {}):
                    check(member, schema["properties"][name], f"{where}.{name}")
                else:
                    assert schema.get("additionalProperties", True), f"{where}.{name}"
        case list():
            assert schema.get("minItems", 0) <= len(value) <= schema.get("maxItems", 10**9), where
            assert not schema.get("uniqueItems") or len({str(item) for item in value}) == len(value), where
            for index, item in enumerate(value):
                check(item, schema["items"], f"{where}[{index}]")
        case str():
            assert schema.get("minLength", 0) <= len(value) <= schema.get("maxLength", 10**9), where
            assert re.search(schema.get("pattern", ""), value), where
            if schema.get("contentEncoding") == "base64":
                base64.b64decode(value, validate=True)
        case int() | float():
            assert schema.get("minimum", value) <= value <= schema.get("maximum", value), where
            assert value % schema.get("multipleOf", 1) == 0 or isinstance(value, float), where


def content(node) -> dict:
    return node["content"]["application/json"]


def operations() -> list[tuple[str, str]]:
    return [(path, method) for path, item in DOCUMENT["paths"].items() for method in item if method != "parameters"]


def measured(answer: Answer, path: str, method: str) -> Answer:
    """The answer, after the document has been found to describe it."""
    described = DOCUMENT["paths"][path][method]["responses"]
    assert str(answer.status) in described
    check(answer.json(), content(described[str(answer.status)])["schema"])
    assert set(described[str(answer.status)].get("headers", {})) <= set(answer.headers)
    return answer


def test_the_document_describes_the_methods_of_the_standard_with_its_codes_only():
    assert DOCUMENT["openapi"].startswith("3.1")
    assert sorted(operations()) == sorted(
        [(STATUS, "get"), (ENC, "get"), (ENC, "post"), (DEC, "get"), (DEC, "post")]
    )  # fmt: skip
    for path, method in operations():
        assert set(DOCUMENT["paths"][path][method]["responses"]) == {"200", "400", "401", "503"}


def test_every_example_of_an_answer_fits_its_own_schema():
    for path, method in operations():
        for status, response in DOCUMENT["paths"][path][method]["responses"].items():
            assert content(response)["examples"]
            for name, example in content(response)["examples"].items():
                check(example["value"], content(response)["schema"], f"{path} {status} {name}")


def post_examples(path: str) -> list[tuple[str, object, str]]:
    """(name, body, status): an example of a request and the answers of the same name."""
    operation = DOCUMENT["paths"][path]["post"]
    found = []
    for name, example in content(operation["requestBody"])["examples"].items():
        (status,) = [
            status for status, response in operation["responses"].items() if name in content(response)["examples"]
        ]
        found.append((name, example["value"], status))
    return found


@pytest.mark.parametrize(("name", "body", "status"), post_examples(ENC))
def test_an_example_of_get_key_is_answered_as_described(as_alice, supply, name, body, status):
    answer = measured(as_alice.ask("POST", ENC.format(slave_SAE_ID="bob"), body), ENC, "post")
    example = content(DOCUMENT["paths"][ENC]["post"]["responses"][status])["examples"][name]["value"]
    assert str(answer.status) == status
    if answer.status == 200:
        assert len(answer.json()["keys"]) == len(example["keys"])
    elif name != "too many":
        # That text names the limit, which is another one here.
        assert answer.json() == example


@pytest.mark.parametrize(("name", "body", "status"), post_examples(DEC))
def test_an_example_of_get_key_with_key_ids_is_answered_as_described(as_alice, as_bob, supply, name, body, status):
    (given,) = keys_of(as_alice.ask("POST", ENC.format(slave_SAE_ID="bob")))
    supply.issued["7a8a2fd6-2d2c-4a0e-8f0a-3d1f5f0b9c11"] = supply.issued[given]
    answer = measured(as_bob.ask("POST", DEC.format(master_SAE_ID="alice"), body), DEC, "post")
    assert str(answer.status) == status
    if answer.status != 200:
        assert answer.json() == content(DOCUMENT["paths"][DEC]["post"]["responses"][status])["examples"][name]["value"]


def test_gets_and_status_are_answered_as_described(as_alice, as_bob, as_carol, supply):
    (key_id,) = keys_of(measured(as_alice.ask("GET", ENC.format(slave_SAE_ID="bob") + "?size=64&number=1"), ENC, "get"))
    dec = f"{DEC.format(master_SAE_ID='alice')}?key_ID={key_id}"
    assert measured(as_carol.ask("GET", dec), DEC, "get").status == 401
    assert measured(as_bob.ask("GET", dec), DEC, "get").status == 200
    assert measured(as_bob.ask("GET", dec), DEC, "get").status == 400
    assert measured(as_alice.ask("GET", STATUS.format(slave_SAE_ID=quote("a:b@c"))), STATUS, "get").status == 200
    assert measured(as_alice.ask("GET", STATUS.format(slave_SAE_ID="x")), STATUS, "get").status == 400


def test_refusals_and_shortage_are_answered_as_described(server, as_alice, pki, supply):
    supply.stock = 0
    assert measured(as_alice.ask("POST", ENC.format(slave_SAE_ID="bob")), ENC, "post").status == 503
    assert measured(as_alice.ask("GET", ENC.format(slave_SAE_ID="bob")), ENC, "get").status == 503
    with Wire(server.port, pki.sae("mallory")) as wire:
        for path, method in operations():
            place = path.format(slave_SAE_ID="bob", master_SAE_ID="bob")
            assert measured(wire.ask(method.upper(), place), path, method).status == 401


def test_the_measure_measures():
    schema = {
        "type": "object",
        "required": ["a"],
        "properties": {"a": {"type": "integer"}},
        "additionalProperties": False,
    }
    check({"a": 1}, schema)
    for wrong in ({}, {"a": "1"}, {"a": True}, {"a": 1, "b": 2}, []):
        with pytest.raises(AssertionError):
            check(wrong, schema)
