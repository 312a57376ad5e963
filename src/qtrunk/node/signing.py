"""The signing key of a node, made where there is none (ML-DSA-65, FIPS 204)."""

import os
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA65PrivateKey


def make_signing_key(private_key: Path, public_key: Path) -> None:
    """A new pair, unless there is one; the private key is readable by its owner only."""
    if public_key.exists():
        return
    private_key.unlink(missing_ok=True)
    key = MLDSA65PrivateKey.generate()
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    descriptor = os.open(private_key, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as out:
        out.write(pem)
    # The public half comes last: where it is, both are.
    public_key.write_bytes(
        key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    )
