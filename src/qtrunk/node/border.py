"""Keys of foreign initiators for SAEs that the border node itself serves: the port `Interior` over its own store.

The keys come out of the same room, so nothing has to travel. Targets at other nodes are refused with RouteUnavailable,
and the foreign key manager is told `failed`.
"""

from collections.abc import Sequence

from qtrunk.base.errors import RouteUnavailable
from qtrunk.base.ids import KeyId, NodeId, SaeId
from qtrunk.base.ports import Clock
from qtrunk.base.secret import Secret
from qtrunk.kms.interwork.records import Extensions
from qtrunk.kms.store import KeyStore
from qtrunk.topology import Topology


class LocalInterior:
    """Carries keys from the border of a node to its own store."""

    def __init__(self, node: NodeId, topology: Topology, store: KeyStore, clock: Clock) -> None:
        self._node = node
        self._topology = topology
        self._store = store
        self._clock = clock

    async def carry(
        self,
        key_ids: Sequence[KeyId],
        materials: Sequence[Secret],
        initiator: SaeId,
        targets: Sequence[SaeId],
        extensions: Extensions,
    ) -> None:
        """Keep keys for their targets here, all or none. Extensions end here: no SAE interface of ours has any."""
        away = [target for target in targets if (sae := self._topology.sae(target)) is None or sae.node != self._node]
        if away:
            raise RouteUnavailable(f"SAE {away[0]} is not served at node {self._node}, where the foreign network is")
        network = self._topology.foreign(initiator)
        receipt: dict[str, object] = {
            "routes": [[self._node]],
            "hops": [],
            "protection": f"foreign network {network.id if network else '?'}: what it states, not known here",
        }
        expires_unix_s = self._clock.unix_s() + self._topology.tenant_of(targets[0]).key_lifetime_s
        with self._store.transaction():
            for key_id, material in zip(key_ids, materials, strict=True):
                self._store.store_keys(
                    [(key_id, material)], initiator, targets, targets, 8 * len(material), receipt, expires_unix_s
                )

    async def void(self, key_ids: Sequence[KeyId], targets: Sequence[SaeId]) -> set[KeyId]:
        """Destroy what waits; those that a target was given already. A key that never came needs no tombstone here:
        the machine over this port carries none after its void."""
        self._store.destroy_keys(key_ids, "voided")
        return {key_id for key_id in key_ids if self._is_delivered(key_id)}

    def _is_delivered(self, key_id: KeyId) -> bool:
        known = self._store.receipt(key_id) or {}
        recipients = known.get("recipients")
        return isinstance(recipients, list) and any(one["state"] == "delivered" for one in recipients)
