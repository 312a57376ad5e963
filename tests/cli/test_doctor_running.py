"""The doctor's checks of what runs, each tried by breaking that thing; servers stand in for the nodes."""

import fcntl
import os
import resource
import socket
import ssl
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import msgspec
import pytest
from click.testing import CliRunner
from doctor_kit import (
    Server,
    a_warning,
    an_error,
    answering,
    change_node,
    make_lab,
    one,
    pretend_up,
    reissue,
    with_nodes,
)

from qtrunk.api import https
from qtrunk.cli.doctor import clocks, command, processes
from qtrunk.cli.doctor.clocks import check_clocks, check_steps
from qtrunk.cli.doctor.finding import Level, error, warning
from qtrunk.cli.doctor.ledgers import check_ledgers
from qtrunk.cli.doctor.ports import check_modules, check_ports
from qtrunk.cli.doctor.processes import (
    check_alarms,
    check_answers,
    check_memory,
    check_memory_limit,
    check_processes,
    check_vault,
    is_alive,
)
from qtrunk.cli.doctor.saes import check_saes
from qtrunk.cli.doctor.site import Answer, Site, offset_of
from qtrunk.node.ca.identity import Kind
from qtrunk.node.config import Address
from qtrunk.node.lab import Lab, LabRecord

SERVICES = ("key_api", "admin_api", "inter_node", "stream_api", "skip_api", "sdn_api")


def everywhere(address):
    return dict.fromkeys(SERVICES, address)


def alone(site, address):
    """Node ada with all its services at one address, and no neighbour."""
    found = with_nodes(site, ada={**everywhere(address), "links": []})
    return pretend_up(Site(found.nodes[:1], site.operator, site.lab))


# ── ports ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_services_as_they_should_be(site):
    with Server(site.nodes[0]) as server:
        assert list(check_ports(alone(site, server.address))) == []
        assert list(check_ports(alone(site, Address("0.0.0.0", server.port)))) == []


def test_nothing_listens_and_it_is_said_once_for_all_services(site):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = Address("127.0.0.1", probe.getsockname()[1])
        found = an_error(check_ports(alone(site, address)), "node ada, key API at 127.0.0.1", "nothing listens")
    assert "start the node" in found.fix


def test_another_node_answers(site):
    with Server(site.nodes[1]) as server:
        an_error(check_ports(alone(site, server.address)), "node ada", "not KME ada who answers but KME bert")


def test_a_neighbour_that_is_another(site):
    entry = msgspec.structs.replace
    with Server(site.nodes[0]) as server:
        links = [entry(site.nodes[0].links[0], peer=server.address)]
        found = pretend_up(Site(with_nodes(site, ada={**everywhere(server.address), "links": links}).nodes[:1], None))
        an_error(check_ports(found), "node bert, inter-node, as ada dials it for link ada-bert", "but KME ada")


def test_a_server_of_another_authority(site, tmp_path):
    (tmp_path / "other").mkdir()
    stranger = Site.of_lab(make_lab(tmp_path / "other").state)
    with Server(stranger.nodes[0]) as server:
        an_error(check_ports(alone(site, server.address)), "node ada", "its certificate is not believed")


def test_a_server_that_does_not_believe_us(site, tmp_path):
    """It shows a certificate of our CA and believes another one."""
    (tmp_path / "other").mkdir()
    stranger = Site.of_lab(make_lab(tmp_path / "other").state)
    half = msgspec.structs.replace(site.nodes[0], ca_certificate=stranger.nodes[0].ca_certificate)
    with Server(half) as server:
        # Whether the server's alert comes before the end of the connection is a matter of its event loop.
        found = list(check_ports(alone(site, server.address)))
    assert {finding.level for finding in found} == {Level.ERROR}
    assert all("it closes connections with" in each.what or "UNKNOWN_CA" in each.what for each in found)


def test_a_certificate_that_was_renewed_but_is_not_shown(lab, site):
    with Server(site.nodes[0]) as server:
        reissue(lab, lab.state / "nodes" / "ada", Kind.NODE, "ada", days=90, ago_days=0)
        a_warning(check_ports(alone(site, server.address)), "node ada, key API", "shows another certificate than")


