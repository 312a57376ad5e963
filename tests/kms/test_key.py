"""A key's life has the moves of its table and no other."""

import pytest

from qtrunk.base.errors import StoreError
from qtrunk.kms.key import BlockState, KeyState, Ledger, check_move

ALLOWED_BLOCK = {
    (BlockState.PENDING, BlockState.AVAILABLE),
    (BlockState.PENDING, BlockState.DESTROYED),
    (BlockState.AVAILABLE, BlockState.SPENT),
    (BlockState.AVAILABLE, BlockState.DESTROYED),
}
ALLOWED_KEY = {
    (KeyState.RESERVED, KeyState.DELIVERED),
    (KeyState.RESERVED, KeyState.DESTROYED),
    (KeyState.STORED, KeyState.DELIVERED),
    (KeyState.STORED, KeyState.DESTROYED),
}


@pytest.mark.parametrize("here", BlockState)
@pytest.mark.parametrize("there", BlockState)
def test_a_block_makes_only_the_moves_of_its_table(here: BlockState, there: BlockState) -> None:
    if (here, there) in ALLOWED_BLOCK:
        check_move("block", here, there)
    else:
        with pytest.raises(StoreError, match=f"is {here.value} and cannot become {there.value}"):
            check_move("block", here, there)


@pytest.mark.parametrize("here", KeyState)
@pytest.mark.parametrize("there", KeyState)
def test_a_key_makes_only_the_moves_of_its_table(here: KeyState, there: KeyState) -> None:
    if (here, there) in ALLOWED_KEY:
        check_move("key", here, there)
    else:
        with pytest.raises(StoreError):
            check_move("key", here, there)


def test_a_ledger_shows_what_is_missing() -> None:
    balanced = Ledger(
        generated=100,
        pending=1,
        available=2,
        allocated=3,
        followed=4,
        authentication=5,
        skipped=6,
        destroyed={"qber": 70, "crash": 9},
    )
    assert balanced.unaccounted == 0
