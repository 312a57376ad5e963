"""A lab of real processes for figures, driven by the command line as a user would."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qtrunk.base.errors import LabError
from qtrunk.plan.bench.roundtrips import End


@dataclass(frozen=True)
class Lab:
    """A running lab in its state directory."""

    state: Path

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

    def link(self, a: str, b: str) -> str:
        """The link between two nodes."""
        links: list[dict[str, str]] = self._record()["topology"]["links"]
        return next(link["id"] for link in links if {link["alice"], link["bob"]} == {a, b})

    def admin(self, node: str) -> tuple[int, str, str, str]:
        """A node's administration interface: port, and the operator's certificate, private key and CA."""
        port = self._record()["ports"][node]["admin_api"]
        operator = self.state / "operator"
        return port, *(str(path) for path in (operator / "cert.pem", operator / "key.pem", self.state / "pki/ca.pem"))

    def _record(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.state / "lab.json").read_bytes())
        return found