def test_a_node_whose_own_certificate_is_no_good(lab, site):
    (lab.state / "nodes" / "ada" / "key.pem").unlink()
    found = [finding.what for finding in check_ports(alone(site, Address("127.0.0.1", 9)))]
    assert len([what for what in found if what.startswith("not tried")]) == 1


class Mute:
    """A listener that takes connections and does with them what it is told."""

    def __init__(self, act) -> None:
        self._act = act
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = Address("127.0.0.1", self._listener.getsockname()[1])
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with connection:
                self._act(connection)

    def __enter__(self) -> "Mute":
        return self

    def __exit__(self, *_nothing) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(10)


def test_a_port_where_somebody_speaks_no_tls(site):
    with Mute(lambda connection: connection.sendall(b"SSH-2.0-nothing\r\n" * 4)) as other:
        an_error(check_ports(alone(site, other.address)), "node ada", "")


def closing_server(config):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(config.certificate, config.private_key)
    context.load_verify_locations(config.ca_certificate)
    context.verify_mode = ssl.CERT_REQUIRED

    def act(connection):
        context.wrap_socket(connection, server_side=True).close()

    return Mute(act)


def test_a_server_that_closes_is_right_only_for_who_is_no_sae(site):
    with closing_server(site.nodes[0]) as server:
        broken = alone(site, server.address)
        found = {(finding.on.split(" at ")[0], finding.what) for finding in check_ports(broken)}
        node, sae = (site.lab.state / "nodes" / "ada" / "cert.pem", site.lab.state / "saes" / "bank" / "cert.pem")
        assert found == {
            ("node ada, key API", f"it closes connections with {node}"),
            ("node ada, key streams", f"it closes connections with {sae}"),
        }
        streams = [msgspec.structs.replace(broken.nodes[0], **everywhere(server.address))]
        outside = Site(streams, None, None)
        assert len(list(check_ports(outside))) == 1


def test_a_port_that_somebody_took_while_the_lab_is_down(tmp_path, lab, site):
    with socket.socket() as thief:
        thief.bind(("127.0.0.1", site.nodes[0].skip_api.port))
        thief.listen()
        a_warning(check_ports(site), "node ada, SKIP", "another program has the port")
    assert list(check_ports(site)) == []
    (tmp_path / "fixed").mkdir()
    fixed = make_lab(tmp_path / "fixed", 'name = "n"\ntrunks = [["a", "b"]]\nlink.length_km = 9\n')
    record = LabRecord(1, {**fixed.topology.to_dict()}, fixed.ports)
    record.topology["nodes"][0]["key_api_port"] = fixed.ports["a"].key_api
    (fixed.state / "lab.json").write_bytes(msgspec.json.encode(record))
    with socket.socket() as thief:
        thief.bind(("127.0.0.1", fixed.ports["a"].key_api))
        thief.listen()
        an_error(check_ports(Site.of_lab(fixed.state)), "node a, key API", "another program has the port")


def test_a_module_without_its_driver(lab, site):
    assert {finding.on for finding in check_modules(site)} == {"node ada, link ada-bert", "node bert, link ada-bert"}
    with socket.socket(socket.AF_UNIX) as driver:
        driver.bind(str(lab.optics_socket("ada-bert")))
        assert list(check_modules(site)) == []


# ── SAEs ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def kme(**changes):
    status = {
        "source_KME_ID": "ada",
        "target_KME_ID": "bert",
        "master_SAE_ID": "bank",
        "slave_SAE_ID": "shop",
        "key_size": 256,
        "stored_key_count": 10,
        "max_key_count": 100,
        "max_key_per_request": 10,
        "max_key_size": 1024,
        "min_key_size": 64,
        "max_SAE_ID_count": 0,
        **changes,
    }
    return answering({"status": status})


def saes_at(lab, handler, caller=None):
    """What is found with all KMEs in one place."""
    site = Site.of_lab(lab.state)
    with Server(caller or site.nodes[0], handler) as server:
        ports = {node: msgspec.structs.replace(ports, key_api=server.port) for node, ports in lab.ports.items()}
        moved = Lab(lab.state, LabRecord(1, lab.topology.to_dict(), ports))
        return [
            finding
            for finding in check_saes(pretend_up(Site(site.nodes, site.operator, moved)))
            if finding.on == "SAE bank"
        ]


