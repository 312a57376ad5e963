"""Which SAE a certificate speaks for.

GS QKD 014 V1.1.1 (clause 4) leaves open where an SAE ID sits in a certificate. In this order, and the first that says
something decides:

1. a URI name `urn:NAMESPACE:sae:ID` binds: it is that SAE or none; with the role `kme` or `operator` it is none;
2. any other URI name that is registered for an SAE;
3. a DNS name;
4. a common name;
5. the SHA-256 fingerprint of the certificate or of its public key.

Registered are the `identities` of an SAE in the topology file; an SAE without any is known by its ID as a URI, DNS or
common name. A certificate that speaks for two SAEs of one rank speaks for none.
"""

import logging
from collections.abc import Iterable

from qtrunk.api.tls import PeerIdentity
from qtrunk.base.ids import SaeId
from qtrunk.topology import Sae

log = logging.getLogger(__name__)

KEPT_MAX = 4096


class SaeRegistry:
    """The SAEs that one key manager serves, by what their certificates say. Never changed: make another one."""

    def __init__(self, saes: Iterable[Sae]) -> None:
        self._owners: dict[str, set[SaeId]] = {}
        for sae in saes:
            for claim in (f"sae:{sae.id}", *sae.claims()):
                self._owners.setdefault(claim, set()).add(sae.id)
        self._found: dict[str, SaeId | None] = {}

    def sae_of(self, identity: PeerIdentity) -> SaeId | None:
        """The SAE of a certificate, or None; worked out once for each certificate."""
        try:
            return self._found[identity.fingerprint]
        except KeyError:
            pass
        if len(self._found) >= KEPT_MAX:
            self._found.clear()
        sae = self._found[identity.fingerprint] = self._decide(identity)
        return sae

    def _decide(self, identity: PeerIdentity) -> SaeId | None:
        for rank in identity.claims:
            saes: set[SaeId] = set().union(*(self._owners.get(claim, ()) for claim in rank))
            if len(saes) > 1:
                log.warning(
                    "certificate %s speaks for the SAEs %s; it is taken for none",
                    identity.fingerprint,
                    ", ".join(sorted(saes)),
                )
                return None
            if saes:
                return saes.pop()
        return None
