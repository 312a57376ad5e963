"""What one controller process is told: a JSON file. No secrets in it, but what `store` may have."""

from pathlib import Path

import msgspec

from qtrunk.base.errors import ConfigError
from qtrunk.node.config import Address
from qtrunk.topology import Topology


class ControllerConfig(msgspec.Struct, frozen=True):
    """Everything a controller process needs to start."""

    name: str
    directory: str
    api: Address
    certificate: str
    private_key: str
    ca_certificate: str
    topology: dict[str, object]
    nodes: dict[str, Address]
    """The administration interface of each node."""
    store: str
    """A file (SQLite; with the lease file beside it, for controllers of one machine), or `postgresql://…`, for many."""
    revocation_list: str | None = None

    def load_topology(self) -> Topology:
        """The network it controls."""
        return Topology.from_dict(self.topology)


def load(path: Path) -> ControllerConfig:
    """Read a controller's configuration; ConfigError says which field is wrong."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=ControllerConfig)
    except (OSError, msgspec.MsgspecError) as error:
        raise ConfigError([f"{path}: {error}"]) from error
