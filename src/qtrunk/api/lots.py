"""Requests of GS QKD 014 Edition 1 that are answered together, each as it would be by itself (`front.Lots`).

Equal requests for fresh keys of one client differ in nothing but the keys they get: their keys are taken in one run and
recorded by one record. Requests for a key by its ID are looked up together, and what lies side by side is one read and
one record, too; those for several keys at least wait for the disk together. Whatever is not plain is left to be
answered one by one: requests that are wrong, that have several targets or might be refused.
"""

from collections.abc import Callable, Sequence

from qtrunk.api.delivery import container
from qtrunk.api.etsi014 import Etsi014, key_ids, key_request
from qtrunk.api.front import EACH, SAME
from qtrunk.api.https import Request, Response
from qtrunk.api.tls import PeerIdentity
from qtrunk.base.errors import NotAuthorised, QtrunkError, StoreError
from qtrunk.base.ids import KeyId, parse_sae_id
from qtrunk.base.ports import LotSupply, SuppliedKey, SuppliedKeys


class KeyLots:
    """The lots of one KME."""

    def __init__(self, edition1: Etsi014, supply: LotSupply, may_answer: Callable[[], bool]) -> None:
        """`may_answer` says whether keys may be given out now at all; if not, the handler says why."""
        self._edition1 = edition1
        self._supply = supply
        self._may_answer = may_answer

    def kind(self, method: str, segments: tuple[str, ...]) -> str | None:
        """See `front.Lots`."""
        match segments:
            case ("api", "v1", "keys", _, "enc_keys") if method in ("GET", "POST"):
                return SAME
            case ("api", "v1", "keys", _, "dec_keys") if method in ("GET", "POST"):
                return EACH
            case _:
                return None

    async def same(self, request: Request, count: int) -> tuple[SuppliedKeys, int] | Response | None:
        """See `front.Lots`."""
        try:
            caller = self._edition1.caller(request.identity)
            wanted = key_request(request)
            if not self._may_answer() or wanted.extension_mandatory or wanted.extension_optional:
                return None
            if wanted.additional_slave_SAE_IDs is not None:
                return None
            slave = parse_sae_id(request.segments[3])
            (target,), number, size = self._edition1.checked(caller, slave, wanted.number, wanted.size, None)
        except QtrunkError:
            return None
        try:
            keys = await self._supply.initiate_same(caller, target, number, size, count)
        except StoreError as problem:
            return self._edition1.refusal(request.identity, problem)
        except QtrunkError:
            return None
        return None if keys is None else (keys, number)

    async def each(self, requests: list[Request]) -> SuppliedKeys | list[Response | None]:
        """See `front.Lots`."""
        answers: list[Response | None] = [None] * len(requests)
        first, identity = requests[0], requests[0].identity
        asked: list[tuple[int, list[KeyId]]] = []
        try:
            caller, master = self._edition1.caller(identity), parse_sae_id(first.segments[3])
        except QtrunkError:
            return answers
        if not self._may_answer():
            return answers
        for place, request in enumerate(requests):
            try:
                asked.append((place, self._edition1.checked_ids(caller, master, key_ids(request))))
            except QtrunkError:
                continue  # By itself it gets its refusal.
        try:
            found = await self._supply.collect_each(caller, master, [ids for _, ids in asked])
        except NotAuthorised:
            return answers
        except StoreError as problem:
            found = [problem] * len(asked)
        if isinstance(found, SuppliedKeys):
            if len(found) == len(requests):
                return found
            found = [[key] for key in found]
        for (place, _), keys in zip(asked, found, strict=True):
            answers[place] = self._answer(identity, keys)
        return answers

    def _answer(self, identity: PeerIdentity, keys: Sequence[SuppliedKey] | QtrunkError | None) -> Response | None:
        if keys is None or isinstance(keys, NotAuthorised):
            return None  # By itself it is noted as a refusal, too.
        return self._edition1.refusal(identity, keys) if isinstance(keys, QtrunkError) else container(keys)
