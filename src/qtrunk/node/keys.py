"""Where what opens a node's store lies, and what a node says of itself: sealed, or in service."""

from pathlib import Path

from qtrunk.kms.vault.unsealing import Keys
from qtrunk.node.config import NodeConfig

SEALED, STARTING, IN_SERVICE = "sealed", "starting", "in service"


def keys_of(config: NodeConfig) -> Keys:
    """Where a node's vault, bare KEK file and store lie."""
    directory = Path(config.directory)
    vault = directory / "vault.json" if config.vault is None else Path(config.vault)
    return Keys(config.node_id, vault, directory / "kek", directory / "store")
