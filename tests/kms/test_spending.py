"""Two stores that never meet spend the same octets, each once, whatever is lost, repeated or granted."""

from collections.abc import Callable
from pathlib import Path

import pytest
from kms_kit import LINK, StandingClock, give_block, material_of, qkd_key

from qtrunk.base.errors import (
    AuthenticationFailed,
    BudgetSpent,
    KeyExhausted,
    KeyNotFound,
    KeyPending,
    RequestRefused,
    StoreError,
)
from qtrunk.base.ids import LinkId
from qtrunk.base.secret import Secret
from qtrunk.kms.spending import AUTH_SKIP_MAX, STALE_BLOCKS
from qtrunk.kms.store import KeyStore, Slice
from qtrunk.stages import Role

ALICE, BOB = Role.ALICE, Role.BOB
Open = Callable[..., KeyStore]


@pytest.fixture
def pair(open_store: Open) -> tuple[KeyStore, KeyStore]:
    """Alice's and Bob's stores with blocks 1 and 2: 100 octets, 20 for authentication, 40 for each end."""
    stores = open_store("a"), open_store("b")
    for store in stores:
        for block in (1, 2):
            give_block(store, block, 100, 20)
    return stores


def balanced(*stores: KeyStore) -> bool:
    return all(store.ledger(LINK).unaccounted == 0 for store in stores)


def test_both_ends_get_the_same_octets_in_both_directions(pair: tuple[KeyStore, KeyStore]) -> None:
    alice, bob = pair
    for octets in (1, 30, 40, 9):
        there = alice.allocate(LINK, ALICE, octets)
        assert bob.follow(LINK, ALICE, there.slices) == there.material
        back = bob.allocate(LINK, BOB, octets)
        assert alice.follow(LINK, BOB, back.slices) == back.material
        assert set(there.slices).isdisjoint(back.slices)
    assert balanced(alice, bob)
    assert alice.level(LINK).total_octets == 0


def test_allocation_takes_the_oldest_block_first_and_spans_blocks(pair: tuple[KeyStore, KeyStore]) -> None:
    taken = pair[0].allocate(LINK, ALICE, 50)
    assert taken.slices == (Slice(1, 20, 40), Slice(2, 20, 10))
    assert bytes(taken.material.reveal()) == material_of(1, 100)[20:60] + material_of(2, 100)[20:30]


def test_an_allocation_that_is_too_large_takes_nothing(pair: tuple[KeyStore, KeyStore]) -> None:
    alice, _ = pair
    before = alice.level(LINK)
    with pytest.raises(KeyExhausted, match="640 bits of 648 left"):
        alice.allocate(LINK, ALICE, 81)
    assert alice.level(LINK) == before


def test_an_allocation_survives_a_crash_as_used(open_store: Open, pair: tuple[KeyStore, KeyStore]) -> None:
    alice, _ = pair
    first = alice.allocate(LINK, ALICE, 10)
    alice.close()
    again = open_store("a").allocate(LINK, ALICE, 10)
    assert again.slices[0].offset == first.slices[0].end


def test_a_replayed_slice_is_refused_and_moves_nothing(pair: tuple[KeyStore, KeyStore]) -> None:
    alice, bob = pair
    first, second = alice.allocate(LINK, ALICE, 10), alice.allocate(LINK, ALICE, 10)
    bob.follow(LINK, ALICE, first.slices)
    before = bob.ledger(LINK)
    for replay in (first.slices, (*second.slices, *first.slices), second.slices * 2):
        with pytest.raises(AuthenticationFailed):
            bob.follow(LINK, ALICE, replay)
    assert bob.ledger(LINK) == before
    assert bob.follow(LINK, ALICE, second.slices) == second.material


def test_what_the_peer_passes_over_is_burnt(pair: tuple[KeyStore, KeyStore]) -> None:
    alice, bob = pair
    lost, sent = alice.allocate(LINK, ALICE, 10), alice.allocate(LINK, ALICE, 10)
    assert bob.follow(LINK, ALICE, sent.slices) == sent.material
    assert bob.ledger(LINK).skipped == 10
    with pytest.raises(AuthenticationFailed):
        bob.follow(LINK, ALICE, lost.slices)
    assert balanced(alice, bob)


