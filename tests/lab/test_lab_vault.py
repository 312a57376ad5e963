"""A lab's node gets a vault, is sealed and unsealed by two officers, changes its master key, is lost and restored."""

import json
import shutil
import subprocess
import threading
import time

import lab_kit
import pytest

from qtrunk.base.errors import QtrunkError
from qtrunk.base.ids import SaeId
from qtrunk.node.ca.identity import Kind
from qtrunk.node.pki import LabPki

PAIR = """
name = "pair"
trunks = [["home", "hill"]]
saes = ["a@home", "b@hill"]
[link]
length_km = 20
loss_db = 8
block_s = 1.0
clock_fraction = 0.25
"""
PHRASE = "correct horse battery staple"


class Vaults:
    """`qtrunk vault` as its users type it."""

    def __init__(self, lab, directory):
        self.lab, self.directory = lab, directory
        self.phrase = directory / "phrase"
        self.phrase.write_text(PHRASE + "\n")
        pki = LabPki(lab.state / "pki")
        pki.credentials(directory / "ben", Kind.OPERATOR, "ben")
        pki.close()
        shutil.copy(lab.state / "pki" / "ca.pem", directory / "ben" / "ca.pem")

    def run(self, *arguments: str, **more) -> subprocess.CompletedProcess:
        return self.lab.qtrunk("vault", *arguments, "--node", "home", **more)

    def state(self) -> str:
        done = self.run("status", "--format", "json", check=False)
        if not done.stdout:
            return "no answer"  # It begins anew in place, and does not listen yet.
        found = json.loads(done.stdout)["state"]
        assert done.returncode == (0 if found == "in service" else 3)
        return found

    def until(self, state: str) -> None:
        deadline_s = time.monotonic() + 30
        while self.state() != state:
            assert time.monotonic() < deadline_s, f"not {state}"
            time.sleep(0.2)

    def unseal(self) -> None:
        """The lab's own officer proposes, ben approves."""
        threading.Thread(target=self._approve).start()
        self.run("unseal", "--secret-file", str(self.phrase))
        self.until("in service")

    def _approve(self) -> None:
        for _ in range(100):
            listed = self.lab.qtrunk("approve", "list", "--node", "home", "--format", "json").stdout
            for proposal in json.loads(listed):
                if proposal["state"] == "proposed":
                    ben = ("--credentials", str(self.directory / "ben"), "--node", "home")
                    self.lab.qtrunk("approve", "yes", proposal["id"], "--digest", proposal["digest"], *ben)
                    return
            time.sleep(0.1)


def serves(lab) -> int:
    """Keys that went from end to end."""
    deadline_s = time.monotonic() + 60
    while True:
        try:
            keys = lab.client("a").get_keys(SaeId("b"), 4, 256)
            found = lab.client("b").get_keys_with_ids(SaeId("a"), [key.key_id for key in keys])
            assert [key.material for key in found] == [key.material for key in keys]
            return len(found)
        except QtrunkError:
            if time.monotonic() > deadline_s:
                raise
            time.sleep(0.5)
        finally:
            lab.close_clients()


def active(links):
    return all(link["state"] == "ACTIVE" and link["own_bits"] > 20_000 for link in links.values())


def test_a_node_with_a_vault_lives_through_seal_rotation_loss_and_restoration(short_directory, tmp_path):
    lab = lab_kit.start(short_directory, "vault", PAIR)
    try:
        vaults = Vaults(lab, tmp_path)
        passphrase = ("--method", "passphrase", "--new-secret-file", str(vaults.phrase))
        assert serves(lab) == 4
        assert "in use" in vaults.run("init", *passphrase, check=False).stderr
        lab.down()
        home = lab.state / "nodes" / "home"
        bare = (home / "kek").read_bytes()
        vaults.run("init", *passphrase)
        assert not (home / "kek").exists()
        lab.up()

        # Sealed: it says so, and nobody gets a key.
        assert vaults.state() == "sealed"
        with pytest.raises(QtrunkError):
            lab.client("a").get_keys(SaeId("b"), 1, 256)
        lab.close_clients()
        vaults.unseal()
        lab.wait_for(active, "links of the unsealed node")
        assert serves(lab) == 4
        assert "in use" in vaults.run("rotate", "--secret-file", str(vaults.phrase), check=False).stderr
        pid = lab.pids()["node-home"]
        vaults.run("seal")
        vaults.until("sealed")
        assert lab.pids()["node-home"] == pid
        vaults.unseal()
        assert serves(lab) == 4

        # Another master key, and the records as they are now.
        copy = tmp_path / "records.db"
        vaults.run("backup", str(copy))
        lab.down()
        before = (home / "vault.json").read_bytes()
        vaults.run("rotate", "--secret-file", str(vaults.phrase))
        assert (home / "vault.json").read_bytes() != before
        everything = [path for path in lab.state.rglob("*") if path.is_file()]
        assert not [path for path in everything if bare in path.read_bytes() or PHRASE.encode() in path.read_bytes()]

        # The store is lost; its records come back, and the link begins anew at both ends.
        ledger = lab.qtrunk("vault", "restore", str(copy), "--node", "home", check=False)
        assert "never replaces" in ledger.stderr
        shutil.rmtree(home / "store")
        told = vaults.run("restore", str(copy)).stdout
        assert "destroyed" in told
        secret = bytes(range(256)) * 8
        for node in ("home", "hill"):
            if node == "hill":
                told = lab.qtrunk("vault", "begin-anew", "home-hill", "--node", "hill").stdout
            path = told.rpartition(" in ")[2].strip()
            with open(path, "wb") as out:  # noqa: PTH123
                out.write(secret)
        lab.up()
        vaults.unseal()
        lab.wait_for(active, "the link that began anew", 90)
        assert serves(lab) == 4
        for node in ("home", "hill"):
            (entry,) = lab.ledger(node).values()
            assert entry["destroyed"]["restored"] > 0
            spent = sum(entry[part] for part in ("allocated", "followed", "authentication", "skipped"))
            balance = entry["generated"] - entry["pending"] - entry["available"] - spent
            assert balance == sum(entry["destroyed"].values()), (node, entry)
    finally:
        lab.close_clients()
        lab_kit.stop(lab)
