"""A link of ours fed by an independent open-source KME pair: start both, draw keys, hurt the KMEs, print what came out.

    git clone https://github.com/CreepPork/next-door-key-simulator DIR     # MIT licence; nothing of it is copied here
    python -m venv DIR/.venv && DIR/.venv/bin/pip install -r DIR/requirements.txt
    .venv/bin/python tools/interop_vendor_kme.py DIR                       # about two minutes
    .venv/bin/python tools/interop_vendor_kme.py DIR --round-trips 500     # only how quick the KME pair is

The simulator runs unchanged, as two processes on the loopback interface; certificates are made here, because its own
script makes some without subject alternative names. docs/vendor-links.md has the results.
"""

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from qtrunk.api.client import Etsi014Client
from qtrunk.base.errors import KeyExhausted, QtrunkError
from qtrunk.base.ids import KeyId, SaeId
from qtrunk.cli.labclient import LabClient
from qtrunk.node.ca.identity import Kind
from qtrunk.node.lab import Lab
from qtrunk.node.pki import Credentials, LabPki

OWN_SETTINGS = {
    "DEFAULT_KEY_SIZE": "32",
    "MAX_KEY_COUNT": "100000",
    "MAX_KEYS_PER_REQUEST": "128",
    "MAX_KEY_SIZE": "1024",
    "MIN_KEY_SIZE": "32",
    "KEY_GEN_SEC_TO_GEN": "30",
}
"""Those of its docker-compose.yml."""
LINK_SETTINGS = OWN_SETTINGS | {"DEFAULT_KEY_SIZE": "256", "KEY_GEN_SEC_TO_GEN": "0.02"}
"""Keys of 256 bits, up to fifty a second: the link takes them in portions of 64."""
KEYS, KEY_BITS = 64, 256
WITHIN_S = 90.0


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@dataclass
class Pair:
    """Two processes of the simulator, and the certificates of their SAEs."""

    checkout: Path
    directory: Path
    settings: dict[str, str]
    ports: list[int] = field(default_factory=lambda: [free_port(), free_port()])
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)
    saes: list[Credentials] = field(default_factory=list)

    def start(self) -> None:
        pki = LabPki(self.directory / "pki")
        self.saes = [pki.credentials(self.directory / f"sae-{n}", Kind.SAE, f"vendor-sae-{n}") for n in (1, 2)]
        kmes = [pki.credentials(self.directory / f"kme-{n}", Kind.NODE, f"vendor-kme-{n}") for n in (1, 2)]
        pki.close()
        for index, (kme, sae) in enumerate(zip(kmes, self.saes, strict=True)):
            environment = {
                **{name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ},
                **self.settings,
                "HOST": "127.0.0.1",
                "PORT": str(self.ports[index]),
                "KME_ID": f"vendor-kme-{index + 1}",
                "ATTACHED_SAE_ID": f"vendor-sae-{index + 1}",
                "OTHER_KMES": f"https://localhost:{self.ports[1 - index]}",
                "CA_FILE": str(kme.ca_certificate),
                "KME_CERT": str(kme.certificate),
                "KME_KEY": str(kme.private_key),
                "SAE_CERT": str(sae.certificate),
            }
            # What it prints has keys in it: nobody shall read that.
            self.processes.append(
                subprocess.Popen(
                    [str(self.checkout / ".venv" / "bin" / "python"), str(self.checkout / "app.py")],
                    cwd=self.directory,
                    env=environment,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                )
            )
            # Started at one moment, the two would wait for each other for ever now and then.
            time.sleep(4.0)

    def stop(self) -> None:
        while self.processes:
            process = self.processes.pop()
            process.kill()
            process.wait()

    def client(self, index: int) -> Etsi014Client:
        sae = self.saes[index]
        return Etsi014Client(
            kme_url=f"https://localhost:{self.ports[index]}",
            certificate=sae.certificate,
            private_key=sae.private_key,
            ca_certificate=sae.ca_certificate,
            own_sae=SaeId(f"vendor-sae-{index + 1}"),
            timeout_s=10.0,
        )

    def wait(self) -> None:
        """Until both know each other."""
        for index in (0, 1):
            client, peer = self.client(index), SaeId(f"vendor-sae-{2 - index}")
            until(lambda client=client, peer=peer: answers(client, peer), "the KME pair to know each other")
            client.close()


def answers(client: Etsi014Client, peer: SaeId) -> bool:
    try:
        return client.status(peer).keys_per_request_max > 0
    except QtrunkError:
        return False


def until(is_so: Callable[[], bool], what: str, within_s: float = WITHIN_S) -> float:
    """How long it took; SystemExit where it does not come about."""
    started_s = time.monotonic()
    while not is_so():
        if time.monotonic() - started_s > within_s:
            raise SystemExit(f"waited {within_s:g} s in vain for {what}")
        time.sleep(0.25)
    return time.monotonic() - started_s


def round_trips(pair: Pair, count: int) -> None:
    """enc_keys of one key, then dec_keys of it, one after the other."""
    pair.start()
    pair.wait()
    ends = [pair.client(0), pair.client(1)]
    took: list[float] = []
    started_s = time.monotonic()
    why = ""
    for _ in range(count):
        begun_s = time.monotonic()
        try:
            (key,) = ends[0].get_keys(SaeId("vendor-sae-2"), 1, KEY_BITS)
            (same,) = ends[1].get_keys_with_ids(SaeId("vendor-sae-1"), [key.key_id])
        except KeyExhausted as error:
            why = f"; then it hung: {error}"
            break
        assert same.material == key.material
        took.append(time.monotonic() - begun_s)
    total_s = sum(took)
    for end in ends:
        end.close()
    print(
        f"{len(took)} pairs of enc_keys and dec_keys, one key of {KEY_BITS} bits each: "
        f"{len(took) / total_s:.1f} a second, median {1000 * sorted(took)[len(took) // 2]:.1f} ms "
        f"({time.monotonic() - started_s:.1f} s){why}"
    )


