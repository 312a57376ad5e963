"""FortiOS 7.4.2 and later. Source: FortiOS CLI reference, `config vpn qkd`, `config user peer`, phase1-interface."""

from qtrunk.base.errors import ConfigError
from qtrunk.config.devices.box import Box, heading

ID_CHARACTERS_MAX = 291


def emit(box: Box) -> str:
    """Commands for the FortiGate's command line."""
    if len(box.sae) > ID_CHARACTERS_MAX:
        raise ConfigError([f"sae {box.sae[:40]}…: FortiOS takes an id of {ID_CHARACTERS_MAX} characters"])
    top = heading(
        box,
        "#",
        "First import, by System > Certificates: the SAE's certificate with its key as the local certificate",
        f"{box.label}, and the CA; FortiOS then names the CA (CA_Cert_1, …; `get vpn certificate ca`).",
        "The other end has its own SAE and KME; `qkd require` must stand at both.",
    )
    return f"""{top}config user peer
    edit "{box.label}-kme"
        set ca "<name of the imported CA>"
        set cn "{box.kme_id}"
    next
end
config vpn qkd
    edit "{box.label}"
        set server "{box.kme_host}"
        set port {box.kme_port}
        set id "{box.sae}"
        set peer "{box.label}-kme"
        set certificate "{box.label}"
        set comment "keys with {box.peer}"
    next
end
config vpn ipsec phase1-interface
    edit "<your tunnel>"
        set ike-version 2
        set qkd require
        set qkd-profile "{box.label}"
    next
end
"""
