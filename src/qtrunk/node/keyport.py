"""The key interface's own port: GS QKD 014 over the compiled server."""

from collections.abc import Callable
from pathlib import Path

from qtrunk.api import etsi014v2
from qtrunk.api.etsi014 import Etsi014
from qtrunk.api.front import FrontContext, FrontServer
from qtrunk.api.lots import KeyLots
from qtrunk.api.tls import PeerIdentity
from qtrunk.base.ids import SaeId
from qtrunk.base.ports import LotSupply
from qtrunk.node.trust import Trust
from qtrunk.topology import KeyApi


def key_port(
    supply: LotSupply,
    sae_of: Callable[[PeerIdentity], SaeId | None],
    settings: KeyApi,
    credentials: tuple[Path, Path, Path],
    trust: Trust,
) -> tuple[FrontServer, FrontContext]:
    """The server and its TLS context, which wants to know of renewed certificates."""
    context = FrontContext(*credentials)
    edition1 = Etsi014(supply, sae_of, settings)
    handler = trust.guarded(etsi014v2.key_api(supply, sae_of, settings, edition1))
    lots = KeyLots(edition1, supply, trust.may_answer)
    return FrontServer(handler, context, is_revoked=trust.is_revoked, lots=lots), context
