"""The two-person rule: another person, the very same operation, in time, once."""

import pytest

from qtrunk.base.errors import NotAuthorised, RequestRefused, StoreError
from qtrunk.kms import audit
from qtrunk.kms.approvals import LIFE_S, OPEN_MAX, Approvals, Officer, State
from qtrunk.kms.shelf import FileShelf

ADA, BOB, EVE = (Officer(name, name * 8) for name in ("ada", "bob", "eve"))


class Clock:
    now_s = 1_800_000_000.0

    def unix_s(self):
        return self.now_s

    def monotonic_s(self):
        return self.now_s


class Dice:
    count = 0

    def octets(self, count):
        self.count += 1
        return self.count.to_bytes(count, "big")


class Desk:
    """The machine on real files, which can be opened again as after a crash."""

    def __init__(self, directory):
        self.directory, self.clock, self.dice = directory, Clock(), Dice()
        self.open()

    def open(self):
        self.log = audit.AuditLog(self.directory / "audit", self.clock)
        self.shelf = FileShelf(self.directory / "proposals.sqlite")
        self.approvals = Approvals(self.shelf, self.log, self.clock, self.dice)

    def crash(self):
        self.log.close()
        self.shelf.close()
        self.open()

    def propose(self):
        return self.approvals.propose(ADA, "revoke", {"name": "bank", "kind": "sae"})


@pytest.fixture
def desk(tmp_path):
    made = Desk(tmp_path)
    yield made
    made.log.close()
    made.shelf.close()


def test_proposed_approved_by_another_and_executed_once(desk):
    proposal = desk.propose()
    assert proposal.operation == '{"action":"revoke","parameters":{"kind":"sae","name":"bank"}}'
    desk.approvals.approve(BOB, proposal.id, proposal.digest)
    assert desk.approvals.begin(ADA, proposal.id).parameters() == {"kind": "sae", "name": "bank"}
    desk.approvals.end(ADA, proposal.id, is_done=True)
    assert desk.approvals.find(proposal.id).state is State.EXECUTED
    with pytest.raises(RequestRefused, match="executed"):
        desk.approvals.begin(ADA, proposal.id)
    told = [(record.who, record.what, record.outcome) for record in audit.records(desk.directory / "audit")]
    assert told == [
        ("operator ada", "propose", "proposed"),
        ("operator bob", "approve", "approved"),
        ("operator ada", "execute", "running"),
        ("operator ada", "execute", "executed"),
    ]


@pytest.mark.parametrize(
    "second", [ADA, Officer("ada", "another certificate"), Officer("another name", ADA.fingerprint)], ids=str
)
def test_a_second_certificate_or_a_second_name_is_no_second_person(desk, second):
    proposal = desk.propose()
    with pytest.raises(NotAuthorised, match="second person"):
        desk.approvals.approve(second, proposal.id, proposal.digest)
    assert desk.approvals.find(proposal.id).state is State.PROPOSED


def test_what_was_not_approved_does_not_run(desk):
    proposal = desk.propose()
    with pytest.raises(RequestRefused, match="proposed, not approved"):
        desk.approvals.begin(ADA, proposal.id)
    desk.approvals.refuse(BOB, proposal.id)
    with pytest.raises(RequestRefused, match="refused"):
        desk.approvals.approve(EVE, proposal.id, proposal.digest)
    with pytest.raises(RequestRefused, match="no such"):
        desk.approvals.begin(ADA, "0" * 16)


def test_a_yes_is_for_the_operation_that_was_read(desk):
    proposal = desk.propose()
    other = desk.approvals.propose(ADA, "revoke", {"name": "power", "kind": "sae"})
    with pytest.raises(RequestRefused, match="digest"):
        desk.approvals.approve(BOB, proposal.id, other.digest)
    with pytest.raises(RequestRefused, match="digest"):
        desk.approvals.approve(BOB, proposal.id, "é")


def test_only_the_proposer_executes(desk):
    proposal = desk.propose()
    desk.approvals.approve(BOB, proposal.id, proposal.digest)
    for other in (BOB, EVE):
        with pytest.raises(NotAuthorised):
            desk.approvals.begin(other, proposal.id)


def test_a_proposal_expires_before_and_after_its_approval(desk):
    first, second = desk.propose(), desk.propose()
    desk.approvals.approve(BOB, second.id, second.digest)
    desk.clock.now_s += LIFE_S + 1
    with pytest.raises(RequestRefused, match="expired"):
        desk.approvals.approve(BOB, first.id, first.digest)
    with pytest.raises(RequestRefused, match="expired"):
        desk.approvals.begin(ADA, second.id)


def test_a_crash_forgets_nothing_and_executes_nothing_twice(desk):
    proposal = desk.propose()
    desk.crash()
    desk.approvals.approve(BOB, proposal.id, proposal.digest)
    desk.crash()
    desk.approvals.begin(ADA, proposal.id)
    desk.crash()
    assert desk.approvals.find(proposal.id).state is State.RUNNING
    with pytest.raises(RequestRefused, match="running"):
        desk.approvals.begin(ADA, proposal.id)


@pytest.mark.parametrize("broken", ["audit", "shelf"])
def test_what_cannot_be_written_down_is_not_approved(desk, monkeypatch, broken):
    proposal = desk.propose()

    def full(*_arguments, **_more):
        raise StoreError("no space")

    with monkeypatch.context() as patch:
        patch.setattr(*((desk.log, "record") if broken == "audit" else (desk.shelf, "put")), full)
        with pytest.raises(StoreError):
            desk.approvals.approve(BOB, proposal.id, proposal.digest)
    assert desk.approvals.find(proposal.id).state is State.PROPOSED
    with pytest.raises(RequestRefused):
        desk.approvals.begin(ADA, proposal.id)


def test_proposals_that_wait_are_bounded(desk, monkeypatch):
    monkeypatch.setattr("qtrunk.kms.approvals.OPEN_MAX", 3)
    made = [desk.propose() for _ in range(3)]
    with pytest.raises(RequestRefused, match="may wait"):
        desk.propose()
    desk.approvals.refuse(BOB, made[0].id)
    desk.propose()
    with pytest.raises(RequestRefused, match="octets"):
        desk.approvals.propose(ADA, "add-ca", {"certificate": "x" * 40_000})
    assert OPEN_MAX > 3
