"""A running lab grows from a trunk into a ring, and shrinks again, under constant requests of which none fails."""

import threading
import time
from pathlib import Path

import lab_kit
import pytest

LINK = "\n[link]\nlength_km = 20\nloss_db = 8\nblock_s = 1.0\nclock_fraction = 0.25\n"
DEMANDS = "".join(
    f'[[demands]]\nbetween = ["{a}", "{b}"]\nrate_bps = 2000\n' for a, b in (("bank", "vault"), ("bank", "shop"))
)
TRUNK = 'name = "grows"\ntrunks = [["ada", "bert", "cleo"]]\nsaes = ["bank@ada", "shop@bert", "vault@cleo"]\n'
LONGER = TRUNK.replace('"cleo"]]', '"cleo", "dora"]]').replace('"vault@cleo"]', '"vault@cleo", "mill@dora"]')
RING = LONGER.replace("trunks", "rings")
TENANT = '[tenants.banks]\nsaes = ["bank"]\nburst_bps = 100000\npriority = 3\n'


ASK_S = 256 / 2000
"""What the demands say: who asks for more than the links make is refused for want of key, grown or not."""


class Asking(threading.Thread):
    """Asks for keys and fetches them at the other end, all the time."""

    def __init__(self, lab: lab_kit.LabHandle, initiator: str, target: str) -> None:
        super().__init__(daemon=True)
        self._ends = lab.client(initiator), lab.client(target)
        self._names = initiator, target
        self._is_over = threading.Event()
        self.good = 0
        self.failed: list[str] = []

    def run(self) -> None:
        while not self._is_over.wait(ASK_S):
            try:
                given = self._ends[0].get_keys(self._names[1], 1, 256)
                fetched = self._ends[1].get_keys_with_ids(self._names[0], [key.key_id for key in given])
                assert [key.material.reveal() for key in given] == [key.material.reveal() for key in fetched]
                self.good += 1
            except Exception as error:
                self.failed.append(f"{time.monotonic():.1f} {error!r}")

    def over(self) -> None:
        self._is_over.set()
        self.join(20)


@pytest.fixture
def lab(short_directory: Path):
    # Its nodes choose their ports themselves, the new one too; none of them is down in between.
    handle = lab_kit.LabHandle(short_directory / "grows", str(short_directory / "grows.toml"))
    Path(handle.topology).write_text(TRUNK + LINK + DEMANDS)
    handle.up()
    try:
        handle.wait_for_keys()
        yield handle
    finally:
        handle.close_clients()
        handle.down()


def apply(lab: lab_kit.LabHandle, text: str, *more: str) -> str:
    Path(lab.topology).write_text(text)
    return lab.qtrunk("apply", lab.topology, *more).stdout


def test_a_trunk_grows_into_a_ring_and_shrinks_again_without_a_failed_request(lab: lab_kit.LabHandle) -> None:
    for target in ("vault", "shop"):
        lab.wait_for_pool("bank", target)
    before = lab.running()
    asking = [Asking(lab, "bank", "vault"), Asking(lab, "bank", "shop")]
    for one in asking:
        one.start()
    # Nothing but words.
    said = apply(lab, LONGER + LINK + DEMANDS, "--dry-run")
    assert said.splitlines()[:3] == ["+ node dora", "+ link cleo-dora", "+ SAE mill"]
    assert lab.running() == before
    # A node more.
    apply(lab, LONGER + LINK + DEMANDS)
    lab.wait_for_keys()
    client = lab.client("mill")
    deadline_s = time.monotonic() + 60
    while True:
        try:
            given = lab.client("bank").get_keys("mill", 1, 256)
            break
        except Exception:
            assert time.monotonic() < deadline_s
            time.sleep(0.5)
    assert [one.material.reveal() for one in client.get_keys_with_ids("bank", [given[0].key_id])] == [
        given[0].material.reveal()
    ]
    # The ring is closed; a tenant comes, a demand goes.
    said = apply(lab, RING + LINK + TENANT)
    assert "+ link dora-ada" in said
    assert "+ tenant banks" in said
    assert "- demand bank vault" in said
    lab.wait_for_keys()
    assert {"cleo-dora", "dora-ada"} <= lab.links().keys()
    # A link between old nodes goes; its key is destroyed, and the record says why.
    opened = RING.replace('rings = [["ada", "bert", "cleo", "dora"]]', 'trunks = [["cleo", "dora", "ada", "bert"]]')
    lab.wait_for_keys(40_000)
    assert "- link bert-cleo" in apply(lab, opened + LINK + TENANT + DEMANDS)
    time.sleep(5)
    for one in asking:
        one.over()
    assert [one.failed[:5] for one in asking] == [[], []]
    assert min(one.good for one in asking) > 20
    # No process that was there before was started anew, but for the fibre that is gone and the controller.
    after = lab.running()
    anew = {"optics-bert-cleo", "controller-1"}
    assert {name: after.get(name) for name in before if name not in anew} == {
        name: pid for name, pid in before.items() if name not in anew
    }
    assert after["controller-1"] not in (0, before["controller-1"])
    assert "optics-bert-cleo" not in after
    assert "bert-cleo" not in lab.ledger("bert")
    # What a running network cannot take is refused with all its reasons, and nothing changes.
    Path(lab.topology).write_text(opened.replace("grows", "other") + LINK.replace("20", "30") + TENANT)
    refused = lab.qtrunk("apply", lab.topology, check=False)
    assert refused.returncode == 1
    assert "name: stop the lab" in refused.stderr
    assert "links.cleo-dora: length_km 20 -> 30" in refused.stderr
    assert lab.running() == after
