"""Key streams of ETSI GS QKD 004 between two sites of a running trunk, over TLS and over trusted nodes."""

import json
import threading
import time
from pathlib import Path

from qtrunk.api.client004 import Client004
from qtrunk.kms.streamnotes import Qos, Status

QOS = Qos(
    key_chunk_size=48,
    max_bps=4000,
    min_bps=100,
    jitter=0,
    priority=0,
    timeout=15_000,
    ttl=600,
    metadata_mimetype="application/json",
)


def stream_client(lab, sae):
    record = lab.sae(sae)
    host, port = record["stream_address"].rsplit(":", 1)
    paths = {name: Path(record[name]) for name in ("certificate", "private_key", "ca_certificate")}
    return Client004(host=host, port=int(port), **paths)


def chunk(client, ksid, index, within_s=20.0):
    """A chunk; the word that the other end has joined may come to this end's node a moment after it."""
    deadline_s = time.monotonic() + within_s
    while True:
        got = client.get_key(ksid, index)
        if got.status is not Status.PEER_NOT_CONNECTED or time.monotonic() > deadline_s:
            return got
        time.sleep(0.1)


def test_both_ends_of_a_stream_read_the_same_chunks(small_lab):
    small_lab.wait_for_keys()
    with stream_client(small_lab, "bank") as bank, stream_client(small_lab, "vault") as vault:
        opened = bank.open("qkd://bank", "qkd://vault", QOS)
        twin = []
        joining = threading.Thread(
            target=lambda: twin.append(vault.open("qkd://bank", "qkd://vault", QOS, opened.ksid))
        )
        joining.start()
        joining.join(20)
        assert twin[0].status is Status.SUCCESS
        for index in range(6):
            mine, theirs = chunk(bank, opened.ksid, index), chunk(vault, opened.ksid, index)
            assert mine.status is theirs.status is Status.SUCCESS
            assert len(mine.key) == 48
            assert mine.key == theirs.key
            assert json.loads(mine.metadata)["hops"] == 1
        assert bank.close(opened.ksid) is Status.SUCCESS