def test_an_sae_is_served_by_the_right_kme_and_has_key(lab):
    assert saes_at(lab, kme()) == []
    a_warning(saes_at(lab, kme(stored_key_count=0)), "SAE bank", "no key lies ready from it to shop")
    an_error(saes_at(lab, kme(source_KME_ID="carl")), "SAE bank", "KME carl serves it")
    an_error(saes_at(lab, answering({})), "SAE bank", "its KME does not serve it")


def test_an_sae_without_its_certificate(lab):
    (lab.state / "saes" / "bank" / "cert.pem").unlink()
    an_error(saes_at(lab, kme()), "SAE bank", "cannot be used (No such file")


# ── what nodes answer ───────────────────────────────────────────────────────────────────────────────────────────────

LEDGER = {
    "generated": 100,
    "pending": 0,
    "available": 70,
    "allocated": 10,
    "followed": 10,
    "authentication": 5,
    "skipped": 5,
    "destroyed": {},
}


def ledger(**changes):
    return {"ada-bert": {**LEDGER, **changes}}


def asked(site, config, document):
    with Server(config, answering(document)) as server:
        found = pretend_up(with_nodes(site, ada={"admin_api": server.address}))
        del vars(found)["answers"]
        return Site(found.nodes[:1], found.operator, None).answers["ada"]


def test_a_node_is_asked_as_an_operator(site, monkeypatch):
    answer = asked(site, site.nodes[0], {"status": {"node": "ada"}, "ledger": ledger()})
    assert answer == Answer({"node": "ada"}, (ledger(), ledger()), 0.0, "")
    sealed = {"node": "ada", "state": "sealed"}
    assert asked(site, site.nodes[0], {"status": sealed}) == Answer(sealed)
    assert "another party's" in asked(site, site.nodes[1], {}).problem
    assert "answers 404 to /admin/v1/status" in asked(site, site.nodes[0], {}).problem
    date = https.formatdate
    monkeypatch.setattr(https, "formatdate", lambda unix_s, usegmt: date(unix_s - 100, usegmt=usegmt))
    assert -101 < asked(site, site.nodes[0], {"status": {}, "ledger": {}}).offset_s < -95


def test_who_does_not_answer_is_said(lab, site):
    (lab.state / "operator" / "key.pem").unlink()
    quiet = Site(site.nodes[:1], site.operator, None)
    an_error(check_answers(quiet), "node ada", "certificate")
    a_warning(check_answers(Site(site.nodes, None, None)), "nodes", "not asked")


def test_alarms_are_findings_and_those_of_a_link_are_told_once(site):
    def alarm(resource, severity):
        return {"resource": resource, "type": "T", "severity": severity, "text": f"{resource} is bad", "count": 1}

    def status(*alarms):
        return Answer(status={"alarms": {"active": list(alarms)}})

    link = alarm("ada-bert", "critical")
    sealed = {**alarm("vault", "critical"), "type": "NodeSealed"}
    both = pretend_up(
        site, ada=status(link, sealed, alarm("pools", "minor")), bert=status(link, alarm("pools", "minor"))
    )
    found = {(finding.level, finding.on) for finding in check_alarms(both)}
    assert found == {
        (Level.ERROR, "node ada, ada-bert"),
        (Level.WARNING, "node ada, pools"),
        (Level.WARNING, "node bert, pools"),
    }


def test_vaults(site):
    def vault(state="in service", **more):
        return Answer(status={"state": state, "vault": {"vault": "v", **more}})

    file = {"name": "kek", "method": "file", "is_unattended": True, "is_laboratory": True}
    assert list(check_vault(pretend_up(site, ada=vault(unsealers=[file])))) == []
    an_error(check_vault(pretend_up(site, ada=vault("sealed"))), "node ada", "it is sealed")
    an_error(check_vault(pretend_up(site, ada=vault(problem="vault v: damaged"))), "node ada", "damaged")
    outside = Site(site.nodes, site.operator, None)
    a_warning(check_vault(pretend_up(outside, ada=vault(unsealers=[file]))), "node ada", "a file on its own disk")
    people = {**file, "method": "shares", "is_laboratory": False}
    assert list(check_vault(pretend_up(outside, ada=vault(unsealers=[people])))) == []


