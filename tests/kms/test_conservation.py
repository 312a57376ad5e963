"""Two link ends under any order of use, loss, replay, grant and crash: each octet once, balanced books."""

import shutil
import tempfile
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from kms_kit import KEK_OCTETS, LINK, StandingClock, material_of, qkd_key

from qtrunk.base.errors import AuthenticationFailed, KeyExhausted, KeyNotFound
from qtrunk.base.ids import NodeId
from qtrunk.base.secret import Secret
from qtrunk.kms.store import KeyStore, Slice
from qtrunk.stages import Role

AUTH_OCTETS = 16
ENDS = st.sampled_from(list(Role))


class TwoEnds(RuleBasedStateMachine):
    """Alice's and Bob's stores; what one says may reach the other at once, or never."""

    def __init__(self) -> None:
        super().__init__()
        shm = Path("/dev/shm")
        self.path = Path(tempfile.mkdtemp(dir=shm if shm.is_dir() else None))
        self.crashes = 0
        self.stores = {role: self.open(role, self.path / role.value) for role in Role}
        self.sizes: dict[int, int] = {}
        self.used: set[tuple[int, int]] = set()
        """Octets that were handed out for any purpose at either end."""
        self.sent: list[tuple[Role, tuple[Slice, ...]]] = []
        """Allocations that were followed; following again must fail."""

    def open(self, role: Role, path: Path) -> KeyStore:
        node = NodeId("a" if role is Role.ALICE else "b")
        return KeyStore.open(path, node, Secret(KEK_OCTETS), StandingClock())

    def teardown(self) -> None:
        for store in self.stores.values():
            store.close()
        shutil.rmtree(self.path)

    def spend(self, slices: tuple[Slice, ...], material: Secret) -> None:
        octets = {(one.block, at) for one in slices for at in range(one.offset, one.end)}
        assert len(octets) == sum(one.length for one in slices)
        assert not octets & self.used, "octets were handed out before"
        self.used |= octets
        expected = b"".join(material_of(one.block, self.sizes[one.block])[one.offset : one.end] for one in slices)
        assert material == Secret(expected)

    @rule(octets=st.integers(1, 90), share=st.integers(0, 90), is_good=st.booleans())
    def distil(self, octets: int, share: int, is_good: bool) -> None:
        block = max(store.last_block(LINK) for store in self.stores.values()) + 1
        self.sizes[block] = octets
        for store in self.stores.values():
            store.hold(qkd_key(block, octets, min(share, octets)))
        for store in self.stores.values():
            if is_good:
                store.release(LINK, block)
            else:
                store.destroy(LINK, block, "verification")

    @rule(end=ENDS, octets=st.integers(1, 60), arrives=st.booleans())
    def allocate(self, end: Role, octets: int, arrives: bool) -> None:
        store = self.stores[end]
        own = store.level(LINK).own_octets
        try:
            taken = store.allocate(LINK, end, octets)
        except KeyExhausted:
            assert own < octets
            return
        assert store.level(LINK).own_octets == own - octets
        self.spend(taken.slices, taken.material)
        if arrives:
            assert self.stores[end.peer].follow(LINK, end, taken.slices) == taken.material
            self.sent.append((end, taken.slices))

    @rule(end=ENDS, octets=st.integers(1, 60), arrives=st.booleans())
    def grant(self, end: Role, octets: int, arrives: bool) -> None:
        try:
            slices = self.stores[end].grant(LINK, end, octets)
        except KeyExhausted:
            return
        if arrives:
            own = self.stores[end.peer].level(LINK).own_octets
            self.stores[end.peer].receive_grant(LINK, end, slices)
            assert self.stores[end.peer].level(LINK).own_octets == own + octets

    @rule(arrives=st.booleans())
    def authenticate(self, arrives: bool) -> None:
        """Alice reserves, Bob takes."""
        try:
            one = self.stores[Role.ALICE].auth_ledger(LINK, AUTH_OCTETS, 1.0).reserve(0.0)
        except KeyExhausted:
            return
        piece = Slice(one.block, one.offset, AUTH_OCTETS)
        self.spend((piece,), one.material)
        if arrives:
            bob = self.stores[Role.BOB].auth_ledger(LINK, AUTH_OCTETS, 1.0)
            assert bob.take(one.block, one.offset, 0.0) == one.material

    @precondition(lambda self: self.sent)
    @rule(data=st.data())
    def replay(self, data: st.DataObject) -> None:
        end, slices = data.draw(st.sampled_from(self.sent))
        store = self.stores[end.peer]
        before = store.ledger(LINK)
        try:
            store.follow(LINK, end, slices)
        except (AuthenticationFailed, KeyNotFound):
            assert store.ledger(LINK) == before
        else:
            raise AssertionError("a replay was followed")

    @precondition(lambda self: self.sizes)
    @rule(data=st.data())
    def destroy(self, data: st.DataObject) -> None:
        block = data.draw(st.sampled_from(sorted(self.sizes)))
        if all(store.block_record(LINK, block)["state"] == "available" for store in self.stores.values()):
            for store in self.stores.values():
                store.destroy(LINK, block, "compromised")

    @rule(end=ENDS)
    def crash(self, end: Role) -> None:
        """Go on from what is on the disk at this instant."""
        self.crashes += 1
        old = self.stores[end]
        path = self.path / f"{end.value}{self.crashes}"
        shutil.copytree(old._journal._directory, path)
        old.close()
        self.stores[end] = self.open(end, path)

    @invariant()
    def every_octet_is_accounted_for(self) -> None:
        for store in self.stores.values():
            ledger = store.ledger(LINK)
            assert ledger.unaccounted == 0
            assert ledger.generated == sum(self.sizes.values())
            level = store.level(LINK)
            assert ledger.available == level.auth_octets + level.total_octets
            assert len(list((store._journal._directory / "segments").iterdir())) == level.blocks


TestTwoEnds = TwoEnds.TestCase
TestTwoEnds.settings = settings(
    max_examples=40,
    stateful_step_count=30,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
