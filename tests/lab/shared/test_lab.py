"""A lab of real processes, used as its users do. Tests share one lab of three nodes and leave it in service."""

import base64
import http.client
import json
import os
import signal
import ssl
import subprocess
import sys
import time
from pathlib import Path

import pytest

from qtrunk.base.errors import KeyExhausted, KeyNotFound, NotAuthorised, RequestRefused
from qtrunk.base.ids import SaeId

BANK, SHOP, VAULT, GRID, DESK = (SaeId(name) for name in ("bank", "shop", "vault", "grid", "desk"))


def materials(keys):
    return [(key.key_id, bytes(key.material.reveal())) for key in keys]


def raw(lab, sae, method, path, body=None, headers=None, context=None):
    """One request as an outside client makes it: status, headers and parsed body."""
    record = lab.sae(sae)
    host = record["kme_url"].removeprefix("https://")
    connection = http.client.HTTPSConnection(host, context=context or lab.tls(sae), timeout=15)
    try:
        connection.request(method, path, body, headers or {})
        response = connection.getresponse()
        octets = response.read()
    finally:
        connection.close()
    return response.status, dict(response.headers), json.loads(octets) if octets else None


# ── keys ────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("initiator", "target"), [(BANK, VAULT), (VAULT, BANK), (BANK, SHOP), (SHOP, GRID), (BANK, DESK)]
)
def test_both_ends_of_every_pair_get_the_same_keys(small_lab, initiator, target):
    mine = small_lab.client(initiator).get_keys(target, 5, 256)
    assert materials(small_lab.client(target).get_keys_with_ids(initiator, [key.key_id for key in mine])) == materials(
        mine
    )
    assert len({material for _, material in materials(mine)}) == 5


def test_a_key_for_several_slaves_is_the_same_for_each_and_single_use_for_each(small_lab):
    mine = small_lab.client(BANK).get_keys(VAULT, 2, 512, also=[SHOP, GRID])
    key_ids = [key.key_id for key in mine]
    for target in (VAULT, SHOP, GRID):
        client = small_lab.client(target)
        assert materials(client.get_keys_with_ids(BANK, key_ids)) == materials(mine)
        with pytest.raises(KeyNotFound):
            client.get_keys_with_ids(BANK, key_ids)


def test_a_stranger_and_the_master_get_no_key_and_use_none_up(small_lab):
    mine = small_lab.client(BANK).get_keys(VAULT, 1, 256)
    other = small_lab.client(BANK).get_keys(GRID, 1, 256)
    for client, master in ((small_lab.client(GRID), BANK), (small_lab.client(VAULT), SHOP)):
        with pytest.raises(NotAuthorised):
            client.get_keys_with_ids(master, [mine[0].key_id])
    with pytest.raises(KeyNotFound, match="not found on KME"):
        small_lab.client(BANK).get_keys_with_ids(VAULT, [mine[0].key_id])
    with pytest.raises(NotAuthorised):
        small_lab.client(VAULT).get_keys_with_ids(BANK, [mine[0].key_id, other[0].key_id])
    assert materials(small_lab.client(VAULT).get_keys_with_ids(BANK, [mine[0].key_id])) == materials(mine)


def test_the_standards_messages_work_as_simple_clients_send_them(small_lab):
    status, _, answer = raw(small_lab, "bank", "GET", "/api/v1/keys/vault/status")
    assert status == 200
    assert (answer["source_KME_ID"], answer["target_KME_ID"]) == ("ada", "cleo")
    assert (answer["master_SAE_ID"], answer["slave_SAE_ID"], answer["key_size"]) == ("bank", "vault", 256)
    assert 0 < answer["stored_key_count"] <= answer["max_key_count"]
    status, _, answer = raw(small_lab, "bank", "GET", "/api/v1/keys/vault/enc_keys?number=1&size=256")
    assert status == 200
    (key,) = answer["keys"]
    assert len(base64.b64decode(key["key"], validate=True)) == 32
    status, _, again = raw(small_lab, "vault", "GET", f"/api/v1/keys/bank/dec_keys?key_ID={key['key_ID']}")
    assert (status, again) == (200, {"keys": [key]})
    status, _, answer = raw(small_lab, "vault", "GET", f"/api/v1/keys/bank/dec_keys?key_ID={key['key_ID']}")
    assert (status, answer) == (400, {"message": "one or more keys specified are not found on KME"})
    assert raw(small_lab, "bank", "POST", "/api/v1/keys/vault/enc_keys")[0] == 200
    status, _, answer = raw(small_lab, "bank", "POST", "/api/v1/keys/vault/enc_keys", json.dumps({"size": 257}))
    assert (status, answer) == (400, {"message": "size shall be a multiple of 8"})
    status, _, answer = raw(small_lab, "bank", "GET", "/api/v1/keys/nobody/status")
    assert status == 400
    assert "nobody" in answer["message"]


