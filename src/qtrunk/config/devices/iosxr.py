"""Cisco IOS XR by SKIP, for MACsec. Source: Cisco 8000 Series MACsec Encryption Configuration Guide, "SKIP"."""

from qtrunk.config.devices.box import Box, heading


def emit(box: Box) -> str:
    """Configuration mode."""
    top = heading(
        box,
        "!",
        "The router speaks SKIP, port of its own. It shows the SAE's certificate: import certificate, key and CA",
        "into a trustpoint first. `show sks profile all` says which remote system the key source names:",
        f"it must be {box.peer}.",
    )
    return f"""{top}sks profile {box.label} type remote
 kme server ipv4 {box.kme_host} port {box.skip_port}
!
macsec-policy {box.label}
 cipher-suite GCM-AES-XPN-256
 security-policy must-secure
 ppk sks-profile {box.label}
!
interface <interface>
 macsec psk-keychain <key chain> policy {box.label}
!
end
"""