def test_memory_that_is_not_locked(site, monkeypatch):
    def memory(unlocked=0, is_dumpable=False, core=0):
        secrets = {"locked": 9, "unlocked": unlocked, "why": "mlock: too much", "held": 0}
        return Answer(status={"memory": {"is_dumpable": is_dumpable, "core_octets_max": core, "secrets": secrets}})

    assert list(check_memory(pretend_up(site, ada=memory(), bert=Answer()))) == []
    monkeypatch.setattr(processes, "has_swap", lambda: True)
    found = a_warning(check_memory(pretend_up(site, ada=memory(unlocked=65536))), "node ada", "64 KiB of secrets")
    assert "swap is on" in found.why
    an_error(check_memory(pretend_up(site, ada=memory(is_dumpable=True))), "node ada", "dumped or traced")
    an_error(check_memory(pretend_up(site, ada=memory(core=-1))), "node ada", "dumped or traced")


def test_a_limit_on_locked_memory_that_is_too_low(site, monkeypatch):
    monkeypatch.setattr(resource, "getrlimit", lambda _which: (0, 64 << 10))
    a_warning(check_memory_limit(site), "this machine", "may lock 64 KiB")
    monkeypatch.setattr(resource, "getrlimit", lambda _which: (0, resource.RLIM_INFINITY))
    assert list(check_memory_limit(site)) == []


# ── ledgers ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def both(site, ada, bert, pools=()):
    """Readings of both ends: each a ledger, or a pair of them."""

    def answer(readings):
        first, second = readings if isinstance(readings, tuple) else (readings, readings)
        return Answer(status={"pools": list(pools)}, ledgers=(first, second))

    pretend_up(site, ada=answer(ada), bert=answer(bert))
    site.again = lambda: site
    return check_ledgers(site, settle_s=0.0)


def test_ledgers_that_fit(site):
    assert list(both(site, ledger(), ledger())) == []
    # A block came in between: they may have been alike at one moment.
    later = ledger(generated=150, available=120)
    assert list(both(site, (ledger(), later), later)) == []


def test_octets_that_are_unaccounted_for(site):
    an_error(both(site, ledger(available=69), ledger()), "link ada-bert", "1 octets of key are unaccounted for")


def test_ends_with_different_amounts(site):
    a_warning(both(site, ledger(), ledger(generated=150, available=120)), "link ada-bert", "generated: 100 octets")


def test_an_end_that_followed_what_nobody_allocated(site):
    bert = ledger(followed=12, available=68)
    found = an_error(both(site, ledger(), bert), "link ada-bert", "allocated 10 octets, the other followed 12")
    assert "used twice" in found.why
    # The user went on between the two readings; that is no contradiction.
    assert list(both(site, (ledger(), ledger(allocated=12, available=68)), bert)) == []


def test_ledgers_of_pools(site):
    pool = {
        "initiator": "bank",
        "target": "shop",
        "filled": 50,
        "overhead": 0,
        "available": 50,
        "delivered": 0,
        "doubtful": 0,
        "lost": 0,
        "destroyed": {},
    }
    sides = [{**pool, "side": "initiator"}, {**pool, "side": "target"}]
    assert list(both(site, ledger(), ledger(), sides)) == []
    sides[1] = {**sides[1], "filled": 40, "available": 40}
    a_warning(both(site, ledger(), ledger(), sides), "pool bank to shop", "filled: 50 octets at the one end, 40")
    sides[1] = {**sides[1], "filled": 50}
    an_error(both(site, ledger(), ledger(), sides), "pool bank to shop", "10 octets of key are unaccounted for")


def test_what_settles_is_no_finding(site):
    unlike = pretend_up(site, ada=Answer(ledgers=(ledger(), ledger())))
    later = ledger(generated=150, available=120)
    vars(unlike)["answers"]["bert"] = Answer(ledgers=(later, later))
    alike = pretend_up(Site(site.nodes, None), **dict.fromkeys(("ada", "bert"), Answer(ledgers=(later, later))))
    unlike.again = lambda: alike
    assert list(check_ledgers(unlike, settle_s=0.1)) == []