def test_a_receipt_tells_where_a_key_came_from_and_never_the_key(small_lab):
    (key,) = small_lab.client(BANK).get_keys(VAULT, 1, 256)
    small_lab.client(VAULT).get_keys_with_ids(BANK, [key.key_id])
    text = small_lab.qtrunk("keys", "show", key.key_id, "--format", "json").stdout
    record = json.loads(text)
    assert set(record["nodes"]) == {"ada", "cleo"}
    hops = record["nodes"]["cleo"]["stored"]["receipt"]["hops"]
    assert [hop["link"] for hop in hops] == ["ada-bert", "bert-cleo"]
    assert all(0 < block["qber"] < 0.05 and 0 < block["epsilon"] < 1e-9 for hop in hops for block in hop["blocks"])
    assert record["nodes"]["cleo"]["recipients"][0]["state"] == "delivered"
    material = bytes(key.material.reveal())
    assert material.hex() not in text
    assert base64.b64encode(material).decode() not in text
    assert small_lab.qtrunk("keys", "show", "7a8a2fd6-2d2c-4a0e-8f0a-3d1f5f0b9c11", check=False).returncode == 1


def test_keys_are_relayed_by_announced_xors_where_a_tenant_wants_it(small_lab):
    """A key for two targets comes from no pool, so its relay is this one."""
    request = {"number": 2, "size": 256, "additional_slave_SAE_IDs": ["swift-b"]}
    status, _, answer = raw(small_lab, "swift-a", "POST", "/api/v1/keys/swift-c/enc_keys", json.dumps(request))
    assert status == 200
    for target in ("swift-b", "swift-c"):
        names = {"key_IDs": [{"key_ID": key["key_ID"]} for key in answer["keys"]]}
        found = raw(small_lab, target, "POST", "/api/v1/keys/swift-a/dec_keys", json.dumps(names))
        assert (found[0], found[2]["keys"]) == (200, answer["keys"])
    record = json.loads(small_lab.qtrunk("keys", "show", answer["keys"][0]["key_ID"], "--format", "json").stdout)
    stored = {node: found["stored"]["receipt"] for node, found in record["nodes"].items() if "stored" in found}
    # Between neighbours there is nobody to announce anything.
    assert {node: receipt.get("relay") for node, receipt in stored.items()} == {"bert": None, "cleo": "announced"}
    assert [hop["link"] for hop in stored["cleo"]["hops"]] == ["ada-bert", "bert-cleo"]


def test_what_falls_with_a_node_is_said_by_tenant_and_pair(small_lab):
    assert small_lab.client(BANK).get_keys(VAULT, 3, 256)
    topology = json.loads(small_lab.qtrunk("status", "--format", "json").stdout)
    fates = {}
    for node in (entry["node"] for entry in topology["nodes"]):
        rows = json.loads(small_lab.qtrunk("exposure", node, "--format", "json").stdout)["rows"]
        fates[node] = {row["fate"] for row in rows if (row["initiator"], row["target"]) == (BANK, VAULT)}
    assert sorted(fate for found in fates.values() for fate in found) == ["held", "held", "hybrid"]
    table = small_lab.qtrunk("exposure", node, "--format", "csv").stdout.splitlines()
    assert table[0].startswith("tenant,initiator,target,fate,falls")
    assert small_lab.qtrunk("exposure", "nowhere", check=False).returncode == 1


def test_no_secret_lies_in_the_lab_in_clear(small_lab):
    keys = small_lab.client(BANK).get_keys(VAULT, 20, 256)
    needles = []
    for _, material in materials(keys):
        needles += [material, material.hex().encode(), base64.b64encode(material)]
    for path in small_lab.state.rglob("*"):
        if path.is_file():
            octets = path.read_bytes()
            assert not any(needle in octets for needle in needles), path
    for pid in small_lab.pids().values():
        for name in ("cmdline", "environ"):
            octets = Path(f"/proc/{pid}/{name}").read_bytes()
            assert not any(needle in octets for needle in needles)


