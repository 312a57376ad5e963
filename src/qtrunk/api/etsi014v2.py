"""ETSI GS QKD 014 Edition 2 (stable draft V1.3.1, June 2025), as far as it is known in public, over `delivery`.

    GET   /kdapi/versions
    POST  /kdapi/v2/status      target_SAE_ID
    POST  /kdapi/v2/enc_keys    target_SAE_ID, number, size, additional_target_SAE_IDs, extension_…
    POST  /kdapi/v2/dec_keys    initiator_SAE_ID, key_IDs

The draft moves the paths to /kdapi/v2, takes GET away from key delivery, puts SAE IDs into the body and says initiator
and target for master and slave. The rest is our reading, marked so in docs/etsi014.md: names of members follow Edition
1, /kdapi/versions follows GS QKD 020's /kmapi/versions. Off unless `edition2` is on: the published text may differ.
"""

from collections.abc import Callable

import msgspec

from qtrunk.api.delivery import KeyDelivery, KeyIdEntry, decode, known_parameters, refuse_mandatory_extensions
from qtrunk.api.etsi014 import Etsi014
from qtrunk.api.https import Handler, PeerIdentity, Request, Response
from qtrunk.base.errors import RequestRefused
from qtrunk.base.ids import SaeId, parse_sae_id
from qtrunk.base.ports import KeySupply
from qtrunk.topology import KeyApi


class StatusRequest(msgspec.Struct, frozen=True):
    """Body of status; unknown members are ignored."""

    target_SAE_ID: str  # noqa: N815 (the standard's spelling, here and below)


class KeyRequest(msgspec.Struct, frozen=True):
    """Body of enc_keys; unknown members are ignored."""

    target_SAE_ID: str  # noqa: N815
    number: int | float | None = None
    size: int | float | None = None
    additional_target_SAE_IDs: list[str] | None = None  # noqa: N815
    extension_mandatory: list[dict[str, object]] | None = None
    extension_optional: list[dict[str, object]] | None = None


class KeyIds(msgspec.Struct, frozen=True):
    """Body of dec_keys; unknown members are ignored."""

    initiator_SAE_ID: str  # noqa: N815
    key_IDs: list[KeyIdEntry]  # noqa: N815


_STATUS_REQUEST = msgspec.json.Decoder(StatusRequest)
_KEY_REQUEST = msgspec.json.Decoder(KeyRequest)
_KEY_IDS = msgspec.json.Decoder(KeyIds)


class Etsi014V2(KeyDelivery):
    """The methods of the draft for one KME."""

    initiator_word = "initiator"
    target_word = "target"

    async def _answer(self, caller: SaeId, request: Request) -> Response:
        known_parameters(request)
        match request.segments:
            case ("kdapi", "v2", "enc_keys"):
                self.only(request, "POST")
                wanted = decode(request.body, _KEY_REQUEST)
                target = parse_sae_id(wanted.target_SAE_ID)
                refuse_mandatory_extensions(wanted.extension_mandatory, wanted.extension_optional)
                return await self.initiate(
                    caller, target, wanted.number, wanted.size, wanted.additional_target_SAE_IDs, request
                )
            case ("kdapi", "v2", "dec_keys"):
                self.only(request, "POST")
                ids = decode(request.body, _KEY_IDS)
                key_ids = [entry.key_ID for entry in ids.key_IDs]
                return await self.collect(caller, parse_sae_id(ids.initiator_SAE_ID), key_ids, request)
            case ("kdapi", "v2", "status"):
                self.only(request, "POST")
                return self._status(caller, parse_sae_id(decode(request.body, _STATUS_REQUEST).target_SAE_ID))
            case ("kdapi", "versions"):
                self.only(request, "GET")
                return Response(200, b'{"versions":["v2"]}')
            case _:
                raise RequestRefused("unknown path: /kdapi/versions, /kdapi/v2/status, enc_keys or dec_keys")

    def _status(self, initiator: SaeId, target: SaeId) -> Response:
        status, extension = self.status(initiator, target)
        return Response(
            200,
            msgspec.json.encode(
                {
                    "source_KME_ID": status.source_kme,
                    "target_KME_ID": status.target_kme,
                    "initiator_SAE_ID": initiator,
                    "target_SAE_ID": target,
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


def key_api(
    supply: KeySupply,
    sae_of: Callable[[PeerIdentity], SaeId | None],
    settings: KeyApi,
    edition1: Etsi014 | None = None,
) -> Handler:
    """The handler of a node's key interface: Edition 1, and Edition 2 beside it where it is switched on."""
    edition1 = edition1 or Etsi014(supply, sae_of, settings)
    if not settings.edition2:
        return edition1.handle
    edition2 = Etsi014V2(supply, sae_of, settings)

    async def handle(request: Request) -> Response:
        edition = edition2 if request.segments[:1] == ("kdapi",) else edition1
        return await edition.handle(request)

    return handle
