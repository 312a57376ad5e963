"""A link of ours fed by two of QUBIP's open-source servers of ETSI GS QKD 004: start both, draw keys, print what came out.

    git clone https://github.com/QUBIP/etsi-qkd-004 DIR          # BSD licence; nothing of it is copied here
    .venv/bin/python tools/interop_vendor_stream.py DIR          # about half a minute

The servers and the key generators run unchanged, as four processes on the loopback interface with the settings of their
docker-compose.yml, but for what --rate and --buffer say. docs/vendor-links.md has the results.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from interop_vendor_kme import OurLab, free_port, until

from qtrunk.node.ca.identity import Kind
from qtrunk.node.pki import Credentials, LabPki


def start(checkout: Path, program: str, directory: Path, **environment: object) -> subprocess.Popen[bytes]:
    """What it prints has octets of keys in it: nobody shall read that."""
    return subprocess.Popen(
        [sys.executable, str(checkout / program)],
        cwd=directory,
        env={"PATH": os.environ["PATH"], **{name: str(value) for name, value in environment.items()}},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def servers(
    checkout: Path, directory: Path, rate: int, buffer: int
) -> tuple[list[subprocess.Popen[bytes]], list[int], list[Credentials]]:
    """Two servers, two generators; the servers' ports and the certificates of their clients."""
    pki = LabPki(directory / "pki")
    saes = [pki.credentials(directory / f"sae-{n}", Kind.SAE, f"vendor-sae-{n}") for n in (1, 2)]
    kmes = [pki.credentials(directory / f"kme-{n}", Kind.NODE, f"vendor-kme-{n}") for n in (1, 2)]
    pki.close()
    ports, between = [free_port(), free_port()], free_port()
    processes = []
    for n, kme in enumerate(kmes):
        own = {"BUFFER_PATH": directory / f"buffer-{n}", "BUFFER_SIZE": buffer}
        mode = {"MODE": "receiver" if n else "sender", "HOST": "127.0.0.1", "PORT": between, "SKR": rate}
        processes.append(start(checkout, "keys/generate.py", directory, **own, **mode))
        processes.append(
            start(
                *(checkout, "server/server.py", directory),
                **own,
                SERVER_CERT_PEM=kme.certificate,
                SERVER_CERT_KEY=kme.private_key,
                CLIENT_CERT_PEM=kme.ca_certificate,
                SERVER_ADDRESS="127.0.0.1",
                SERVER_PORT=ports[n],
            )
        )
    return processes, ports, saes


def topology(ports: list[int], saes: list[Credentials]) -> str:
    ends = [
        f'{end} = {{ kme_url = "tls://localhost:{port}", sae = "vendor-sae-{n}", certificate = "{sae.certificate}", '
        f'private_key = "{sae.private_key}", ca_certificate = "{sae.ca_certificate}" }}'
        for end, n, port, sae in zip(("alice", "bob"), (1, 2), ports, saes, strict=True)
    ]
    return "\n".join(
        (
            'name = "streams"\ntrunks = [["a", "b"]]\nlink.length_km = 1\n[links.a-b]\nsource = "etsi004"',
            '[links.a-b.vendor]\ntrust = "QUBIP etsi-qkd-004"\nkeys = 64\npoll_s = 0.5',
            *ends,
        )
    )


def watch(lab: OurLab, seconds: float) -> None:
    lab.up()
    try:
        took_s = until(lambda: lab.released() >= 3, "three blocks at both ends")
        print(f"three blocks of 64 chunks of 32 octets within {took_s:.1f} s of the lab's start")
        for _ in range(3):
            time.sleep(seconds / 3)
            link = lab.link()
            print(
                f"{link['state']}, {link['blocks_released']} blocks, {float(str(link['secret_bps'])):.0f} bit/s, "
                f"pool {link['pool_bits']} bit, {link['blocks_destroyed']} destroyed, alarms {sorted(lab.alarms())}"
            )
    finally:
        lab.down()


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("checkout", type=Path)
    parser.add_argument("--rate", type=int, default=12500, help="octets of key a second")
    parser.add_argument("--buffer", type=int, default=1_000_000, help="octets that the servers hold")
    parser.add_argument("--seconds", type=float, default=30.0)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        processes, ports, saes = servers(given.checkout.resolve(), directory, given.rate, given.buffer)
        try:
            time.sleep(3.0)
            watch(OurLab(directory, topology(ports, saes)), given.seconds)
        finally:
            for process in processes:
                process.kill()
                process.wait()
    return 0


if __name__ == "__main__":
    sys.exit(main())
