"""The script that fetches keys where a device's software cannot: CPython's own library, nothing else.

One end of a pair is the initiator: `initiate` gets a fresh key, hands it over, and prints its key ID. That ID, which is
no secret, goes to the other end by any way (here: the operator's shell, such as ssh), where `collect KEY_ID` hands the
same key over. The key itself is in no file that outlives the machine's memory, no argument and no environment variable.
"""

from qtrunk.config.devices.box import Box

_TEXT = """#!/usr/bin/env python3
# {sae}: {what}
#   {name} initiate          a fresh key is put to use here; prints its key ID
#   {name} collect KEY_ID    the key of that ID, which {peer} was given, is put to use here
import base64, http.client, json, os, ssl, subprocess, sys

HOST, PORT = "{host}", {port}
CERTIFICATE, PRIVATE_KEY, CA = "{certificate}", "{private_key}", "{ca}"


def fetch(arguments):
    if arguments == ["initiate"]:
        path, body = "/api/v1/keys/{peer}/enc_keys", {{"number": 1, "size": {bits}}}
    elif len(arguments) == 2 and arguments[0] == "collect":
        path, body = "/api/v1/keys/{peer}/dec_keys", {{"key_IDs": [{{"key_ID": arguments[1]}}]}}
    else:
        sys.exit("usage: initiate | collect KEY_ID")
    context = ssl.create_default_context(cafile=CA)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_cert_chain(CERTIFICATE, PRIVATE_KEY)
    connection = http.client.HTTPSConnection(HOST, PORT, context=context, timeout=20)
    connection.request("POST", path, json.dumps(body), {{"Content-Type": "application/json"}})
    answer = connection.getresponse()
    text = answer.read()
    if answer.status != 200:
        sys.exit(f"{{HOST}}:{{PORT}} answered {{answer.status}}: {{text[:300]!r}}")
    (key,) = json.loads(text)["keys"]
    if len(base64.b64decode(key["key"], validate=True)) * 8 != {bits}:
        sys.exit("the key has another length than was asked for")
    return key["key_ID"], key["key"]


def use(key_id, key):
{use}

key_id, key = fetch(sys.argv[1:])
use(key_id, key)
print(key_id)
"""


def script(box: Box, name: str, what: str, use: str) -> str:
    """The whole script; `use` is the body of a function of `key_id` and `key` (base64), indented by four."""
    return _TEXT.format(
        sae=box.sae,
        peer=box.peer,
        name=name,
        what=what,
        host=box.kme_host,
        port=box.kme_port,
        certificate=box.certificate,
        private_key=box.private_key,
        ca=box.ca_certificate,
        bits=box.key_bits,
        use=use,
    )
