"""ETSI GS QKD 020 V1.1.1: the words of the interface between two key managers (clause 6), for server and client.

What is missing is told apart from what is wrong, since the standard has a problem type for each. Members that nobody
knows are ignored; extensions (clause 6.6) are kept as the octets that came. docs/etsi020.md says how the text is read.

Errors: `ProblemError`, which a server answers with (RFC 9457); its texts hold no value of a request.
"""

import binascii
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TypeVar

import msgspec

from qtrunk.api.https import Response
from qtrunk.base.errors import RequestRefused
from qtrunk.base.ids import KeyId, SaeId, parse_key_id, parse_sae_id
from qtrunk.base.ports import SuppliedKey
from qtrunk.base.secret import Secret
from qtrunk.kms.interwork.records import (
    KEY_OCTETS_MAX,
    KEY_OCTETS_MIN,
    KEYS_PER_REQUEST_MAX,
    Ack,
    AckStatus,
    Extensions,
)

VERSIONS_PATH = "/kmapi/versions"
EXT_KEYS_PATH = "/kmapi/v1/ext_keys"
ACK_PATH = "/kmapi/v1/ext_keys/ack"
VOID_PATH = "/kmapi/v1/ext_keys/void"
SYNCHRONOUS = "synchronous_mode"
JSON = "application/json; charset=UTF-8"
PROBLEM_JSON = "application/problem+json"
PROBLEM_TYPE = "https://qkd.etsi.org/gs020-interop-kms/"
TARGETS_MAX = 64
ACKS_MAX = 1024
URL_CHARACTERS_MAX = 1024
EXTENSIONS_MAX = 1024
MESSAGE_CHARACTERS_MAX = 4096
_EXTENSION = re.compile(r"E[0-9]+_.+")

T = TypeVar("T")


class ProblemError(Exception):
    """What is answered instead of what was asked for: status, slug of the problem's type, title, details by name."""

    def __init__(self, status: int, slug: str, title: str, details: Mapping[str, str] | None = None) -> None:
        super().__init__(title)
        self.status = status
        self.slug = slug
        self.title = title
        self.details = dict(details or {})


def problem(error: ProblemError, headers: Mapping[str, str] | None = None) -> Response:
    """The answer (problem_details)."""
    body: dict[str, object] = {"type": PROBLEM_TYPE + error.slug, "status": error.status, "title": error.title}
    if error.details:
        # The standard's plural, not the `detail` of RFC 9457.
        body["details"] = error.details
    return Response(error.status, msgspec.json.encode(body), {"Content-Type": PROBLEM_JSON, **(headers or {})})


def refusal(status: int, message: str, headers: dict[str, str]) -> Response:
    """For what never became a request of this interface."""
    slug = "invalid-parameter" if status == 400 else "server-side-general-error"
    return problem(ProblemError(status, slug, message), headers)


class ExtKey(msgspec.Struct):
    """One key of an ext_key_container."""

    key_id: str | None = None
    value: bytearray | None = None
    extension: msgspec.Raw = msgspec.Raw()


class ExtKeys(msgspec.Struct):
    """ext_key_container."""

    keys: list[ExtKey] | None = None
    initiator_sae_id: str | None = None
    target_sae_ids: list[str] | None = None
    ack_callback_url: str | None = None
    extension_mandatory: dict[str, msgspec.Raw] | None = None
    extension_optional: msgspec.Raw = msgspec.Raw()


class VoidContainer(msgspec.Struct):
    """void_container."""

    key_ids: list[str] | None = None
    initiator_sae_id: str | None = None
    target_sae_ids: list[str] | None = None
    ack_callback_url: str | None = None
    all_confirmation: bool | None = None


class AckedKey(msgspec.Struct, omit_defaults=True):
    """One entry of key_id_container."""

    key_id: str | None = None


class AckContainer(msgspec.Struct, omit_defaults=True):
    """ack_container."""

    key_id_container: list[AckedKey] | None = None
    ack_status: str | None = None
    initiator_sae_id: str | None = None
    target_sae_ids: list[str] | None = None
    message: str | None = None


class Versions(msgspec.Struct):
    """version_container."""

    versions: list[str]
    capabilities: list[str] = []


def decode(octets: bytes, kind: type[T], slug: str = "invalid-parameter") -> T:
    """A body of this kind, or a 400."""
    try:
        return msgspec.json.decode(octets, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, binascii.Error) as error:
        # The decoder's text names places and types; only for an unknown kind of error it could show octets.
        text = str(error) if isinstance(error, msgspec.ValidationError) else "not valid JSON in UTF-8"
        raise ProblemError(400, slug, "the body is not what the standard says", {"body": text}) from None


def require(container: object, *names: str, slug: str = "missing-parameters") -> None:
    """A 400 that lists what is missing."""
    missing = [name for name in names if getattr(container, name) is None]
    if missing:
        raise ProblemError(400, slug, "parameters are missing", dict.fromkeys(missing, "is missing"))


def wrong(name: str, what: str) -> ProblemError:
    """A 400 about one parameter."""
    return ProblemError(400, "invalid-parameter", f"{name}: {what}", {name: what})