@pytest.mark.parametrize(
    "piece",
    [
        Slice(1, 0, 5),  # the area for authentication
        Slice(1, 15, 10),  # half in it
        Slice(1, 55, 10),  # half in Bob's
        Slice(1, 60, 5),  # Bob's own area
        Slice(1, 20, 0),
        Slice(1, 20, -1),
        Slice(1, -5, 10),
        Slice(1, 1 << 40, 10),
        Slice(1, 20, 1 << 40),
    ],
)
def test_a_slice_that_is_not_the_peers_is_refused(pair: tuple[KeyStore, KeyStore], piece: Slice) -> None:
    _, bob = pair
    before = bob.ledger(LINK)
    with pytest.raises(AuthenticationFailed):
        bob.follow(LINK, ALICE, (Slice(2, 20, 5), piece))
    assert bob.ledger(LINK) == before


@pytest.mark.parametrize("block", [7, 3, 4, -1])
def test_a_block_that_is_not_available_cannot_be_followed(pair: tuple[KeyStore, KeyStore], block: int) -> None:
    """Of one that is only not released yet, the error says so: the peer is a moment ahead."""
    _, bob = pair
    bob.hold(qkd_key(3, 100))
    bob.hold(qkd_key(4, 100))
    bob.destroy(LINK, 4, "qber")
    with pytest.raises(KeyNotFound) as found:
        bob.follow(LINK, ALICE, (Slice(1, 20, 5), Slice(block, 0, 5)))
    assert isinstance(found.value, KeyPending) is (block == 3)
    assert bob.ledger(LINK).followed == 0


def test_nobody_allocates_in_the_other_ends_area(pair: tuple[KeyStore, KeyStore]) -> None:
    alice, bob = pair
    for refused in (
        lambda: alice.allocate(LINK, BOB, 1),
        lambda: bob.allocate(LINK, ALICE, 1),
        lambda: alice.follow(LINK, ALICE, (Slice(1, 20, 1),)),
        lambda: alice.grant(LINK, BOB, 1),
        lambda: alice.receive_grant(LINK, ALICE, (Slice(1, 20, 1),)),
    ):
        with pytest.raises(StoreError, match="cannot act as"):
            refused()
    with pytest.raises(RequestRefused):
        alice.allocate(LINK, ALICE, 0)


def test_a_role_that_no_name_tells_is_learnt_once(open_store: Open) -> None:
    link = LinkId("backbone7")
    store = open_store("a")
    store.hold(qkd_key(1, 100, link=link))
    store.release(link, 1)
    with pytest.raises(StoreError, match="set_role"):
        store.level(link)
    store.set_role(link, BOB)
    store.set_role(link, BOB)
    assert store.level(link).own_octets == 50
    with pytest.raises(StoreError):
        store.allocate(link, ALICE, 1)
    with pytest.raises(StoreError):
        store.set_role(link, ALICE)


def test_a_spent_block_loses_its_material_and_keeps_its_record(
    memory_path: Path, pair: tuple[KeyStore, KeyStore]
) -> None:
    alice, _ = pair
    segment = memory_path / "a" / "segments" / f"{LINK}.1.seg"
    ledger = alice.auth_ledger(LINK, 20, 1.0)
    ledger.reserve(0.0)
    alice.allocate(LINK, ALICE, 40)
    assert segment.exists()
    alice.follow(LINK, BOB, (Slice(1, 60, 40),))
    assert not segment.exists()
    record = alice.block_record(LINK, 1)
    assert record["state"] == "spent"
    assert record["sifted_bits"] == 40_000
    assert record["octets"] == 100
    assert record["epsilon_secret"] == 1e-10
    assert alice.is_released(LINK, 1)
    assert alice.level(LINK).blocks == 1
    with pytest.raises(AuthenticationFailed):
        alice.follow(LINK, BOB, (Slice(1, 60, 40),))