def test_one_end_alone_is_not_compared(site):
    assert list(check_ledgers(pretend_up(site, ada=Answer(ledgers=(ledger(), ledger()))), settle_s=0.0)) == []
    silent = pretend_up(site, ada=Answer(ledgers=(ledger(), ledger())), bert=Answer(problem="silent"))
    assert list(check_ledgers(silent, settle_s=0.0)) == []


# ── clocks ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("date_s", "before_s", "after_s", "offset_s"),
    [(100, 100.2, 100.3, 0.0), (99, 100.9, 101, 0.0), (110, 100, 101, 9), (90, 100, 101, -8), (98, 100.5, 101, -0.5)],
)
def test_what_a_date_tells_of_a_clock(date_s, before_s, after_s, offset_s):
    assert offset_of(date_s, before_s, after_s) == offset_s


def test_clocks_that_are_off(site):
    def clocks_of(ada_s, bert_s):
        return list(check_clocks(pretend_up(site, ada=Answer(offset_s=ada_s), bert=Answer(offset_s=bert_s))))

    assert clocks_of(0.0, 1.5) == []
    a_warning(clocks_of(0.0, 7.0), "node bert", "its clock is 7 s ahead of this machine's")
    an_error(clocks_of(-300.0, 0.0), "node ada", "its clock is 300 s behind this machine's")
    a_warning(clocks_of(-1.5, 1.5), "node bert", "its clock is 3 s ahead of that of node ada")


def test_a_clock_that_is_stepped_while_we_look(site, monkeypatch):
    steps = iter([0.0, 0.5])
    real = time.time
    fake = SimpleNamespace(time=lambda: real() + next(steps), monotonic=time.monotonic, sleep=lambda _s: None)
    monkeypatch.setattr(clocks, "time", fake)
    a_warning(check_steps(site), "this machine", "stepped by +0.50 s")


def test_a_clock_that_was_stepped_since_the_lab_came_up():
    pid, now_s = os.getpid(), time.time()
    lived_s = processes.lived_s(pid)
    assert lived_s > 0
    assert abs(clocks.clock_step_s(pid, now_s - lived_s)) < 1
    assert abs(clocks.clock_step_s(pid, now_s - lived_s - 3600) - 3600) < 1
    assert clocks.clock_step_s(0, 0.0) == 0.0


def test_a_production_node_whose_clock_nobody_keeps(site, monkeypatch):
    production = Site(site.nodes, None, None)
    monkeypatch.setattr(clocks, "is_unsynchronised", lambda: True)
    a_warning(check_steps(production), "this machine", "nothing keeps its clock in time")
    assert list(check_steps(site)) == []


