"""Configuration for devices that fetch keys here, from the same topology as the nodes' own.

    box         one device: an SAE, the SAE at the other end, and where its key manager is
    fortios     FortiGate, ETSI GS QKD 014
    routeros    MikroTik, ETSI GS QKD 014
    panos       Palo Alto Networks, ETSI GS QKD 014
    iosxr       Cisco IOS XR, SKIP
    swanctl     strongSwan, by a script that fetches keys (`fetch`)
    wireguard   WireGuard, by the same

What only the device's owner knows stands in angle brackets, and a comment says what belongs there. There is no secret
in any of this, only paths and names. docs/devices.md says what was tried on which device.
"""

from collections.abc import Callable, Mapping

from qtrunk.config.devices import fortios, iosxr, panos, routeros, swanctl, wireguard
from qtrunk.config.devices.box import Box

EMITTERS: Mapping[str, Callable[[Box], str]] = {
    "fortios": fortios.emit,
    "routeros": routeros.emit,
    "panos": panos.emit,
    "iosxr": iosxr.emit,
    "swanctl": swanctl.emit,
    "wireguard": wireguard.emit,
}
