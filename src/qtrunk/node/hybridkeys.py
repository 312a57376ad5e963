"""The node's end of hybrid keys in the real world: asks other nodes for their ML-KEM keys, answers with its own.

Keys travel in signed notes (`node.notes`). A seed for a node whose key is not known yet fails at once, like a pool that
is empty, and asks for the key meanwhile.
"""

import logging
from collections.abc import Iterable, Mapping
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA65PrivateKey, MLDSA65PublicKey

from qtrunk.base.errors import ConfigError, KeyExhausted, RouteUnavailable
from qtrunk.base.ids import NodeId
from qtrunk.base.ports import Clock
from qtrunk.base.secret import Secret
from qtrunk.crypto.hybrid import HybridEnd, UnknownKemKeyError, Wrapped
from qtrunk.node.notes import Notes

log = logging.getLogger(__name__)

_ASK, _OFFER = "kem-ask", "kem-offer"
ASK_PERIOD_S = 1.0


class HybridKeys:
    """What the relay machine asks of hybrid keys (relay.ports.HybridPort)."""

    def __init__(self, end: HybridEnd, notes: Notes, clock: Clock) -> None:
        self._end = end
        self._notes = notes
        self._clock = clock
        self._asked_s: dict[str, float] = {}
        self._told: dict[NodeId, bytes] = {}
        notes.serve(_ASK, lambda node, _octets: self._offer(node))
        notes.serve(_OFFER, lambda _node, octets: self._learn(octets))

    def wrap(self, node: str, seed: Secret, context: bytes, now_unix_s: float) -> Wrapped:
        """See crypto.hybrid.HybridEnd."""
        try:
            return self._end.wrap(node, seed, context, now_unix_s)
        except KeyExhausted:
            self.ask(NodeId(node))
            raise

    def unwrap(self, sender: str, wrapped: Wrapped, context: bytes) -> Secret:
        """See crypto.hybrid.HybridEnd."""
        try:
            return self._end.unwrap(sender, wrapped, context)
        except UnknownKemKeyError:
            # This node started anew since: the sender's next try is under the present key.
            self._offer(NodeId(sender))
            raise

    def ask(self, node: NodeId) -> None:
        """Ask a node for its present key, not too often."""
        now_s = self._clock.monotonic_s()
        if now_s - self._asked_s.get(node, -ASK_PERIOD_S) >= ASK_PERIOD_S:
            self._asked_s[node] = now_s
            self._tell(node, _ASK, b"")

    def announce(self, nodes: Iterable[NodeId]) -> None:
        """Tell nodes the present key, each once: they may have one from before this node's start, or an old one."""
        offer = self._end.offer(self._clock.unix_s())
        for node in nodes:
            if self._told.get(node) != offer:
                self._told[node] = offer
                self._tell(node, _OFFER, offer)

    def _offer(self, node: NodeId) -> None:
        self._tell(node, _OFFER, self._end.offer(self._clock.unix_s()))

    def _learn(self, octets: bytes) -> None:
        node = self._end.learn(octets, self._clock.unix_s())
        log.info("hybrid keys: have the ML-KEM key of node %s", node)

    def _tell(self, node: NodeId, service: str, octets: bytes) -> None:
        try:
            self._notes.tell(node, service, octets)
        except RouteUnavailable as error:
            log.info("hybrid keys: %s", error)


def load_end(node: str, signing_key: Path, verifying_keys: dict[str, str], suite: str) -> HybridEnd:
    """From PEM files; ConfigError where one is missing or holds something else."""
    try:
        own = serialization.load_pem_private_key(signing_key.read_bytes(), password=None)
    except (OSError, ValueError, TypeError) as error:
        raise ConfigError([f"signing_key: {error}"]) from error
    if not isinstance(own, MLDSA65PrivateKey):
        raise ConfigError([f"signing_key {signing_key}: an ML-DSA-65 key is needed"])
    return HybridEnd(node, own, load_verifying_keys(verifying_keys), suite)


def load_verifying_keys(paths: Mapping[str, str]) -> dict[str, MLDSA65PublicKey]:
    """Of other nodes, from PEM files; ConfigError where one is missing or holds something else."""
    known: dict[str, MLDSA65PublicKey] = {}
    for other, path in paths.items():
        try:
            key = serialization.load_pem_public_key(Path(path).read_bytes())
        except (OSError, ValueError, TypeError) as error:
            raise ConfigError([f"verifying_keys {other}: {error}"]) from error
        if not isinstance(key, MLDSA65PublicKey):
            raise ConfigError([f"verifying_keys {other}: an ML-DSA-65 key is needed"])
        known[other] = key
    return known
