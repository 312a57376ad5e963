"""The enrolment service for officers: one invites, two revoke; and the commands that a person types for that."""

import json
import subprocess
import sys

import pytest
from click.testing import CliRunner
from cryptography import x509

from qtrunk.api.roles import OperatorRole
from qtrunk.base.errors import NotAuthorised, RequestRefused
from qtrunk.cli.main import cli
from qtrunk.cli.remote import authority_of
from qtrunk.kms import audit
from qtrunk.node.ca.identity import Kind

REVOKE = {"action": "revoke", "parameters": {"kind": "sae", "name": "bank", "reason": "lost"}}
PROPOSALS = "/admin/v1/approvals"


@pytest.fixture
def officers(office, tmp_path):
    return [authority_of(office.url, office.officer(name, tmp_path / name)) for name in ("ada", "bob")]


def ask(service, method, path, body=None):
    return json.loads(service.ask(method, path, body))


def test_one_officer_invites_a_new_sae_but_no_operator_and_no_replacement(office, officers, tmp_path):
    ada, _ = officers
    token = ask(ada, "POST", "/admin/v1/invitations", {"kind": "sae", "name": "bank"})["token"]
    assert token.startswith("qtrunk-enrol-1.")
    for more in ({"kind": "operator", "roles": ["viewer"]}, {"kind": "sae", "replaces": True}):
        with pytest.raises(NotAuthorised, match="two persons"):
            ask(ada, "POST", "/admin/v1/invitations", {"name": "x", **more})


def test_a_revocation_takes_two_and_is_in_the_list_at_once(office, officers, tmp_path):
    ada, bob = officers
    office.enrolled(Kind.SAE, "bank", tmp_path / "bank")
    proposal = ask(ada, "POST", PROPOSALS, REVOKE)
    with pytest.raises(NotAuthorised, match="second person"):
        ask(ada, "POST", f"{PROPOSALS}/{proposal['id']}/yes", {"digest": proposal["digest"]})
    with pytest.raises(RequestRefused, match="not approved"):
        ask(ada, "POST", f"{PROPOSALS}/{proposal['id']}/run")
    ask(bob, "POST", f"{PROPOSALS}/{proposal['id']}/yes", {"digest": proposal["digest"]})
    assert ask(ada, "POST", f"{PROPOSALS}/{proposal['id']}/run") == {"revoked": 1}
    assert len(list(x509.load_pem_x509_crl(office.authority.crl()))) == 1
    with pytest.raises(RequestRefused, match="executed"):
        ask(ada, "POST", f"{PROPOSALS}/{proposal['id']}/run")
    assert ("operator ada", "revoke", "done") in office.audited()


def test_a_change_of_role_takes_two_and_ends_the_old_certificate(office, officers, tmp_path):
    ada, bob = officers
    office.enrolled(Kind.OPERATOR, "cho", tmp_path / "cho", roles=(OperatorRole.AUDITOR,))
    cho = authority_of(office.url, tmp_path / "cho")
    assert ask(cho, "GET", "/admin/v1/certificates")
    parameters = {"kind": "operator", "name": "cho", "roles": ["viewer"], "replaces": True}
    proposal = ask(ada, "POST", PROPOSALS, {"action": "invite", "parameters": parameters})
    ask(bob, "POST", f"{PROPOSALS}/{proposal['id']}/yes", {"digest": proposal["digest"]})
    token = ask(ada, "POST", f"{PROPOSALS}/{proposal['id']}/run")["token"]
    (tmp_path / "token").write_text(token + "\n")
    result = CliRunner().invoke(
        cli, ["enrol", "join", office.url, "--token-file", str(tmp_path / "token"), "--out", str(tmp_path / "new")]
    )
    assert result.exit_code == 0, result.output
    with pytest.raises(NotAuthorised, match="revoked"):
        ask(cho, "GET", "/admin/v1/certificates")
    with pytest.raises(NotAuthorised, match="role"):
        ask(authority_of(office.url, tmp_path / "new"), "GET", "/admin/v1/certificates")
    # The token went to the proposer and is in no record.
    for path in office.directory.rglob("*"):
        assert not path.is_file() or token.encode() not in path.read_bytes()


def test_nonsense_is_not_put_up_for_approval(officers):
    for body, why in (
        ({"action": "revoke", "parameters": {"kind": "sae", "name": "nobody", "reason": "x"}}, "no living"),
        ({"action": "revoke", "parameters": {"kind": "sae", "name": "bank"}}, "reason"),
        ({"action": "invite", "parameters": {"kind": "operator", "name": "x"}}, "role"),
        ({"action": "invite", "parameters": {"kind": "king", "name": "x"}}, "kind"),
        ({"action": "export", "parameters": {}}, "one of invite, revoke"),
        ({"action": "revoke"}, "parameters"),
        ([], "action"),
    ):
        with pytest.raises(RequestRefused, match=why):
            ask(officers[0], "POST", PROPOSALS, body)
    assert ask(officers[0], "GET", PROPOSALS) == []


def test_saes_and_nodes_have_no_say(office, officers, tmp_path):
    for kind in (Kind.SAE, Kind.NODE):
        service = authority_of(office.url, office.enrolled(kind, "x", tmp_path / kind))
        for method, path in (("GET", "/admin/v1/certificates"), ("POST", PROPOSALS), ("GET", "/admin/v1/status")):
            with pytest.raises(NotAuthorised, match="operator's certificate"):
                service.ask(method, path)


# ── commands ────────────────────────────────────────────────────────────────────────────────────────────────────────


def run(*arguments, status=0):
    result = CliRunner().invoke(cli, [str(argument) for argument in arguments])
    assert result.exit_code == status, result.output
    return result.output


