"""PAN-OS 12.1 and later. Certificates are imported by command; the QKD profile is filled in in the web interface.

The names of its commands are not in any public manual that we know, so this gives the values and invents no command.
"""

from qtrunk.config.devices.box import Box, heading


def emit(box: Box) -> str:
    """Commands to import the credentials, and what to fill in."""
    top = heading(box, "#")
    return f"""{top}# In operational mode; the files must lie on a host that the firewall reaches by SCP.
scp import certificate from <user>@<host>:{box.ca_certificate} certificate-name {box.label}-ca format pem
scp import certificate from <user>@<host>:{box.certificate} certificate-name {box.label} format pem
scp import private-key from <user>@<host>:{box.private_key} certificate-name {box.label} format pem passphrase <any>
# Then, in the web interface, a profile of quantum key distribution and in the IKE gateway (IKEv2 only) its use:
#   KME address              {box.kme_host}
#   KME port                 {box.kme_port}
#   KME ID                   {box.kme_id}
#   this device's SAE ID     {box.sae}
#   the other device's       {box.peer}
#   client certificate       {box.label}
#   CA of the KME            {box.label}-ca
#   key size                 {box.key_bits} bits
# "Test connectivity" asks Get status, which costs no key and answers before any key is there.
"""