def key_ids_of(texts: Sequence[str], name: str) -> tuple[KeyId, ...]:
    """Key IDs, each once, or a 400."""
    if len(texts) > KEYS_PER_REQUEST_MAX:
        raise wrong(name, f"{len(texts)} given; at most {KEYS_PER_REQUEST_MAX} in one request")
    try:
        found = tuple(parse_key_id(text) for text in texts)
    except RequestRefused:
        raise wrong(name, "a UUID in text form is needed (RFC 9562)") from None
    if len(set(found)) != len(found):
        raise wrong(name, "a key ID is given twice")
    return found


def keys_of(container: ExtKeys) -> tuple[list[SuppliedKey], Extensions]:
    """The keys and the extensions of a container that has all it needs; the octets in the container are wiped."""
    entries = container.keys or []
    try:
        if not entries:
            raise wrong("keys", "at least one is needed")
        for entry in entries:
            require(entry, "key_id", "value")
        key_ids = key_ids_of([entry.key_id or "" for entry in entries], "key_id")
        keys: list[SuppliedKey] = []
        for key_id, entry in zip(key_ids, entries, strict=True):
            value = entry.value or bytearray()
            if not KEY_OCTETS_MIN <= len(value) <= KEY_OCTETS_MAX:
                raise wrong("value", f"from {KEY_OCTETS_MIN} to {KEY_OCTETS_MAX} octets in base64")
            keys.append(SuppliedKey(key_id=key_id, material=Secret(value)))
    finally:
        for entry in entries:
            if entry.value is not None:
                entry.value[:] = bytes(len(entry.value))
    of_key = {
        key_id: extension_of(entry.extension, "extension")
        for key_id, entry in zip(key_ids, entries, strict=True)
        if extension_of(entry.extension, "extension")
    }
    return keys, Extensions(of_request=extension_of(container.extension_optional, "extension_optional"), of_key=of_key)


def extension_of(raw: msgspec.Raw, name: str) -> bytes:
    """An extension object as it came; empty where there is none."""
    if bytes(raw) in (b"", b"null"):
        return b""
    try:
        members = msgspec.json.decode(raw, type=dict[str, msgspec.Raw])
    except msgspec.MsgspecError:
        raise wrong(name, "an object is needed") from None
    if not members:
        return b""
    if len(members) > EXTENSIONS_MAX or not all(_EXTENSION.fullmatch(member) for member in members):
        raise wrong(name, f"at most {EXTENSIONS_MAX} members named E, the IANA number of an enterprise, _ and a name")
    return bytes(raw)


def saes_of(texts: Sequence[str], name: str) -> tuple[SaeId, ...]:
    """SAE IDs, each once, or a 400."""
    if not 1 <= len(texts) <= TARGETS_MAX:
        raise wrong(name, f"{len(texts)} given; 1 to {TARGETS_MAX} are taken")
    try:
        return tuple(dict.fromkeys(parse_sae_id(text) for text in texts))
    except RequestRefused:
        raise wrong(name, "1 to 64 characters that are legal in a URI") from None


def acks_of(containers: Sequence[AckContainer]) -> list[Ack]:
    """What an array of ack_container says, or a 400 (ack-not-understood)."""
    slug = "ack-not-understood"
    if not 1 <= len(containers) <= ACKS_MAX:
        raise ProblemError(400, slug, f"{len(containers)} acks; 1 to {ACKS_MAX} are taken")
    found: list[Ack] = []
    for one in containers:
        require(one, "key_id_container", "ack_status", "initiator_sae_id", "target_sae_ids", slug=slug)
        try:
            found.append(
                Ack(
                    status=AckStatus(one.ack_status),
                    key_ids=key_ids_of([key.key_id or "" for key in one.key_id_container or ()], "key_id_container"),
                    initiator=saes_of([one.initiator_sae_id or ""], "initiator_sae_id")[0],
                    targets=saes_of(one.target_sae_ids or [], "target_sae_ids"),
                    message="".join(filter(str.isprintable, one.message or ""))[:200],
                )
            )
        except ValueError:
            known = ", ".join(status.value for status in AckStatus)
            raise ProblemError(400, slug, f"ack_status: one of {known}", {"ack_status": "not known"}) from None
        except ProblemError as error:
            raise ProblemError(400, slug, error.title, error.details) from None
    return found


def acks_json(acks: Iterable[Ack]) -> bytes:
    """An array of ack_container."""
    return msgspec.json.encode(
        [
            AckContainer(
                key_id_container=[AckedKey(key_id=key_id) for key_id in ack.key_ids],
                ack_status=ack.status.value,
                initiator_sae_id=ack.initiator,
                target_sae_ids=list(ack.targets),
                message=ack.message[:MESSAGE_CHARACTERS_MAX] or None,
            )
            for ack in acks
        ]
    )


def keys_json(
    keys: Sequence[SuppliedKey], initiator: SaeId, targets: Sequence[SaeId], callback: str, extensions: Extensions
) -> bytearray:
    """An ext_key_container in one buffer, to be wiped after sending."""
    body = bytearray(b'{"keys":[')
    for place, key in enumerate(keys):
        body += b'%s{"key_id":"%s","value":"' % (b"," if place else b"", key.key_id.encode())
        body += binascii.b2a_base64(key.material.reveal(), newline=False)
        extension = extensions.of_key.get(key.key_id)
        body += b'","extension":%s}' % extension if extension else b'"}'
    rest = msgspec.json.encode(
        {"initiator_sae_id": initiator, "target_sae_ids": list(targets), "ack_callback_url": callback}
    )
    body += b"]," + rest[1:-1]
    if extensions.of_request:
        body += b',"extension_optional":' + extensions.of_request
    return body + b"}"