def test_exhaustion_is_said_clearly_and_nothing_is_lost(small_lab):
    client = small_lab.client(BANK)

    def take_all():
        for _ in range(2000):
            client.get_keys(VAULT, 128, 8192)

    with pytest.raises(KeyExhausted, match=r"503: link .* bits of") as refusal:
        take_all()
    assert refusal.value.retry_after_s >= 1
    small_lab.wait_for_keys(100_000)
    assert len(client.get_keys(VAULT, 1, 256)) == 1
    for node in ("ada", "bert", "cleo"):
        ledger = small_lab.ledger(node)
        for link, entry in ledger.items():
            spent = sum(entry[part] for part in ("allocated", "followed", "authentication", "skipped"))
            balance = entry["generated"] - entry["pending"] - entry["available"] - spent
            assert balance == sum(entry["destroyed"].values()), (node, link, entry)


# ── who may come in ─────────────────────────────────────────────────────────────────────────────────────────────────


def refused_by_tls(lab, context):
    """TLS 1.3 clients learn of a refusal with their first read."""
    with pytest.raises((ssl.SSLError, ConnectionError, http.client.RemoteDisconnected)):
        raw(lab, "bank", "GET", "/api/v1/keys/vault/status", context=context)


def test_no_certificate_and_foreign_and_expired_ones_are_refused(small_lab, tmp_path, foreign_certificate):
    ca = small_lab.sae("bank")["ca_certificate"]
    refused_by_tls(small_lab, ssl.create_default_context(cafile=ca))
    for kind in ("foreign", "expired"):
        certificate, key = foreign_certificate(small_lab, tmp_path, kind)
        context = ssl.create_default_context(cafile=ca)
        context.load_cert_chain(certificate, key)
        refused_by_tls(small_lab, context)


def test_certificates_of_other_roles_and_other_nodes_get_no_key(small_lab):
    status, _, answer = raw(small_lab, "bank", "GET", "/api/v1/keys/vault/status", context=small_lab.tls("vault"))
    assert status == 401
    assert set(answer) == {"message"}
    for directory in ("operator", "nodes/bert"):
        context = ssl.create_default_context(cafile=small_lab.sae("bank")["ca_certificate"])
        context.load_cert_chain(small_lab.state / directory / "cert.pem", small_lab.state / directory / "key.pem")
        assert raw(small_lab, "bank", "GET", "/api/v1/keys/vault/status", context=context)[0] == 401


def test_only_operators_see_the_administration(small_lab):
    port = json.loads((small_lab.state / "lab.json").read_bytes())["ports"]["ada"]["admin_api"]
    connection = http.client.HTTPSConnection("localhost", port, context=small_lab.tls("bank"), timeout=5)
    connection.request("GET", "/admin/v1/status")
    response = connection.getresponse()
    response.read()
    connection.close()
    assert response.status == 401


def test_a_stranger_on_the_inter_node_port_is_refused(small_lab):
    import socket

    port = json.loads((small_lab.state / "lab.json").read_bytes())["ports"]["bert"]["inter_node"]
    context = small_lab.tls("bank")
    with (
        socket.create_connection(("localhost", port), timeout=5) as plain,
        context.wrap_socket(plain, server_hostname="localhost") as connection,
    ):
        assert connection.recv(1) == b""
    assert small_lab.client(BANK).get_keys(VAULT, 1, 256)


# ── files ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("size", [0, 1, 3_000_000])
@pytest.mark.parametrize("otp", [False, True])
def test_a_file_travels_from_end_to_end(small_lab, tmp_path, size, otp):
    if otp:
        size = min(size, 100_000)
    plain, sealed, opened = tmp_path / "plain", tmp_path / "plain.qsealed", tmp_path / "opened"
    plain.write_bytes(os.urandom(size))
    done = small_lab.qtrunk("seal", str(plain), "--from", "bank", "--to", "vault", *(["--otp"] if otp else []))
    if otp:
        assert "key bits are needed" in done.stdout
    small_lab.qtrunk("open", str(sealed), "--as", "vault", "-o", str(opened))
    assert opened.read_bytes() == plain.read_bytes()
    assert (
        small_lab.qtrunk("open", str(sealed), "--as", "vault", "-o", str(tmp_path / "x"), check=False).returncode == 1
    )
    assert not (tmp_path / "x").exists()