def test_granted_octets_change_hands_once(pair: tuple[KeyStore, KeyStore]) -> None:
    alice, bob = pair
    alice.allocate(LINK, ALICE, 80)
    granted = bob.grant(LINK, BOB, 50)
    assert granted == (Slice(1, 60, 40), Slice(2, 60, 10))
    assert bob.level(LINK).own_octets == 30
    with pytest.raises(KeyExhausted):
        alice.allocate(LINK, ALICE, 1)
    alice.receive_grant(LINK, BOB, granted)
    assert alice.level(LINK).own_octets == 50
    with pytest.raises(AuthenticationFailed):
        alice.receive_grant(LINK, BOB, granted)
    taken = alice.allocate(LINK, ALICE, 45)
    assert bob.follow(LINK, ALICE, taken.slices) == taken.material
    with pytest.raises(AuthenticationFailed):
        bob.follow(LINK, ALICE, taken.slices)
    own = bob.allocate(LINK, BOB, 30)
    assert alice.follow(LINK, BOB, own.slices) == own.material
    with pytest.raises(KeyExhausted):
        bob.allocate(LINK, BOB, 1)
    assert balanced(alice, bob)


def test_what_was_granted_can_be_granted_back(pair: tuple[KeyStore, KeyStore]) -> None:
    alice, bob = pair
    granted = bob.grant(LINK, BOB, 80)
    alice.receive_grant(LINK, BOB, granted)
    back = alice.grant(LINK, ALICE, 160)
    bob.receive_grant(LINK, ALICE, back)
    assert (alice.level(LINK).own_octets, bob.level(LINK).own_octets) == (0, 160)
    taken = bob.allocate(LINK, BOB, 160)
    assert alice.follow(LINK, BOB, taken.slices) == taken.material
    assert balanced(alice, bob)


def test_a_grant_that_is_lost_strands_only_itself(pair: tuple[KeyStore, KeyStore]) -> None:
    alice, bob = pair
    bob.grant(LINK, BOB, 10)
    second = bob.grant(LINK, BOB, 10)
    alice.receive_grant(LINK, BOB, second)
    assert alice.ledger(LINK).skipped == 10
    alice.allocate(LINK, ALICE, 80)
    taken = alice.allocate(LINK, ALICE, 10)
    assert bob.follow(LINK, ALICE, taken.slices) == taken.material
    assert bob.ledger(LINK).skipped == 10 + 0
    assert balanced(alice, bob)


def test_what_the_peer_left_far_behind_is_burnt(open_store: Open) -> None:
    bob = open_store("b")
    for block in range(1, STALE_BLOCKS + 3):
        give_block(bob, block, 20)
    bob.follow(LINK, ALICE, (Slice(STALE_BLOCKS + 1, 0, 5),))
    assert bob.ledger(LINK).skipped == 0
    bob.follow(LINK, ALICE, (Slice(STALE_BLOCKS + 2, 0, 5),))
    assert bob.ledger(LINK).skipped == 10
    with pytest.raises(AuthenticationFailed):
        bob.follow(LINK, ALICE, (Slice(1, 0, 5),))
    assert bob.follow(LINK, ALICE, (Slice(2, 0, 5),)) == Secret(material_of(2, 20)[:5])
    assert balanced(bob)


def test_authentication_portions_are_alike_and_used_once(pair: tuple[KeyStore, KeyStore]) -> None:
    alice, bob = (store.auth_ledger(LINK, 8, 1.0) for store in pair)
    reservations = [alice.reserve(0.0) for _ in range(4)]
    assert [(one.block, one.offset) for one in reservations] == [(1, 0), (1, 8), (2, 0), (2, 8)]
    for one in reservations:
        assert bob.take(one.block, one.offset, 0.0) == one.material
    for one in reservations:
        with pytest.raises(AuthenticationFailed):
            bob.take(one.block, one.offset, 0.0)
    with pytest.raises(KeyExhausted):
        alice.reserve(0.0)
    # 4 octets of each block are too short for a portion: burnt alike at both ends.
    assert alice.level_octets() == bob.level_octets() == 0
    assert [store.ledger(LINK).skipped for store in pair] == [8, 8]
    assert balanced(*pair)


def test_authentication_never_takes_octets_meant_for_keys(pair: tuple[KeyStore, KeyStore]) -> None:
    _, bob = pair
    ledger = bob.auth_ledger(LINK, 8, 1.0)
    for block, offset in ((1, 16), (1, 20), (1, 60), (1, -4)):
        with pytest.raises(AuthenticationFailed):
            ledger.take(block, offset, 0.0)
    assert ledger.level_octets() == 40