def test_a_new_authority_by_hand_until_there_are_two_officers(tmp_path):
    ca = tmp_path / "ca"
    run("enrol", "invite", "--kind", "sae", "--name", "x", "--ca", ca, status=1)
    assert not ca.exists()
    run("enrol", "init", "--ca", ca)
    run("enrol", "init", "--ca", ca, status=1)
    assert run("enrol", "invite", "--kind", "sae", "--name", "x", "--ca", ca, "--ttl", "30m").startswith(
        "qtrunk-enrol-1."
    )
    for arguments in (("--kind", "operator"), ("--kind", "sae", "--role", "viewer"), ("--kind", "sae", "--host", "h")):
        run("enrol", "invite", *arguments, "--name", "x", "--ca", ca, status=1)
    run("enrol", "invite", "--kind", "sae", "--name", "x", "--ca", ca, "--ttl", "soon", status=2)
    assert "local user" in run("audit", "show", ca / "audit")
    head = run("audit", "verify", ca / "audit").strip()
    run("enrol", "invite", "--kind", "sae", "--name", "y", "--ca", ca)
    run("audit", "verify", ca / "audit", "--head", head)
    run("audit", "verify", ca / "audit", "--head", f"1:{'0' * 64}", status=1)
    run("audit", "export", ca / "audit", "-o", tmp_path / "out.jsonl")
    assert len((tmp_path / "out.jsonl").read_bytes().splitlines()) == audit.verify(ca / "audit").sequence


def test_with_two_officers_the_files_owner_no_longer_acts_alone(office, officers, tmp_path):
    office.enrolled(Kind.SAE, "bank", tmp_path / "bank")
    for arguments in (
        ("revoke", "--kind", "sae", "--name", "bank", "--reason", "lost"),
        ("invite", "--kind", "operator", "--name", "eve", "--role", "security-officer"),
        ("invite", "--kind", "sae", "--name", "bank", "--replace"),
    ):
        assert "two persons" in run("enrol", *arguments, "--ca", office.directory, status=1)
    run("enrol", "invite", "--kind", "sae", "--name", "new", "--ca", office.directory)
    listed = json.loads(run("enrol", "list", "--ca", office.directory, "--format", "json"))
    assert {"ada", "bob", "bank"} <= {entry["name"] for entry in listed}


def test_the_roles_are_printed_as_they_are_checked():
    found = json.loads(run("roles", "--format", "json"))
    row = next(entry for entry in found if (entry["method"], entry["path"]) == ("POST", "/admin/v1/approvals"))
    assert row["roles"] == "security-officer"
    assert "/admin/v1/ledger" in run("roles")


def test_serve_stops_when_told_and_says_where_it_listens(tmp_path):
    run("enrol", "init", "--ca", tmp_path / "ca")
    command = [sys.executable, "-m", "qtrunk.cli.main", "enrol", "serve", "--ca", tmp_path / "ca"]
    with subprocess.Popen([*command, "--listen", "127.0.0.1:0"], stderr=subprocess.PIPE) as process:
        assert b"https://127.0.0.1:" in process.stderr.readline()
        process.terminate()
        assert process.wait(10) == 0


def test_two_officers_revoke_by_command_and_see_what_they_approve(office, officers, tmp_path):
    office.enrolled(Kind.SAE, "bank", tmp_path / "bank")
    ada, bob = ([*("--authority", office.url), "--credentials", tmp_path / name] for name in ("ada", "bob"))
    parameters = json.dumps(REVOKE["parameters"])
    first = run("approve", "propose", "revoke", parameters, *ada).strip()
    second = run("approve", "propose", "revoke", parameters, *ada).strip()
    run("approve", "yes", first, "--digest", "0" * 64, *bob, status=1)
    result = CliRunner().invoke(cli, ["approve", "yes", first, *map(str, bob)], input="n\n")
    assert '"reason":"lost"' in result.output
    assert result.exit_code == 1
    assert CliRunner().invoke(cli, ["approve", "yes", first, *map(str, bob)], input="y\n").exit_code == 0
    run("approve", "no", second, *bob)
    states = {entry["id"]: entry["state"] for entry in json.loads(run("approve", "list", "--format", "json", *ada))}
    assert states == {first: "approved", second: "refused"}
    assert json.loads(run("approve", "run", first, *ada)) == {"revoked": 1}
    assert json.loads(run("approve", "show", first, *bob))["state"] == "executed"
    run("approve", "list", status=1)
    run("approve", "propose", "revoke", "nonsense", *ada, status=2)


def test_keep_brings_new_lists_and_goes_on_when_the_service_is_away(office, tmp_path, monkeypatch, caplog):
    ada = office.enrolled(Kind.NODE, "ada", tmp_path / "ada")
    office.enrolled(Kind.NODE, "bob", tmp_path / "bob")
    rounds = []

    def sleep(_seconds):
        rounds.append((len(list(x509.load_pem_x509_crl((ada / "ca.crl").read_bytes()))), len(caplog.records)))
        if len(rounds) == 1:
            office.authority.revoke(Kind.NODE, "bob", "stolen", "test")
        elif len(rounds) == 2:
            settings = json.loads((ada / "enrolment.json").read_text())
            (ada / "enrolment.json").write_text(json.dumps({**settings, "url": "https://localhost:1"}))
        else:
            raise KeyboardInterrupt

    monkeypatch.setattr("qtrunk.cli.enrol.time.sleep", sleep)
    run("enrol", "keep", "--out", ada)
    assert [revoked for revoked, _ in rounds] == [0, 1, 1]
    assert "does not answer" in caplog.text
    assert not (ada / "verifying" / "bob.pem").exists()
