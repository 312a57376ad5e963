"""End-to-end keys: whole batches, the right recipients, each once, and a record that outlives the key."""

from collections.abc import Callable

import pytest
from kms_kit import StandingClock

from qtrunk.base.errors import KeyNotFound, NotAuthorised, RequestRefused, StoreError
from qtrunk.base.ids import KeyId, SaeId
from qtrunk.base.secret import Secret
from qtrunk.kms.store import KeyStore

Open = Callable[..., KeyStore]
MASTER, OTHER_MASTER = SaeId("master"), SaeId("other")
ONE, TWO, THREE = SaeId("one"), SaeId("two"), SaeId("three")
IDS = [KeyId(f"00000000-0000-4000-8000-{number:012d}") for number in range(4)]
RECEIPT: dict[str, object] = {"route": ["a", "b"], "hops": [{"link": "a-b", "qber": 0.01}]}


def octets_of(key_id: KeyId) -> bytes:
    return key_id.encode()[-32:]


@pytest.fixture
def store(open_store: Open) -> KeyStore:
    """A target's node with keys 0 to 2 for ONE and TWO, out of the targets ONE, TWO and THREE."""
    made = open_store("b")
    put(made, IDS[:3])
    return made


def put(store: KeyStore, key_ids: list[KeyId], salt: bytes = b"", **changes: object) -> None:
    arguments = {
        "initiator": MASTER,
        "targets_here": [ONE, TWO],
        "all_targets": [ONE, TWO, THREE],
        "key_bits": 256,
        "receipt": RECEIPT,
        "expires_unix_s": 2_000.0,
        **changes,
    }
    store.store_keys([(key_id, Secret((salt + octets_of(key_id))[:32])) for key_id in key_ids], **arguments)


def test_each_recipient_collects_each_key_once_in_the_order_asked(store: KeyStore) -> None:
    asked = [IDS[2], IDS[0]]
    for target in (ONE, TWO):
        found = store.collect(target, MASTER, asked)
        assert [(key.key_id, bytes(key.material.reveal())) for key in found] == [
            (key_id, octets_of(key_id)) for key_id in asked
        ]
        with pytest.raises(KeyNotFound):
            store.collect(target, MASTER, [IDS[2]])
    assert store.counts()["stored delivered"] == 2


def test_a_collected_key_stays_collected_after_a_crash(open_store: Open, store: KeyStore) -> None:
    store.collect(ONE, MASTER, [IDS[0]])
    store.close()
    again = open_store("b")
    with pytest.raises(KeyNotFound):
        again.collect(ONE, MASTER, [IDS[0]])
    assert len(again.collect(TWO, MASTER, [IDS[0]])) == 1


def test_a_batch_with_one_bad_key_consumes_nothing(store: KeyStore) -> None:
    with pytest.raises(KeyNotFound):
        store.collect(ONE, MASTER, [IDS[0], IDS[3]])
    store.collect(ONE, MASTER, [IDS[1]])
    with pytest.raises(KeyNotFound):
        store.collect(ONE, MASTER, [IDS[0], IDS[1]])
    assert len(store.collect(ONE, MASTER, [IDS[0], IDS[2]])) == 2


def test_who_was_not_named_gets_nothing(store: KeyStore) -> None:
    put(store, [IDS[3]], initiator=OTHER_MASTER)
    for target, initiator, key_ids in (
        (THREE, MASTER, [IDS[0]]),  # a target, at another node
        (MASTER, MASTER, [IDS[0]]),
        (ONE, OTHER_MASTER, [IDS[0]]),
        (ONE, MASTER, [IDS[0], IDS[3]]),
        (THREE, MASTER, [KeyId("unknown"), IDS[0]]),
    ):
        with pytest.raises(NotAuthorised):
            store.collect(target, initiator, key_ids)
    assert len(store.collect(ONE, MASTER, IDS[:3])) == 3


def test_who_was_not_named_learns_nothing_of_a_spent_key_either(store: KeyStore) -> None:
    store.collect(ONE, MASTER, [IDS[0]])
    store.collect(TWO, MASTER, [IDS[0]])
    with pytest.raises(NotAuthorised):
        store.collect(THREE, MASTER, [IDS[0]])


def test_a_key_asked_for_twice_in_one_call_is_refused(store: KeyStore) -> None:
    for key_ids in ([IDS[0], IDS[0]], []):
        with pytest.raises(RequestRefused):
            store.collect(ONE, MASTER, key_ids)
    assert len(store.collect(ONE, MASTER, [IDS[0]])) == 1