def test_a_lost_reservation_does_not_stop_the_next(pair: tuple[KeyStore, KeyStore]) -> None:
    alice, bob = (store.auth_ledger(LINK, 8, 1.0) for store in pair)
    lost, sent = alice.reserve(0.0), alice.reserve(0.0)
    assert bob.take(sent.block, sent.offset, 0.0) == sent.material
    with pytest.raises(AuthenticationFailed):
        bob.take(lost.block, lost.offset, 0.0)


def test_a_damaged_block_is_destroyed_on_record_and_the_next_one_serves(
    memory_path: Path, pair: tuple[KeyStore, KeyStore]
) -> None:
    alice, _ = pair
    (memory_path / "a" / "segments" / f"{LINK}.1.seg").write_bytes(b"garbage")
    assert alice.allocate(LINK, ALICE, 10).slices == (Slice(2, 20, 10),)
    with pytest.raises(KeyNotFound):
        alice.follow(LINK, BOB, (Slice(1, 60, 10),))
    assert alice.ledger(LINK).destroyed == {"damaged": 100}
    assert balanced(alice)


def test_calls_in_one_transaction_happen_together_or_not_at_all(pair: tuple[KeyStore, KeyStore]) -> None:
    alice, _ = pair
    before = alice.ledger(LINK)
    with pytest.raises(KeyExhausted), alice.transaction():  # noqa: PT012 (the block is what must fail)
        alice.follow(LINK, BOB, (Slice(1, 60, 10),))
        alice.allocate(LINK, ALICE, 1_000)
    assert alice.ledger(LINK) == before
    with alice.transaction():
        alice.follow(LINK, BOB, (Slice(1, 60, 10),))
        alice.allocate(LINK, ALICE, 10)
    assert (alice.ledger(LINK).followed, alice.ledger(LINK).allocated) == (10, 10)


def test_a_held_block_that_is_undone_leaves_no_segment_and_frees_its_number(
    memory_path: Path, open_store: Open
) -> None:
    store = open_store("a")
    with pytest.raises(KeyExhausted), store.transaction():  # noqa: PT012 (the block is what must fail)
        store.hold(qkd_key(1, 50))
        store.allocate(LINK, ALICE, 1_000)
    assert list((memory_path / "a" / "segments").iterdir()) == []
    assert (store.pending(LINK), store.last_block(LINK), store.ledger(LINK).generated) == ([], 0, 0)
    store.hold(qkd_key(1, 50))
    assert store.pending(LINK) == [1]


def test_a_block_number_is_never_used_again(open_store: Open) -> None:
    store = open_store("a")
    store.hold(qkd_key(3, 50))
    store.destroy(LINK, 3, "verification")
    with pytest.raises(StoreError, match="never replaced"):
        store.hold(qkd_key(3, 50))
    store.note_block(LINK, 9)
    store.note_block(LINK, 5)
    assert store.last_block(LINK) == 9
    store.destroy(LINK, 12, "qber")
    store.destroy(LINK, 12, "again")
    assert store.last_block(LINK) == 12
    assert store.block_record(LINK, 12)["reason"] == "qber"
    with pytest.raises(StoreError):
        store.hold(qkd_key(12, 50))
    with pytest.raises(StoreError):
        store.release(LINK, 3)
    with pytest.raises(StoreError):
        store.release(LINK, 40)
    assert store.ledger(LINK).destroyed == {"verification": 50}


def test_a_held_block_cannot_be_spent_before_its_release(open_store: Open, clock: StandingClock) -> None:
    store = open_store("a")
    store.hold(qkd_key(1, 50))
    assert (store.pending(LINK), store.is_released(LINK, 1)) == ([1], False)
    assert store.level(LINK).pending_octets == 50
    with pytest.raises(KeyExhausted):
        store.allocate(LINK, ALICE, 1)
    store.close()
    store = open_store("a")
    assert store.pending(LINK) == [1]
    clock.now_s += 5
    store.release(LINK, 1)
    store.release(LINK, 1)
    assert store.block_record(LINK, 1)["released_unix_s"] == 1_005.0
    assert store.allocate(LINK, ALICE, 25).material == Secret(material_of(1, 50)[:25])


