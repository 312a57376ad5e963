"""ETSI GS QKD 014 V1.1.1, the REST key delivery API: paths, bodies and words of Edition 1 over `delivery`.

    GET        /api/v1/keys/{slave_SAE_ID}/status
    GET, POST  /api/v1/keys/{slave_SAE_ID}/enc_keys
    GET, POST  /api/v1/keys/{master_SAE_ID}/dec_keys

The caller's identity is the SAE in its certificate, nothing else. The path names the other SAE. Wire spellings (master,
slave) live here only; inside we say initiator and targets. Codes are those of the standard: 200, 400, 401, 503; an
answer is always JSON, an error always {"message": ...}. docs/etsi014.md lists how the text's gaps are read,
etsi014.json describes the interface for machines.
"""

import msgspec

from qtrunk.api.delivery import KeyDelivery, KeyIdEntry, decode, known_parameters, refuse_mandatory_extensions
from qtrunk.api.https import Request, Response
from qtrunk.base.errors import RequestRefused
from qtrunk.base.ids import SaeId, parse_sae_id


class KeyRequest(msgspec.Struct, frozen=True):
    """Body of Get key; unknown members are ignored."""

    number: int | float | None = None
    size: int | float | None = None
    additional_slave_SAE_IDs: list[str] | None = None  # noqa: N815 (the standard's spelling)
    extension_mandatory: list[dict[str, object]] | None = None
    extension_optional: list[dict[str, object]] | None = None


class KeyIds(msgspec.Struct, frozen=True):
    """Body of Get key with key IDs; unknown members are ignored."""

    key_IDs: list[KeyIdEntry]  # noqa: N815


_KEY_REQUEST = msgspec.json.Decoder(KeyRequest)
_KEY_IDS = msgspec.json.Decoder(KeyIds)


class Etsi014(KeyDelivery):
    """The three methods for one KME."""

    initiator_word = "master"
    target_word = "slave"

    async def _answer(self, caller: SaeId, request: Request) -> Response:
        match request.segments:
            case ("api", "v1", "keys", other, "enc_keys"):
                self.only(request, "GET", "POST")
                slave = parse_sae_id(other)
                wanted = key_request(request)
                refuse_mandatory_extensions(wanted.extension_mandatory, wanted.extension_optional)
                return await self.initiate(
                    caller, slave, wanted.number, wanted.size, wanted.additional_slave_SAE_IDs, request
                )
            case ("api", "v1", "keys", other, "dec_keys"):
                self.only(request, "GET", "POST")
                return await self.collect(caller, parse_sae_id(other), key_ids(request), request)
            case ("api", "v1", "keys", other, "status"):
                self.only(request, "GET")
                known_parameters(request)
                return self._status(caller, parse_sae_id(other))
            case _:
                raise RequestRefused("unknown path: /api/v1/keys/{SAE_ID}/status, enc_keys or dec_keys")

    def _status(self, master: SaeId, slave: SaeId) -> Response:
        status, extension = self.status(master, slave)
        return Response(
            200,
            msgspec.json.encode(
                {
                    "source_KME_ID": status.source_kme,
                    "target_KME_ID": status.target_kme,
                    "master_SAE_ID": master,
                    "slave_SAE_ID": slave,
                    "key_size": status.key_bits,
                    "stored_key_count": status.stored_key_count,
                    "max_key_count": status.key_count_max,
                    "max_key_per_request": status.keys_per_request_max,
                    "max_key_size": status.key_bits_max,
                    "min_key_size": status.key_bits_min,
                    "max_SAE_ID_count": status.additional_targets_max,
                    "status_extension": extension,
                }
            ),
        )


def key_request(request: Request) -> KeyRequest:
    """What a request for fresh keys says; RequestRefused."""
    if request.method == "POST":
        known_parameters(request)
        return decode(request.body, _KEY_REQUEST)
    known_parameters(request, "number", "size")
    return KeyRequest(number=_integer(request, "number"), size=_integer(request, "size"))


def key_ids(request: Request) -> list[str]:
    """The key IDs that a request names; RequestRefused."""
    if request.method == "GET":
        known_parameters(request, "key_ID")
        if "key_ID" not in request.query:
            raise RequestRefused("key_ID: is missing")
        return [request.query["key_ID"]]
    known_parameters(request)
    return [entry.key_ID for entry in decode(request.body, _KEY_IDS).key_IDs]


def _integer(request: Request, name: str) -> int | None:
    text = request.query.get(name)
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and len(text) <= 9):
        raise RequestRefused(f"{name}: an integer is needed")
    return int(text)