def test_an_expired_key_is_not_supplied_even_before_it_is_cleared(store: KeyStore, clock: StandingClock) -> None:
    store.collect(ONE, MASTER, [IDS[0]])
    clock.now_s = 2_000.0
    with pytest.raises(KeyNotFound):
        store.collect(TWO, MASTER, [IDS[0]])
    store.expire(clock.now_s)
    assert store.counts()["stored destroyed expired"] == 3
    assert store.counts()["stored stored"] == 0
    clock.now_s = 1_000.0
    with pytest.raises(KeyNotFound):
        store.collect(TWO, MASTER, [IDS[0]])
    receipt = store.receipt(IDS[0])
    assert [one["state"] for one in receipt["recipients"]] == ["delivered", "destroyed"]


def test_a_voided_key_is_never_supplied(store: KeyStore) -> None:
    store.collect(ONE, MASTER, [IDS[0]])
    store.destroy_keys([IDS[0], IDS[1], KeyId("unknown")], "voided")
    for key_id in IDS[:2]:
        with pytest.raises(KeyNotFound):
            store.collect(TWO, MASTER, [key_id])
    assert len(store.collect(TWO, MASTER, [IDS[2]])) == 1
    assert store.receipt(KeyId("unknown")) is None


def test_a_delivered_key_cannot_be_voided_in_the_record(store: KeyStore) -> None:
    store.collect(ONE, MASTER, [IDS[0]])
    store.collect(TWO, MASTER, [IDS[0]])
    store.destroy_keys([IDS[0]], "voided")
    assert store.receipt(IDS[0])["stored"]["state"] == "delivered"


def test_the_same_keys_again_change_nothing(store: KeyStore) -> None:
    store.collect(ONE, MASTER, [IDS[0]])
    store.destroy_keys([IDS[1]], "voided")
    put(store, [IDS[0], IDS[2]])
    with pytest.raises(StoreError, match="voided or ended"):
        put(store, IDS[:3])
    with pytest.raises(KeyNotFound):
        store.collect(ONE, MASTER, [IDS[0]])
    with pytest.raises(KeyNotFound):
        store.collect(ONE, MASTER, [IDS[1]])
    assert store.counts()["stored stored"] == 2


@pytest.mark.parametrize(
    "change",
    [{"initiator": OTHER_MASTER}, {"targets_here": [ONE]}, {"all_targets": [ONE, TWO]}, {"salt": b"x"}],
)
def test_an_id_seen_before_with_other_content_is_refused_with_its_batch(
    store: KeyStore, change: dict[str, object]
) -> None:
    for target in (ONE, TWO):
        store.collect(target, MASTER, [IDS[0]])
    with pytest.raises(StoreError, match="used before"):
        put(store, [IDS[3], IDS[0]], **change)
    assert store.receipt(IDS[3]) is None


@pytest.mark.parametrize("change", [{"key_bits": 128}, {"targets_here": []}, {"targets_here": [SaeId("stranger")]}])
def test_keys_that_do_not_fit_their_description_are_refused(store: KeyStore, change: dict[str, object]) -> None:
    with pytest.raises(RequestRefused):
        put(store, [IDS[3]], **change)
    assert store.receipt(IDS[3]) is None


def test_a_reservation_is_delivered_once_and_recorded(open_store: Open) -> None:
    store = open_store("a")
    store.reserve_keys(IDS[:2], MASTER, [ONE, TWO], 256, 2_000.0)
    store.deliver_initiator([IDS[0]], RECEIPT)
    with pytest.raises(KeyNotFound):
        store.deliver_initiator([IDS[1], IDS[0]], RECEIPT)
    with pytest.raises(KeyNotFound):
        store.deliver_initiator([IDS[3]], RECEIPT)
    with pytest.raises(StoreError):
        store.reserve_keys([IDS[3], IDS[0]], MASTER, [ONE], 256, 2_000.0)
    assert store.receipt(IDS[3]) is None
    assert store.counts() == {"initiated reserved": 1, "initiated delivered": 1, "shredding overdue": 0}
    receipt = store.receipt(IDS[0])
    assert receipt["initiated"]["receipt"] == RECEIPT
    assert receipt["initiated"]["targets"] == [ONE, TWO]