def test_the_preshared_secret_is_taken_once_and_only_authenticates(open_store: Open) -> None:
    store = open_store("a")
    store.add_preshared(LINK, Secret(b"\x11" * 96))
    store.add_preshared(LINK, Secret(b"\x22" * 96))
    assert store.level(LINK).auth_octets == 96
    assert store.auth_ledger(LINK, 96, 1.0).reserve(0.0).material == Secret(b"\x11" * 96)
    store.add_preshared(LINK, Secret(b"\x22" * 96))
    assert store.level(LINK).auth_octets == 0
    assert store.last_block(LINK) == 0
    with pytest.raises(KeyExhausted, match="pre-shared"):
        store.auth_ledger(LINK, 96, 1.0).reserve(0.0)


@pytest.mark.parametrize(("block", "octets", "auth_octets"), [(0, 10, 0), (-1, 10, 0), (1, 0, 0), (1, 10, 11)])
def test_an_impossible_block_is_refused(open_store: Open, block: int, octets: int, auth_octets: int) -> None:
    store = open_store("a")
    with pytest.raises(RequestRefused):
        store.hold(qkd_key(block, octets, auth_octets))
    assert store.ledger(LINK).generated == 0


def test_an_unknown_block_has_no_record(open_store: Open) -> None:
    with pytest.raises(KeyNotFound):
        open_store("a").block_record(LINK, 1)


def test_epsilons_add_up_on_disk_and_are_refused_above_the_budget(open_store: Open) -> None:
    store = open_store("a")
    give_block(store, 1, 100, 60)
    ledger = store.auth_ledger(LINK, 8, 3.5e-10)
    for count in range(3):
        assert ledger.epsilon() == pytest.approx(count * 1e-10)
        ledger.reserve(1e-10)
    before = store.ledger(LINK), ledger.level_octets()
    for epsilon in (1e-10, 6e-11, 1.0, float("nan"), float("inf"), -1e-10):
        with pytest.raises(BudgetSpent, match="epsilon"):
            ledger.reserve(epsilon)
        with pytest.raises(BudgetSpent):
            ledger.take(1, 24, epsilon)
        with pytest.raises(BudgetSpent):
            ledger.charge(epsilon)
    # What was refused took nothing with it.
    assert (store.ledger(LINK), ledger.level_octets()) == before
    ledger.take(1, 24, 4e-11)
    store.close()
    again_store = open_store("a")
    again = again_store.auth_ledger(LINK, 8, 3.5e-10)
    assert again.epsilon() == pytest.approx(3.4e-10)
    with pytest.raises(BudgetSpent):
        again.reserve(2e-11)
    # Only the operator can go on, by allowing more.
    again_store.auth_ledger(LINK, 8, 1e-9).reserve(2e-11)


def test_a_portion_that_is_not_there_charges_nothing(open_store: Open) -> None:
    store = open_store("a")
    give_block(store, 1, 100, 8)
    ledger = store.auth_ledger(LINK, 8, 1.0)
    ledger.reserve(1e-10)
    with pytest.raises(KeyExhausted):
        ledger.reserve(1e-10)
    assert ledger.epsilon() == pytest.approx(1e-10)


def test_epsilons_too_small_for_the_ledgers_steps_still_count(open_store: Open) -> None:
    store = open_store("a")
    ledger = store.auth_ledger(LINK, 8, 1e-17)
    for _ in range(10):
        ledger.charge(1e-30)
    with pytest.raises(BudgetSpent):
        ledger.charge(1e-30)


def test_a_forged_reference_cannot_pass_over_much_of_the_pool(open_store: Open) -> None:
    store = open_store("b")
    give_block(store, 1, 10_000, 8 * 100)
    give_block(store, 2, 10_000, 8 * 100)
    ledger = store.auth_ledger(LINK, 8, 1.0)
    for block, offset in ((1, 8 * (AUTH_SKIP_MAX + 1)), (1, 8 * 99), (2, 0), (2, 8 * 50)):
        with pytest.raises(AuthenticationFailed, match="passes over"):
            ledger.take(block, offset, 0.0)
    assert ledger.level_octets() == 1600
    ledger.take(1, 8 * AUTH_SKIP_MAX, 0.0)
    assert ledger.level_octets() == 1600 - 8 * (AUTH_SKIP_MAX + 1)
    assert balanced(store)
