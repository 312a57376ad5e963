"""A lab of real processes for figures, driven by the command line as a user would."""

import http.client
import json
import os
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from qtrunk.base.errors import LabError
from qtrunk.plan.bench.roundtrips import End

Document = dict[str, Any]


def cpu_s(pid: int) -> float:
    """CPU time that a process and its threads have used."""
    parts = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rsplit(")", 1)[1].split()
    return (int(parts[11]) + int(parts[12])) / os.sysconf("SC_CLK_TCK")


class Connection:
    """One that is kept, and made anew after an error."""

    def __init__(self, port: int, certificate: str, private_key: str, ca_certificate: str) -> None:
        """`port` of this machine; PEM files."""
        context = ssl.create_default_context(cafile=ca_certificate)
        context.load_cert_chain(certificate, private_key)
        self._connection = http.client.HTTPSConnection("localhost", port, context=context, timeout=10.0)

    @classmethod
    def to(cls, end: End) -> "Connection":
        """The key manager of an SAE, as that SAE."""
        return cls(end.port, end.certificate, end.private_key, end.ca_certificate)

    def get(self, path: str) -> Document:
        """LabError for anything but 200 and JSON."""
        return self._ask("GET", path)

    def post(self, path: str, body: Document) -> Document:
        """The same with something to say."""
        return self._ask("POST", path, json.dumps(body))

    def _ask(self, method: str, path: str, body: str | None = None) -> Document:
        what = f"{method} {path.split('?')[0]}"
        try:
            self._connection.request(method, path, body, {"Content-Type": "application/json"} if body else {})
            response = self._connection.getresponse()
            octets = response.read()
        except (OSError, http.client.HTTPException) as error:
            self._connection.close()
            raise LabError(f"{what}: {error!r}") from error
        if response.status != http.client.OK:
            raise LabError(f"{what}: {response.status}")
        found: Document = json.loads(octets)
        return found


@dataclass(frozen=True)
class Lab:
    """A running lab in its state directory."""

    state: Path

    @classmethod
    @contextmanager
    def running(cls, topology: str, fill: Callable[[Self], None] | None = None) -> Iterator[Self]:
        """Of a topology file's text; down again in the end. `fill` is called while the lab, once up, is down."""
        with tempfile.TemporaryDirectory(prefix="qtrunk-bench") as directory:
            file = Path(directory) / "bench.toml"
            file.write_text(topology, encoding="utf-8")
            lab = cls(Path(directory) / "lab")
            lab.qtrunk("up", str(file), "--detach")
            if fill is not None:
                lab.qtrunk("down")
                fill(lab)
                lab.qtrunk("up", str(file), "--detach")
            try:
                yield lab
            finally:
                lab.qtrunk("down")

    def qtrunk(self, *arguments: str) -> str:
        """What the command prints; LabError where it fails."""
        done = subprocess.run(
            [sys.executable, "-m", "qtrunk.cli.main", *arguments],
            env={**os.environ, "QTRUNK_STATE": str(self.state)},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise LabError(f"qtrunk {arguments[0]}: {done.stderr.strip()[-300:]}")
        return done.stdout

    def usage(self) -> tuple[float, int]:
        """Processor seconds that all its processes have had so far, and octets of memory that they have now; what they
        share is counted once.
        """
        state = json.loads((self.state / "supervisor.json").read_bytes())
        seconds, octets = 0.0, 0
        for pid in (state["pid"], *(child["pid"] for child in state["children"].values())):
            # After the name, which may have blanks in it: own time and that of children that are over.
            fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
            seconds += sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")
            rolled = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="utf-8").splitlines()
            octets += 1024 * next(int(line.split()[1]) for line in rolled if line.startswith("Pss:"))
        return seconds, octets

    def at_rest(self, seconds: float) -> tuple[float, int]:
        """Percent of one core that all its processes take together, measured for so long, and octets of memory."""
        before_s, began_s = self.usage()[0], time.monotonic()
        time.sleep(seconds)
        after_s, octets = self.usage()
        return 100 * (after_s - before_s) / (time.monotonic() - began_s), octets

    def pids(self) -> dict[str, int]:
        """Process IDs of the nodes."""
        processes = json.loads(self.qtrunk("status", "--format", "json"))["processes"]
        return {name.removeprefix("node-"): found["pid"] for name, found in processes.items() if "node-" in name}

    def end(self, sae: str, peer: str) -> End:
        """An SAE and where its keys with a peer come from."""
        shown = json.loads(self.qtrunk("sae", "show", sae, "--format", "json"))
        return End(
            port=int(shown["kme_url"].rsplit(":", 1)[1]),
            certificate=shown["certificate"],
            private_key=shown["private_key"],
            ca_certificate=shown["ca_certificate"],
            path=f"/api/v1/keys/{peer}",
        )

    def nodes(self) -> list[str]:
        """As the lab's own file has them."""
        return list(self._record()["ports"])

    def links(self) -> list[dict[str, Any]]:
        """As the lab's own file has them: `id`, `alice`, `bob` and more."""
        links: list[dict[str, Any]] = self._record()["topology"]["links"]
        return links

    def link(self, a: str, b: str) -> str:
        """The ID of the link between two nodes."""
        return str(next(link["id"] for link in self.links() if {link["alice"], link["bob"]} == {a, b}))

    def admin(self, node: str) -> tuple[int, str, str, str]:
        """A node's administration interface: port, and the operator's certificate, private key and CA."""
        port = self._record()["ports"][node]["admin_api"]
        operator = self.state / "operator"
        return port, *(str(path) for path in (operator / "cert.pem", operator / "key.pem", self.state / "pki/ca.pem"))

    def _record(self) -> Document:
        found: Document = json.loads((self.state / "lab.json").read_bytes())
        return found
