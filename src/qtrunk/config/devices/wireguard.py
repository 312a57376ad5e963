"""WireGuard: the key is the peer's preshared key, in force with the next handshake. Source: wg(8)."""

from qtrunk.config.devices.box import Box
from qtrunk.config.devices.fetch import script

_USE = """    # wg(8) reads the key from its standard input.
    interface, peer = "<interface, such as wg0>", "<public key of the other end>"
    command = ["wg", "set", interface, "peer", peer, "preshared-key", "/dev/stdin"]
    subprocess.run(command, input=key.encode(), check=True)
"""


def emit(box: Box) -> str:
    """A script that sets the preshared key. Both ends must have run it before the next handshake (120 s)."""
    return script(box, "qtrunk-wireguard", f"WireGuard's preshared key with {box.peer}", _USE)