def topology(pair: Pair) -> str:
    ends = "".join(
        f"[links.a-b.vendor.{role}]\n"
        f'kme_url = "https://localhost:{pair.ports[index]}"\nsae = "vendor-sae-{index + 1}"\n'
        f'certificate = "{pair.saes[index].certificate}"\nprivate_key = "{pair.saes[index].private_key}"\n'
        f'ca_certificate = "{pair.saes[index].ca_certificate}"\n'
        for index, role in enumerate(("alice", "bob"))
    )
    return (
        'name = "vendor"\ntrunks = [["a", "b"]]\nsaes = ["x@a", "y@b"]\n'
        '[[demands]]\nbetween = ["x", "y"]\nrate_bps = 100\n'
        '[links.a-b]\nlength_km = 10\nsource = "etsi014"\n'
        '[links.a-b.vendor]\ntrust = "Next Door Key Simulator: keys of os.urandom, no QKD at all"\n'
        f"keys = {KEYS}\nkey_bits = {KEY_BITS}\npoll_s = 0.5\ntimeout_s = 4\n{ends}"
    )


class OurLab:
    """The two nodes, driven by the command line."""

    def __init__(self, directory: Path, text: str) -> None:
        self._file, self._state = directory / "vendor.toml", directory / "lab"
        self._file.write_text(text)

    def qtrunk(self, *arguments: str) -> str:
        return subprocess.run(
            [sys.executable, "-m", "qtrunk.cli.main", *arguments],
            env={**os.environ, "QTRUNK_STATE": str(self._state)},
            check=True,
            capture_output=True,
            text=True,
        ).stdout

    def up(self) -> None:
        self.qtrunk("up", str(self._file), "--detach")

    def down(self) -> None:
        self.qtrunk("down")

    def link(self) -> dict[str, object]:
        (link,) = json.loads(self.qtrunk("status", "--format", "json"))["links"]
        return dict(link)

    def released(self) -> int:
        return int(str(self.link().get("blocks_released", 0)))

    def alarms(self) -> set[str]:
        nodes = json.loads(self.qtrunk("status", "--format", "json"))["nodes"]
        return {alarm["type"] for node in nodes for alarm in (node.get("alarms") or {}).get("active", [])}

    def client(self, sae: str) -> Etsi014Client:
        lab = Lab.open(self._state)
        known = lab.topology.sae(SaeId(sae))
        assert known is not None
        credentials = lab.credentials(known.id)
        return Etsi014Client(
            kme_url=lab.kme_url(known.node),
            certificate=credentials.certificate,
            private_key=credentials.private_key,
            ca_certificate=credentials.ca_certificate,
            own_sae=known.id,
        )

    def receipt(self, key_id: KeyId) -> object:
        return LabClient(Lab.open(self._state)).node("a", f"/admin/v1/keys/{key_id}")


def feed(pair: Pair, directory: Path, stack: ExitStack) -> None:
    """The whole way: the KMEs' keys, link key, keys of two SAEs; then the KMEs die and come back."""
    pair.start()
    pair.wait()
    lab = OurLab(directory, topology(pair))
    lab.up()
    stack.callback(lab.down)
    took_s = until(lambda: lab.released() >= 3, "three blocks at both ends")
    time.sleep(10)
    link = lab.link()
    print(
        f"three blocks of {KEYS} keys within {took_s:.0f} s; then: {link['state']}, {link['blocks_released']} blocks, "
        f"{float(str(link['secret_bps'])):.0f} bit/s, pool {link['pool_bits']} bit, {link['blocks_destroyed']} destroyed"
    )
    ends = [lab.client("x"), lab.client("y")]
    keys = until_keys(ends[0])
    same = ends[1].get_keys_with_ids(SaeId("x"), [key.key_id for key in keys])
    assert [key.material for key in keys] == [key.material for key in same]
    print(f"{len(keys)} end-to-end keys of 256 bits, alike at both SAEs; the receipt of the first:")
    print(json.dumps(lab.receipt(keys[0].key_id), indent=1))
    for end in ends:
        end.close()
    pair.stop()
    until(lambda: "VendorKmeUnreachable" in lab.alarms(), "the alarm that the KMEs are gone")
    print(f"both KMEs killed: alarms {sorted(lab.alarms())}, link {lab.link()['state']}")
    before = lab.released()
    pair.start()
    took_s = until(lambda: lab.released() > before, "a block after the KMEs came back", 180.0)
    print(f"both KMEs back: the next block after {took_s:.0f} s, alarms {sorted(lab.alarms())}")


def until_keys(client: Etsi014Client) -> list:
    """Keys take a moment to come to both ends."""
    found: list = []

    def is_there() -> bool:
        try:
            found.extend(client.get_keys(SaeId("y"), 4, 256))
        except KeyExhausted:
            return False
        return True

    until(is_there, "end-to-end keys")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkout", type=Path, help="a checkout of next-door-key-simulator with a .venv in it")
    parser.add_argument("--round-trips", type=int, help="only measure so many with the simulator's own settings")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="qt") as name, ExitStack() as stack:
        directory = Path(name)
        settings = OWN_SETTINGS if options.round_trips else LINK_SETTINGS
        pair = Pair(options.checkout.absolute(), directory, settings)
        stack.callback(pair.stop)
        if options.round_trips:
            round_trips(pair, options.round_trips)
        else:
            feed(pair, directory, stack)


if __name__ == "__main__":
    main()
