"""Configuration for devices: as the golden files have it, and no name breaks out of its quotes."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from qtrunk.base.errors import ConfigError
from qtrunk.config.devices import EMITTERS
from qtrunk.config.devices.box import Box

GOLDEN = Path(__file__).parent / "devices"
BOX = Box(
    sae="fw-beijing",
    peer="fw-xiongan",
    kme_host="192.0.2.10",
    kme_port=8443,
    kme_id="yizhuang",
    skip_port=8444,
    certificate="/etc/qtrunk/fw-beijing/cert.pem",
    private_key="/etc/qtrunk/fw-beijing/key.pem",
    ca_certificate="/etc/qtrunk/ca.pem",
)
OTHER = replace(BOX, sae="fw-xiongan", peer="fw-beijing", kme_host="kme.xiongan.example", kme_id="xiongan")


@pytest.mark.parametrize("device", sorted(EMITTERS))
@pytest.mark.parametrize("box", [BOX, OTHER], ids=lambda box: box.sae)
def test_every_device_gets_what_its_golden_file_has(device, box):
    """A change is meant: run this file as a program to write the golden files anew, and look at the difference."""
    assert EMITTERS[device](box) == (GOLDEN / f"{box.sae}.{device}").read_text()


@pytest.mark.parametrize("device", sorted(EMITTERS))
def test_what_differs_between_two_boxes_differs_in_their_text(device):
    text = EMITTERS[device](BOX)
    for field in ("sae", "peer", "kme_host", "certificate", *(() if device == "wireguard" else ("kme_id",))):
        assert EMITTERS[device](replace(BOX, **{field: "198.51.100.7"})) != text
    port = {"skip_port": 1234} if device == "iosxr" else {"kme_port": 1234}
    assert "1234" in EMITTERS[device](replace(BOX, **port))


@pytest.mark.parametrize("wrong", ['a"b', "a b", "a\nb", "a{b}", "a'b", "a;b", "", "a$(b)", "a\\b", "a#b"])
def test_a_name_that_could_end_a_quote_or_a_line_is_refused(wrong):
    for field in ("sae", "peer", "kme_host", "kme_id", "certificate", "private_key", "ca_certificate"):
        with pytest.raises(ConfigError, match=field):
            replace(BOX, **{field: wrong})


def test_limits_of_devices_are_kept():
    assert len(replace(BOX, sae="x" * 80).label) == 35
    with pytest.raises(ConfigError, match="291"):
        EMITTERS["fortios"](replace(BOX, sae="x" * 292))


def test_only_the_initiator_names_the_key_of_a_strongswan_pair():
    assert "ppk-id\n    local" in EMITTERS["swanctl"](BOX)
    assert "ppk-id\n    local" not in EMITTERS["swanctl"](OTHER)


@pytest.mark.parametrize("device", ["swanctl", "wireguard"])
def test_scripts_are_scripts(device, tmp_path):
    path = tmp_path / "script"
    text = EMITTERS[device](BOX)
    path.write_text(text[text.index("#!/usr/bin/env python3") :])
    done = subprocess.run([sys.executable, str(path)], capture_output=True, text=True, check=False, timeout=30)
    assert (done.returncode, done.stderr) == (1, "usage: initiate | collect KEY_ID\n")


if __name__ == "__main__":
    GOLDEN.mkdir(exist_ok=True)
    for made in (BOX, OTHER):
        for name, emit in EMITTERS.items():
            (GOLDEN / f"{made.sae}.{name}").write_text(emit(made))
