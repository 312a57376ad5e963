"""`qtrunk stream`: key streams (ETSI GS QKD 004) of a lab's SAEs, one call each. A stream outlives its connection."""

import os
import uuid
from pathlib import Path

import click
import msgspec

from qtrunk.api.client004 import Client004
from qtrunk.base.errors import KeyExhausted, KeyNotFound, NotAuthorised, QtrunkError, RequestRefused
from qtrunk.base.ids import SaeId
from qtrunk.cli import options
from qtrunk.kms.streamnotes import JSON, Qos, Status
from qtrunk.node.lab import Lab

_PROBLEMS: dict[Status, QtrunkError] = {
    Status.INSUFFICIENT_KEY: KeyExhausted("status 2: no such key; wait for more, or take an index not yet given out"),
    Status.PEER_NOT_CONNECTED: KeyNotFound("status 3: no such stream, or its peer has not come yet or has closed"),
    Status.NO_CONNECTION: NotAuthorised("status 4: no way to the peer; `qtrunk status` shows the links"),
    Status.KSID_IN_USE: RequestRefused("status 5: the KSID is in use, or was closed lately; take another"),
    Status.TIMEOUT: KeyExhausted("status 6: time-out; did the other end open the same KSID?"),
}


def _ksid(text: str) -> bytes:
    """The 16 octets of a UUID; click makes wrong usage of the ValueError."""
    return uuid.UUID(text).bytes


def _client(lab: Lab, sae: str) -> Client004:
    credentials = lab.credentials(SaeId(sae))
    entry = lab.topology.sae(SaeId(sae))
    assert entry is not None
    host, _, port = lab.stream_address(entry.node).rpartition(":")
    return Client004(
        host=host,
        port=int(port),
        certificate=credentials.certificate,
        private_key=credentials.private_key,
        ca_certificate=credentials.ca_certificate,
    )


def _check(status: Status) -> None:
    if status in _PROBLEMS:
        raise _PROBLEMS[status]


def _uri(sae: str) -> str:
    return f"urn:qtrunk:sae:{sae.replace('%', '%25')}"


@click.group()
def stream() -> None:
    """Streams of keys by index (ETSI GS QKD 004)."""


@stream.command("open")
@click.option("--as", "own", required=True, help="The SAE that opens its end.")
@click.option("--with", "peer", required=True, help="The SAE at the other end.")
@click.option("--ksid", type=_ksid, metavar="UUID", help="Key stream ID to join, or to agree on; default: a new one.")
@click.option("--chunk", default=32, type=click.IntRange(1, 65536), help="Octets of each key.")
@click.option("--ttl", default=3600, type=click.IntRange(1, 86400), help="Seconds that a key waits.")
@click.option("--wait", default=30.0, type=click.FloatRange(0, 600), help="Seconds to wait for the other end or a key.")
@options.state_option
@options.format_option
def open_(
    own: str, peer: str, ksid: bytes | None, chunk: int, ttl: int, wait: float, state: Path, format_: str
) -> None:
    """Open one end of a stream. Without --ksid it prints a new ID at once; with it, it waits for the other end."""
    lab = Lab.open(state)
    lab.credentials(SaeId(peer))
    asked = Qos(
        key_chunk_size=chunk,
        max_bps=0,
        min_bps=0,
        jitter=0,
        priority=0,
        timeout=int(wait * 1000),
        ttl=ttl,
        metadata_mimetype=JSON,
    )
    with _client(lab, own) as client:
        opened = client.open(_uri(own), _uri(peer), asked, ksid)
    _check(opened.status)
    assert opened.qos is not None
    name = str(uuid.UUID(bytes=opened.ksid))
    if format_ == "json":
        options.print_json({"status": int(opened.status), "ksid": name, "qos": msgspec.to_builtins(opened.qos)})
        return
    there = "the other end is there" if opened.status is Status.SUCCESS else "the other end has not come yet"
    click.echo(f"stream {name}: keys of {opened.qos.key_chunk_size} octets; {there}")


@stream.command("get")
@click.argument("ksid", type=_ksid, metavar="UUID")
@click.argument("index", type=click.IntRange(0, 2**32 - 1))
@click.option("--as", "own", required=True, help="The SAE whose end it is.")
@click.option("-o", "output", required=True, type=click.Path(path_type=Path, dir_okay=False), help="A new file.")
@options.state_option
def get(ksid: bytes, index: int, own: str, output: Path, state: Path) -> None:
    """Write the key INDEX of a stream to a file that only its owner can read. Each end gets each key once."""
    lab = Lab.open(state)
    try:
        # First of all: a key that cannot be written would be lost.
        descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except OSError as error:
        raise RequestRefused(f"-o {output}: {error.strerror}; a new file is needed") from error
    try:
        with os.fdopen(descriptor, "wb") as out, _client(lab, own) as client:
            got = client.get_key(ksid, index)
            _check(got.status)
            if got.key is None:
                raise RequestRefused(f"status {int(got.status)}: its metadata do not fit")
            out.write(got.key.reveal())
            size = len(got.key)
            got.key.wipe()
    except BaseException:
        output.unlink(missing_ok=True)
        raise
    click.echo(f"key {index}, {size} octets: {output}; {got.metadata.decode(errors='replace')}")


@stream.command("close")
@click.argument("ksid", type=_ksid, metavar="UUID")
@click.option("--as", "own", required=True, help="The SAE whose end it is.")
@options.state_option
def close(ksid: bytes, own: str, state: Path) -> None:
    """Close one end of a stream; the other may still take the keys that exist."""
    with _client(Lab.open(state), own) as client:
        _check(client.close(ksid))
    click.echo(f"closed: {uuid.UUID(bytes=ksid)}")