def test_a_changed_file_leaves_nothing_and_the_genuine_one_still_opens(small_lab, tmp_path):
    plain, sealed = tmp_path / "plain", tmp_path / "plain.qsealed"
    plain.write_bytes(os.urandom(50_000))
    small_lab.qtrunk("seal", str(plain), "--from", "bank", "--to", "vault")
    forged = tmp_path / "forged.qsealed"
    octets = bytearray(sealed.read_bytes())
    octets[-1000] ^= 1
    forged.write_bytes(octets)
    assert small_lab.qtrunk("open", str(forged), "--as", "vault", check=False).returncode == 1
    assert small_lab.qtrunk("open", str(sealed), "--as", "grid", check=False).returncode == 1
    assert {path.name for path in tmp_path.iterdir()} == {"plain", "plain.qsealed", "forged.qsealed"}
    small_lab.qtrunk("open", str(sealed), "--as", "vault", "-o", str(tmp_path / "opened"))
    assert (tmp_path / "opened").read_bytes() == plain.read_bytes()


# ── trouble ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_an_eavesdropper_turns_the_link_off_and_its_leaving_turns_it_on(small_lab):
    client, other = small_lab.client(BANK), small_lab.client(SHOP)
    before = small_lab.links()["ada-bert"]
    assert before["diagnosis"] == []
    small_lab.qtrunk("attack", "ada-bert", "intercept-resend", "--fraction", "0.5")
    try:

        def is_off(links):
            # The first block may have been caught half way through its light: wait for one that Eve had whole. One end
            # destroys it and says so; the other one's turn comes a moment later.
            link = links["ada-bert"]
            both = [(link["ends"][end], before["ends"][end]) for end in ("alice", "bob")]
            is_destroyed = all(now["blocks_destroyed"] > then["blocks_destroyed"] for now, then in both)
            return link if link["state"] == "OFF" and link["qber_test"] > 0.11 and is_destroyed else None

        link = small_lab.wait_for(is_off, "OFF and a block destroyed at both ends", 20)
        assert link["qber_test"] > 0.11 > before["qber_test"]

        def raised(_links):
            # The alarm is raised once the block that died has been diagnosed, a moment after the state says OFF.
            active = [a for node in small_lab.status()["nodes"] for a in node["alarms"]["active"]]
            here = [alarm for alarm in active if alarm["resource"] == "ada-bert"]
            return here if any(alarm["type"] == "LinkOff" for alarm in here) else None

        alarms = small_lab.wait_for(raised, "the alarm LinkOff", 10)
        types = {alarm["type"] for alarm in alarms}
        assert {"LinkOff"} <= types <= {"LinkOff", "QberAboveAbort", "QberRising", "SkrBelowPlan"}
        texts = [alarm["text"] for alarm in alarms if alarm["type"] == "LinkOff"]
        assert all("QBER" in text for text in texts)
        # The end that gave the block up has counted it; the other one has its monitors alone.
        assert any("intercept-resend (" in text for text in texts), texts
        assert "intercept-resend" in {each["kind"] for each in small_lab.links()["ada-bert"]["diagnosis"]}
        assert small_lab.links()["bert-cleo"]["diagnosis"] == []
        assert small_lab.links()["bert-cleo"]["state"] == "ACTIVE"
        # What was made before stays good, and no block of now is added.
        released = small_lab.links()["ada-bert"]["blocks_released"]
        mine = client.get_keys(SHOP, 1, 256)
        assert materials(other.get_keys_with_ids(BANK, [mine[0].key_id])) == materials(mine)
        time.sleep(3)
        assert small_lab.links()["ada-bert"]["blocks_released"] == released
    finally:
        small_lab.qtrunk("attack", "ada-bert", "none")
    small_lab.wait_for(lambda links: links["ada-bert"]["state"] == "ACTIVE", "recovery")
    small_lab.wait_for(lambda links: not links["ada-bert"]["diagnosis"], "a block to which nothing happened")

    def is_over(_links):
        active = [a for node in small_lab.status()["nodes"] for a in node["alarms"]["active"]]
        # What is judged by the mean of some time (QberRising, SkrBelowPlan) stays up for a while.
        return {a["type"] for a in active if a["resource"] == "ada-bert"} <= {"QberRising", "SkrBelowPlan"}

    small_lab.wait_for(is_over, "the end of the alarms", 30)


def take_everything(client):
    for _ in range(100):
        client.get_keys(VAULT, 128, 8192)


