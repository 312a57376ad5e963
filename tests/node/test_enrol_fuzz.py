"""The enrolment service under hostile bodies: always a clear refusal, never a certificate, never an error of ours."""

import base64
import json

import pytest
from cryptography.hazmat.primitives import serialization
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qtrunk.api.https import Request
from qtrunk.base.errors import RequestRefused
from qtrunk.base.secret import Secret
from qtrunk.node.ca import certificates, service, tokens
from qtrunk.node.ca.identity import Identity, Kind

quick = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
CSR = certificates.sign_request(certificates.new_key()).public_bytes(serialization.Encoding.DER)
anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


def ask(office, path, body):
    request = Request("POST", ("enrol", "v1", path), {}, body, service.NOBODY)
    return office.run(office.service.handle(request)).status


@quick
@given(
    body=st.binary(max_size=200)
    | anything.map(lambda value: json.dumps(value).encode())
    | st.fixed_dictionaries({"csr": anything, "token": anything, "proof": anything}).map(
        lambda value: json.dumps(value).encode()
    ),
    path=st.sampled_from(["join", "renew"]),
)
def test_any_body_is_refused(office, body, path):
    assert ask(office, path, body) in (400, 401)
    assert [issued.kind for issued in office.authority.issued()] == [Kind.AUTHORITY]


@quick
@given(place=st.integers(0, len(CSR) - 1), octet=st.integers(1, 255))
def test_a_request_with_one_octet_changed_is_refused(place, octet):
    der = bytearray(CSR)
    der[place] ^= octet
    pem = (
        b"-----BEGIN CERTIFICATE REQUEST-----\n"
        + base64.encodebytes(bytes(der))
        + b"-----END CERTIFICATE REQUEST-----\n"
    )
    with pytest.raises(RequestRefused):
        certificates.check_request(pem, Identity(Kind.SAE, "bank"))


@quick
@given(text=st.binary(max_size=120) | st.binary(max_size=120).map(lambda octets: b"qtrunk-enrol-1." + octets))
def test_any_token_is_read_or_refused(text):
    try:
        found = tokens.parse_token(Secret(text))
    except RequestRefused:
        return
    assert tokens.parse_token(found.text()).digest() == found.digest()
