"""MikroTik RouterOS 7 (post-quantum pre-shared keys, RFC 9867). Source: RouterOS manual, "QKD Integration in IPsec"."""

from qtrunk.config.devices.box import Box, heading


def emit(box: Box) -> str:
    """Commands for the router's terminal."""
    octets = box.key_bits // 8
    top = heading(
        box,
        "#",
        "First copy the three files to the router.",
        "The manual counts key-size in octets, a KME counts bits (ETSI GS QKD 014). If the KME refuses a size of",
        f"{octets} bits, this release sends the number as it stands: then set key-size={box.key_bits}.",
    )
    return f"""{top}/certificate import file-name=<CA file> passphrase=""
/certificate import file-name=<certificate file> passphrase=""
/certificate import file-name=<key file> passphrase=""
/ip ipsec key qkd set address={box.kme_host}:{box.kme_port} certificate=<name of the imported certificate> \\
    kme-id="{box.kme_id}" peer-sae-id="{box.peer}" key-size={octets} cache-size=1
/ip ipsec profile add name={box.label} ppk=qkd
/ip ipsec proposal add name={box.label} enc-algorithms=aes-256-gcm auth-algorithms=sha256 pfs-group=ecp384
/ip ipsec peer add name={box.label} address=<address of the other router>/32 exchange-mode=ike2 profile={box.label}
/ip ipsec identity add peer={box.label} auth-method=digital-signature certificate=<the tunnel's own certificate>
/ip ipsec policy add peer={box.label} tunnel=yes proposal={box.label} \\
    src-address=<network here> dst-address=<network there>
"""
