"""Nodes' signature-verifying keys (ML-DSA-65, FIPS 204): proof that one holds the other half, and the signed directory.

Links with `bootstrap = "ml-dsa"` begin under these keys (node.authentication). The directory is signed with the
authority's own ML-DSA key, which the enrolment token pins: nothing in this chain rests on ECDSA.
"""

import base64
import hashlib

import msgspec
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA65PrivateKey, MLDSA65PublicKey

from qtrunk.base.errors import AuthenticationFailed, RequestRefused
from qtrunk.kms.audit import canonical

KEY_OCTETS_MAX = 8192
_PROOF = b"qtrunk verifying key 1"
_DIRECTORY = b"qtrunk directory 1"


class Directory(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The nodes' verifying keys (PEM) by node ID; a later one has a larger number."""

    number: int
    keys: dict[str, str]


class _Signed(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    directory: Directory
    signature: str


def _message(invitation: str, csr_der: bytes) -> bytes:
    return _PROOF + bytes.fromhex(invitation) + hashlib.sha256(csr_der).digest()


def prove(key: MLDSA65PrivateKey, invitation: str, csr_der: bytes) -> bytes:
    """Proof of possession, bound to one invitation and one certificate request."""
    return key.sign(_message(invitation, csr_der))


def load_key(pem: bytes) -> MLDSA65PublicKey:
    """A verifying key; RequestRefused where it is something else."""
    try:
        key = serialization.load_pem_public_key(pem) if len(pem) <= KEY_OCTETS_MAX else None
    except (ValueError, TypeError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, MLDSA65PublicKey):
        raise RequestRefused("verifying_key: an ML-DSA-65 public key in PEM is needed")
    return key


def check_proof(pem: bytes, proof: bytes, invitation: str, csr_der: bytes) -> None:
    """RequestRefused unless who sent `pem` holds its private half."""
    try:
        load_key(pem).verify(proof, _message(invitation, csr_der))
    except (InvalidSignature, ValueError):
        raise RequestRefused("proof: the signature does not verify, so it proves no possession of the key") from None


def sign_directory(key: MLDSA65PrivateKey, number: int, keys: dict[str, str]) -> bytes:
    """The directory as it goes out."""
    directory = Directory(number, keys)
    signature = base64.b64encode(key.sign(_DIRECTORY + canonical(directory))).decode()
    return canonical(_Signed(directory, signature))


def open_directory(octets: bytes, authority_key: bytes) -> Directory:
    """The directory, checked; AuthenticationFailed unless the authority with this (raw) key signed it."""
    try:
        signed = msgspec.json.decode(octets, type=_Signed)
        signature = base64.b64decode(signed.signature, validate=True)
        key = MLDSA65PublicKey.from_public_bytes(authority_key)
        key.verify(signature, _DIRECTORY + canonical(signed.directory))
        for pem in signed.directory.keys.values():
            load_key(pem.encode())
    except (msgspec.MsgspecError, ValueError, InvalidSignature, RequestRefused) as error:
        raise AuthenticationFailed("directory of verifying keys: not signed by this network's authority") from error
    return signed.directory
