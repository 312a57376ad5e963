"""schemathesis reads our OpenAPI files and asks a real server whatever they allow and forbid: nothing may surprise it.

A short, repeatable run by default; `make fuzz-api` for a long one that never asks the same.
"""

import os
import re
import subprocess
import sys
import uuid
from importlib.resources import files
from pathlib import Path

import pytest
from api_kit import FakeSupply, RunningServer

from qtrunk.api.etsi014v2 import key_api
from qtrunk.base.ids import SaeId
from qtrunk.base.ports import SuppliedKey, SupplyStatus
from qtrunk.base.secret import Secret
from qtrunk.topology import KeyApi

# All checks, the default, but one: a method that is not allowed gets 400, not 405; GS QKD 014 knows four statuses.
CONFIG = """
hooks = "fuzz_hooks"
request-cert = "{certificate}"
request-cert-key = "{private_key}"
tls-verify = "{ca_certificate}"

[checks]
negative_data_rejection.expected-statuses = [400]
positive_data_acceptance.expected-statuses = [200]
"""


class GenerousSupply(FakeSupply):
    """Knows every SAE and every key, so that whatever the file allows must be answered with 200."""

    def status(self, initiator: SaeId, target: SaeId) -> SupplyStatus:
        return SupplyStatus(
            source_kme="kme-a",
            target_kme="kme-b",
            key_bits=256,
            stored_key_count=1_000_000,
            key_count_max=1_000_000,
            keys_per_request_max=128,
            key_bits_max=8192,
            key_bits_min=64,
            additional_targets_max=8,
            fill_bps=0.0,
        )

    async def initiate(self, initiator, targets, number, key_bits, *, request_id=None):
        assert request_id is None or len(request_id) == 16
        return [SuppliedKey(key_id=str(uuid.uuid4()), material=Secret(bytes(key_bits // 8))) for _ in range(number)]

    async def collect(self, target, initiator, key_ids, *, request_id=None):
        return [SuppliedKey(key_id=key_id, material=Secret(bytes(32))) for key_id in key_ids]


@pytest.mark.parametrize("document", ["etsi014.json", "etsi014v2.json"])
def test_a_property_based_tester_finds_nothing_that_the_document_does_not_say(document, kme, pki, tmp_path, request):
    seconds = request.config.getoption("--fuzz-seconds", default=0)
    fuzzer = pki.sae("fuzzer")
    config = tmp_path / "schemathesis.toml"
    config.write_text(CONFIG.format(**fuzzer.arguments()))
    long = ["--max-time", str(seconds), "--max-examples", "100000", "--generation-database", "none"]
    short = ["--generation-deterministic", "--max-examples", "12"]
    # With the loop-back switch the caller may name itself, which no schema can forbid.
    settings = KeyApi(edition2=True, retry_window_s=30, loopback_test=True)
    handler = key_api(GenerousSupply(), lambda _identity: SaeId("fuzzer"), settings)
    with RunningServer(handler, kme) as running:
        made = subprocess.run(
            [
                *(sys.executable, "-c", "from schemathesis.cli import schemathesis; schemathesis()"),
                *("--config-file", str(config), "run", str(files("qtrunk.api") / document), "--no-color"),
                *("--url", f"https://localhost:{running.port}", "--mode", "all"),
                *("--exclude-checks", "unsupported_method", "--phases", "examples,coverage,fuzzing"),
                *(long if seconds else short),
            ],
            capture_output=True,
            text=True,
            check=False,
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parent)},
        )  # fmt: skip
    assert made.returncode == 0, made.stdout[-9000:] + made.stderr[-2000:]
    cases = re.search(r"(\d[\d,]*) generated", made.stdout)
    assert cases is not None, made.stdout[-2000:]
    assert int(cases[1].replace(",", "")) > 100
    print(made.stdout[-1500:])
