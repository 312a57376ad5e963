"""The generator's health tests: their cutoffs, what they let pass, what they stop, and that they stop it for good.

All data are fixed, so nothing here can fail by chance.
"""

import hashlib
import threading

import numpy as np
import pytest
from scipy import stats

from qtrunk.base.errors import RandomnessFailed
from qtrunk.crypto import randomness
from qtrunk.crypto.randomness import HealthTests, TestedRandom, mixed


def stream(count, seed=b"fair"):
    return hashlib.shake_256(seed).digest(count)


def source(octets):
    """Hands out these octets after a fair start."""
    rest = bytearray(stream(randomness.START_OCTETS, b"start") + octets)

    def take(count):
        made = bytes(rest[:count])
        del rest[:count]
        return made

    return take


def test_cutoffs_are_those_of_the_standard():
    chance = 2.0**-randomness.ENTROPY_BITS
    assert 1 + int(np.ceil(40 / randomness.ENTROPY_BITS)) == randomness.REPETITIONS
    assert 1 + stats.binom.isf(2.0**-40, randomness.WINDOW, chance) == randomness.PROPORTION


def test_a_fair_stream_passes_in_pieces_of_any_size():
    data = stream(300_000)
    for sizes in ([1], [7, 513], [512], [100_000], [511, 1, 2048]):
        tests, at, turn = HealthTests(), 0, 0
        while at < len(data) and turn < 3000:
            size = sizes[turn % len(sizes)]
            tests.check(data[at : at + size])
            at, turn = at + size, turn + 1


@pytest.mark.parametrize("pieces", [[8], [4, 4], [1] * 8, [7, 1]])
def test_an_octet_too_often_in_a_row_is_found_across_pieces(pieces):
    tests = HealthTests()
    tests.check(stream(1000) + b"\x00")
    *before, last = pieces
    for piece in before:
        tests.check(b"\x55" * piece)
    with pytest.raises(RandomnessFailed, match="in a row"):
        tests.check(b"\x55" * last)


def test_seven_in_a_row_may_happen():
    tests = HealthTests()
    tests.check(b"\x01" + b"\x55" * 7 + b"\x02" + b"\x55" * 7)


@pytest.mark.parametrize("size", [1, 100, 512, 5000])
def test_an_octet_that_comes_too_often_in_a_window_is_found(size):
    # Every eighth octet is the same: 64 in a window, never two in a row.
    data = bytearray(stream(20_000))
    data[::8] = bytes(len(data[::8]))
    tests = HealthTests()

    def feed():
        for at in range(0, len(data), size):
            tests.check(bytes(data[at : at + size]))

    with pytest.raises(RandomnessFailed, match="among 512"):
        feed()


def test_a_window_is_judged_alike_however_it_is_cut():
    data = np.frombuffer(stream(5120), np.uint8).copy()
    data[1024 : 1024 + 512 : 16] = data[1024]  # 32 times, and by chance once or twice more
    count = int((data[1024:1536] == data[1024]).sum())

    def verdict(size):
        tests = HealthTests()
        try:
            for at in range(0, len(data), size):
                tests.check(data[at : at + size].tobytes())
        except RandomnessFailed:
            return False
        return True

    assert {verdict(size) for size in (1, 5, 511, 512, 513, 5120)} == {count < randomness.PROPORTION}


def test_a_generator_that_failed_once_is_never_used_again():
    random = TestedRandom(source(stream(100) + bytes(50) + stream(100_000)))
    assert random.octets(100) == stream(100)
    for _ in range(3):
        with pytest.raises(RandomnessFailed, match="restart the node"):
            random.octets(60)


def test_a_generator_that_is_bad_from_the_start_is_refused():
    for bad in (lambda count: bytes(count), lambda count: b"\x01\x02" * (count // 2), lambda count: b"short"):
        with pytest.raises(RandomnessFailed):
            TestedRandom(bad)


def test_a_source_that_fails_to_answer_is_a_failed_one():
    def silent(count):
        raise OSError("device gone")

    with pytest.raises(RandomnessFailed, match="device gone"):
        TestedRandom(silent)


def test_a_device_is_mixed_with_the_systems_own_octets(tmp_path):
    device = tmp_path / "hwrng"
    device.write_bytes(bytes(1 << 16))
    made = mixed(str(device))(4096)
    HealthTests().check(made)
    assert made != mixed(str(device))(4096)
    device.write_bytes(b"12")
    with pytest.raises(OSError, match="no more octets"):
        mixed(str(device))(16)


def test_the_processs_own_generator_serves_many_threads():
    made = []
    threads = [threading.Thread(target=lambda: made.append(randomness.octets(10_000))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(made)) == 8
    assert {len(octets) for octets in made} == {10_000}
