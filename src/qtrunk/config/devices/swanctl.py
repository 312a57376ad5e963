"""strongSwan 5.7 and later: the key is a post-quantum pre-shared key (RFC 8784). Source: swanctl.conf(5).

charon looks a PPK up by its ID when the peer names it, so the end that collects must have run the script before the
end that initiates begins: `initiate` there, `collect` here, then `swanctl --initiate` there. Each key has an ID of its
own, so that an old one is never taken for a new one.
"""

from qtrunk.config.devices.box import Box, heading
from qtrunk.config.devices.fetch import script

_USE = """    # In memory only (/run), for this user only; swanctl reads it from there.
    os.makedirs("/run/qtrunk", mode=0o700, exist_ok=True)
    secret = f'ppk-qtrunk {{{{\\n  id = "{{key_id}}"\\n  secret = 0s{{key}}\\n}}}}\\n'
    for name, text in (("secrets", secret), ("ppk-id", f'ppk_id = "{{key_id}}"\\n')):
        path = f"/run/qtrunk/{label}.{{name}}"
        with os.fdopen(os.open(path + ".new", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as out:
            out.write(text)
        os.replace(path + ".new", path)
    subprocess.run(["swanctl", "--load-creds", "--noprompt"], check=True)
    subprocess.run(["swanctl", "--load-conns"], check=True)
"""


def emit(box: Box) -> str:
    """swanctl.conf, and the script behind a line that ends it."""
    what = f"strongSwan's post-quantum pre-shared key with {box.peer}"
    use = _USE.format(label=box.label)
    ppk_id = f"    include /run/qtrunk/{box.label}.ppk-id\n" if box.is_initiator else ""
    top = heading(
        box, "#", "/etc/swanctl/conf.d/qtrunk.conf up to the line of dashes, behind it /usr/local/sbin/qtrunk-ppk."
    )
    return f"""{top}connections {{
  {box.label} {{
    version = 2
    proposals = aes256gcm16-prfsha384-ecp384
    local_addrs = <address here>
    remote_addrs = <address of {box.peer}>
    ppk_required = yes
{ppk_id}    local {{
      auth = pubkey
      certs = <certificate of the tunnel>
      id = <identity here>
    }}
    remote {{
      auth = pubkey
      id = <identity of {box.peer}>
    }}
    children {{
      net {{
        local_ts = <network here>
        remote_ts = <network there>
        esp_proposals = aes256gcm16
      }}
    }}
  }}
}}
secrets {{
  include /run/qtrunk/{box.label}.secrets
}}
# ------------------------------------------------------------------------------
{script(box, "qtrunk-ppk", what, use)}"""