def test_a_reservation_that_a_crash_leaves_is_destroyed(open_store: Open) -> None:
    store = open_store("a")
    store.reserve_keys(IDS[:2], MASTER, [ONE], 256, 2_000.0)
    store.deliver_initiator([IDS[0]], RECEIPT)
    store.close()
    store = open_store("a")
    with pytest.raises(KeyNotFound):
        store.deliver_initiator([IDS[1]], RECEIPT)
    assert store.receipt(IDS[1])["initiated"]["reason"] == "crash"
    assert store.receipt(IDS[0])["initiated"]["state"] == "delivered"


def test_a_reservation_can_be_given_up_or_expire(open_store: Open, clock: StandingClock) -> None:
    store = open_store("a")
    store.reserve_keys(IDS[:3], MASTER, [ONE], 256, 2_000.0)
    store.destroy_keys([IDS[0]], "route lost")
    clock.now_s = 2_001.0
    with pytest.raises(KeyNotFound):
        store.deliver_initiator([IDS[1]], RECEIPT)
    store.expire(clock.now_s)
    assert [store.receipt(key_id)["initiated"]["reason"] for key_id in IDS[:3]] == [
        "route lost",
        "expired",
        "expired",
    ]


def test_a_receipt_has_the_way_and_the_recipients_but_no_material(store: KeyStore, clock: StandingClock) -> None:
    clock.now_s = 1_500.0
    store.collect(TWO, MASTER, [IDS[0]])
    receipt = store.receipt(IDS[0])
    assert receipt["recipients"] == [
        {"target": ONE, "state": "pending", "ended_unix_s": None},
        {"target": TWO, "state": "delivered", "ended_unix_s": 1_500.0},
    ]
    assert receipt["stored"]["receipt"] == RECEIPT
    assert set(receipt["stored"]).isdisjoint({"sealed", "fingerprint"})


def test_a_key_whose_seal_is_broken_is_destroyed_not_supplied(store: KeyStore) -> None:
    store._journal.run(lambda db: db.execute("UPDATE stored SET sealed = zeroblob(80) WHERE key_id = ?", (IDS[1],)))
    with pytest.raises(KeyNotFound, match="damaged"):
        store.collect(ONE, MASTER, IDS[:2])
    assert store.receipt(IDS[1])["stored"]["reason"] == "damaged"
    assert len(store.collect(ONE, MASTER, [IDS[0]])) == 1


def test_local_pairs_may_reserve_and_store_the_same_id_at_one_node(open_store: Open) -> None:
    store = open_store("a")
    store.reserve_keys([IDS[0]], MASTER, [ONE, TWO], 256, 2_000.0)
    put(store, [IDS[0]])
    store.deliver_initiator([IDS[0]], RECEIPT)
    assert len(store.collect(ONE, MASTER, [IDS[0]])) == 1
    assert set(store.receipt(IDS[0])) == {"key_id", "initiated", "stored", "recipients"}


# ── SAEs that are gone ──────────────────────────────────────────────────────────────────────────────────────────────


def test_what_waits_for_an_sae_that_is_gone_is_destroyed_and_the_others_get_theirs(store: KeyStore) -> None:
    store.collect(TWO, MASTER, [IDS[1]])
    store.destroy_of(lambda sae: sae == ONE, "SAE removed")
    for key_id in IDS[:3]:
        with pytest.raises(KeyNotFound):
            store.collect(ONE, MASTER, [key_id])
    assert len(store.collect(TWO, MASTER, [IDS[0]])) == 1
    assert store.counts()["stored stored"] == 1
    assert store.counts()["stored delivered"] == 2, "TWO has them"
    store.destroy_of(lambda sae: sae == TWO, "SAE removed")
    assert store.counts()["stored destroyed SAE removed"] == 1
    assert store.counts()["shredding overdue"] == 0
    receipt = store.receipt(IDS[2])
    assert [one["state"] for one in receipt["recipients"]] == ["destroyed", "destroyed"]


def test_what_an_sae_that_is_gone_had_made_goes_with_it(store: KeyStore) -> None:
    store.destroy_of(lambda sae: sae == MASTER, "SAE removed")
    assert store.counts()["stored destroyed SAE removed"] == 3
    with pytest.raises(KeyNotFound):
        store.collect(ONE, MASTER, [IDS[0]])
    store.destroy_of(lambda sae: sae == MASTER, "SAE removed")
    assert store.counts()["stored destroyed SAE removed"] == 3