# ── processes ───────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def supervised(lab):
    """A lab that a supervisor seems to hold; returns how to say what it says."""
    state = {"pid": os.getpid(), "started_unix_s": time.time() - processes.lived_s(os.getpid()), "children": {}}
    with (lab.state / "supervisor.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)

        def say(**children):
            state["children"] = children
            (lab.state / "supervisor.json").write_bytes(msgspec.json.encode(state))
            return state

        yield say


def test_a_lab_that_is_down_or_just_starting(lab, site, request):
    a_warning(check_processes(site), str(lab.state), "it is not up")
    request.getfixturevalue("supervised")
    a_warning(check_processes(Site.of_lab(lab.state)), str(lab.state), "it is just starting")


def test_processes_that_died(lab, supervised):
    gone = subprocess.Popen([sys.executable, "-c", ""])
    while is_alive(gone.pid):
        time.sleep(0.01)
    supervised(node={"pid": gone.pid, "restarts": 3}, optics={"pid": os.getpid(), "restarts": 0})
    an_error(check_processes(Site.of_lab(lab.state)), "process node", "it does not run")
    gone.wait()
    assert not is_alive(0)


def test_processes_that_were_started_again(lab, supervised, monkeypatch):
    supervised(node={"pid": os.getpid(), "restarts": 2})
    a_warning(check_processes(Site.of_lab(lab.state)), "process node", "as often as 2")
    monkeypatch.setattr(processes, "RECENT_S", 0.0)
    assert list(check_processes(Site.of_lab(lab.state))) == []


def test_a_clock_step_is_found_by_the_supervisors_note(lab, supervised):
    supervised()
    assert list(check_steps(Site.of_lab(lab.state))) == []
    state = supervised()
    state["started_unix_s"] -= 60
    (lab.state / "supervisor.json").write_bytes(msgspec.json.encode(state))
    a_warning(check_steps(Site.of_lab(lab.state)), "this machine", "stepped by +60 s since the lab was started")


# ── the command ─────────────────────────────────────────────────────────────────────────────────────────────────────


def run(*arguments):
    return CliRunner().invoke(command.doctor, arguments)


def test_the_exit_status_is_the_worst_finding(lab, monkeypatch):
    def checks(*findings):
        return (command.Check("c", "all", lambda _site: findings, lambda _site: ""),)

    for findings, status in (
        ((), 0),
        ((warning("x", "w", "y", "z"),), 1),
        ((warning("x", "w", "y", "z"), error("x", "e", "y", "z")), 2),
    ):
        monkeypatch.setattr(command, "CHECKS", checks(*findings))
        assert run("--state", str(lab.state)).exit_code == status
        assert run("--state", str(lab.state), "--format", "json").exit_code == status


def test_the_report_of_a_lab_that_is_down(lab):
    done = run("--state", str(lab.state))
    assert done.exit_code == 1
    assert "warning  lab " in done.output
    assert f"fix: qtrunk up --state {lab.state} FILE (where pair is described)" in done.output
    assert "ledgers: not examined, the lab is not up" in done.output
    report = msgspec.json.decode(run("--state", str(lab.state), "--format", "json").output)
    by_name = {check["check"]: check for check in report["checks"]}
    assert list(by_name) == [check.name for check in command.CHECKS]
    assert report["level"] == by_name["processes"]["level"] == "warning"
    assert by_name["certificates"]["level"] == "ok"
    assert (by_name["ledgers"]["level"], by_name["ledgers"]["not_examined"]) == ("skipped", "the lab is not up")
    assert set(by_name["processes"]["findings"][0]) == {"level", "on", "what", "why", "fix"}


def test_a_production_node_is_examined_by_its_configuration(lab):
    change_node(lab, "ada", topology=lab.topology.to_dict())
    done = run("--config", str(lab.state / "nodes" / "ada" / "node.json"), "--format", "json")
    assert done.exit_code == 2
    by_name = {check["check"]: check for check in msgspec.json.decode(done.output)["checks"]}
    assert by_name["processes"]["not_examined"] == "of labs only"
    assert by_name["operator"]["level"] == "warning"
    assert one(by_name_findings(by_name["ports"]["findings"])).what == "nothing listens there"
    assert run("--credentials", str(lab.state)).exit_code == 2


def test_a_production_node_is_asked_with_an_operators_credentials(lab, site):
    own = lab.state / "operator"
    (own / "ca.pem").write_bytes((lab.state / "pki" / "ca.pem").read_bytes())
    documents = {"status": {"node": "ada"}, "ledger": ledger(available=69)}
    with Server(site.nodes[0], answering(documents)) as server:
        change_node(lab, "ada", admin_api=msgspec.to_builtins(server.address))
        config = str(lab.state / "nodes" / "ada" / "node.json")
        done = run("--config", config, "--credentials", str(own), "--format", "json")
    by_name = {check["check"]: check for check in msgspec.json.decode(done.output)["checks"]}
    assert {by_name[name]["level"] for name in ("certificates", "operator", "clocks")} == {"ok"}
    assert by_name["ledgers"]["findings"][0]["on"] == "link ada-bert"


def by_name_findings(findings):
    """Those about node ada, as findings again."""
    return [error(f["on"], f["what"], f["why"], f["fix"]) for f in findings if f["on"].startswith("node ada")]


def test_no_lab_is_exit_status_2(tmp_path):
    done = run("--state", str(tmp_path / "none"))
    assert done.exit_code == 2
    assert "no lab in" in done.output


def test_the_page_has_a_row_for_every_check():
    page = (Path(__file__).parents[2] / "docs" / "doctor.md").read_text()
    rows = [line.split("|")[1].strip() for line in page.splitlines() if line.startswith("| ")]
    assert rows[2:] == [check.name for check in command.CHECKS]
