"""SAEs of a lab: each asks its KME for its supply to another one (ETSI GS QKD 014 Get status), which costs no key."""

from collections.abc import Iterator

from qtrunk.api.client import Etsi014Client
from qtrunk.base.errors import QtrunkError
from qtrunk.base.ids import SaeId
from qtrunk.cli.doctor.finding import Finding, error, warning
from qtrunk.cli.doctor.site import TIMEOUT_S, Site, at_once
from qtrunk.node.lab import Lab
from qtrunk.topology import Sae


def check_saes(site: Site) -> Iterator[Finding]:
    """Every SAE that has somebody to share keys with."""
    lab = site.lab
    assert lab is not None
    pairs = [(sae, peer) for sae in lab.topology.saes for peer in [peer_of(lab, sae)] if peer is not None]
    for findings in at_once(lambda pair: list(_served(lab, *pair)), pairs):
        yield from findings


def peer_of(lab: Lab, sae: Sae) -> SaeId | None:
    """Whom it shares a demand with, else the first SAE of its tenant at another node; None: nobody."""
    for demand in lab.topology.demands:
        if sae.id in demand.between:
            return next(other for other in demand.between if other != sae.id)
    tenant = lab.topology.tenant_of(sae.id)
    others = (other for other in lab.topology.saes if other.node != sae.node)
    return next((other.id for other in others if lab.topology.tenant_of(other.id) == tenant), None)


def _served(lab: Lab, sae: Sae, peer: SaeId) -> Iterator[Finding]:
    on = f"SAE {sae.id}"
    kme_id = lab.topology.kme_id(sae.node)
    own = lab.credentials(sae.id)
    try:
        client = Etsi014Client(
            kme_url=lab.kme_url(sae.node),
            certificate=own.certificate,
            private_key=own.private_key,
            ca_certificate=own.ca_certificate,
            own_sae=sae.id,
            timeout_s=TIMEOUT_S,
            kme_id=kme_id,
        )
    except OSError as problem:
        what = f"its certificate {own.certificate} cannot be used ({problem.strerror or problem})"
        yield error(on, what, "it gets no key", "see the findings on certificates")
        return
    try:
        found = client.status(peer)
    except QtrunkError as problem:
        fix = "see the findings on certificates and ports; the SAE's `identities` in the topology"
        yield error(on, f"its KME does not serve it: {problem}", "it gets no key", fix)
        return
    finally:
        client.close()
    if found.source_kme != kme_id:
        what = f"KME {found.source_kme} serves it, the topology says {kme_id}"
        yield error(on, what, "its peers look for its keys elsewhere", "correct the topology, or the KME's address")
    if found.stored_key_count == 0:
        what = f"no key lies ready from it to {peer}"
        fix = "a fresh lab needs a minute; else see `qtrunk status` for links that give none"
        yield warning(on, what, "requests for keys are answered 503", fix)