def test_a_stopped_node_costs_a_clear_refusal_and_comes_back(small_lab):
    small_lab.client(BANK).get_keys(VAULT, 1, 256)
    small_lab.wait_for_pool(BANK, VAULT)
    pid = small_lab.pids()["node-bert"]
    os.kill(pid, signal.SIGSTOP)
    try:
        # What lies ready at both ends goes on being supplied; more than that needs the node.
        client = small_lab.client(BANK, timeout_s=20)
        ready = client.get_keys(VAULT, 1, 256)
        assert materials(small_lab.client(VAULT).get_keys_with_ids(BANK, [ready[0].key_id])) == materials(ready)
        with pytest.raises(KeyExhausted, match="503"):
            take_everything(client)
        assert client.get_keys(DESK, 1, 256)
    finally:
        os.kill(pid, signal.SIGCONT)
    deadline_s = time.monotonic() + 30
    while True:
        try:
            mine = small_lab.client(BANK).get_keys(VAULT, 1, 256)
            break
        except KeyExhausted:
            assert time.monotonic() < deadline_s, "the trunk did not come back"
            time.sleep(0.5)
    assert materials(small_lab.client(VAULT).get_keys_with_ids(BANK, [mine[0].key_id])) == materials(mine)


def test_commands_refuse_what_is_wrong_with_one_clear_line(small_lab, tmp_path):
    for arguments, text in (
        (("attack", "ada-cleo", "none"), "is not a link"),
        (("seal", str(small_lab.state / "lab.json"), "--from", "bank", "--to", "nobody"), "is not in topology"),
        (("sae", "show", "nobody"), "is not in topology"),
        (("up", "no-such-topology"), "no-such-topology"),
        (("up", small_lab.topology, "--detach"), "already up"),
    ):
        done = small_lab.qtrunk(*arguments, check=False)
        assert done.returncode == 1
        assert text in done.stderr
        assert "Traceback" not in done.stderr
    bad = tmp_path / "bad.toml"
    bad.write_text('name = "x"\ntrunks = [["a", "b"]]\n[link]\nlength_km = -3\nloss = 4\n[nodes.a]\n[nodes.c]\n')
    done = small_lab.qtrunk("check", str(bad), check=False)
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 3
    assert "length_km" in done.stderr
    assert small_lab.qtrunk("check", small_lab.topology).stdout.startswith("small-trunk: valid")


def test_a_request_that_asks_for_too_much_is_refused_before_any_key_is_spent(small_lab):
    with pytest.raises(RequestRefused, match="number"):
        small_lab.client(BANK).get_keys(VAULT, 129, 256)
    with pytest.raises(RequestRefused, match="size"):
        small_lab.client(BANK).get_keys(VAULT, 1, 16_384)
    with pytest.raises(RequestRefused, match="own slave"):
        small_lab.client(BANK).get_keys(BANK, 1, 256)


def test_an_emitted_script_puts_the_same_key_to_use_at_both_ends(small_lab, tmp_path):
    """The WireGuard script against real key managers; `wg` is one that writes down what it is told."""
    stub = tmp_path / "bin" / "wg"
    stub.parent.mkdir()
    stub.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/arguments\ncat > {tmp_path}/key.$4\n')
    stub.chmod(0o755)
    path = {"PATH": f"{stub.parent}:{os.environ['PATH']}"}

    def run(sae, peer, *arguments):
        text = small_lab.qtrunk("sae", "show", sae, "--emit", "wireguard", "--peer", peer).stdout
        script = tmp_path / f"script-{sae}"
        script.write_text(text.replace("<public key of the other end>", f"pub-{peer}"))
        command = [sys.executable, str(script), *arguments]
        return subprocess.run(command, env=path, capture_output=True, text=True, check=False, timeout=60)

    key_id = run("bank", "vault", "initiate").stdout.strip()
    assert run("vault", "bank", "collect", key_id).stdout.strip() == key_id
    keys = {(tmp_path / f"key.pub-{peer}").read_text() for peer in ("bank", "vault")}
    (key,) = keys
    assert len(base64.b64decode(key, validate=True)) == 32
    assert key not in (tmp_path / "arguments").read_text()
    again = run("vault", "bank", "collect", key_id)
    assert again.returncode == 1
    assert "400" in again.stderr
    assert "--peer" in small_lab.qtrunk("sae", "show", "bank", "--emit", "fortios", check=False).stderr
