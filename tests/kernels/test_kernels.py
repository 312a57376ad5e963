"""Every kernel on every path equals its twin bit for bit, refuses bad arguments, and samples what it says."""

import dataclasses
import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import signal, stats

from qtrunk import kernels

_spec = importlib.util.spec_from_file_location("twins", Path(__file__).parent / "twins.py")
twins = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(twins)

FALSE_ALARM = 1e-6  # of each statistical test here; seeds are fixed, so they pass or fail for ever


@pytest.fixture(params=kernels.cpu_paths())
def path(request):
    kernels.force_path(request.param)
    yield request.param
    kernels.force_path(None)


def small_code(rng, columns=12, rows=4, lift=64):
    lines = []
    for _ in range(rows):
        chosen = sorted(rng.choice(columns, 7, replace=False))
        lines.append("7 " + " ".join(f"{c}:{rng.integers(lift)}" for c in chosen))
    return kernels.load_code("small", f"{columns} {rows} {lift} {7 * rows}\n" + "\n".join(lines))


def test_the_portable_path_is_always_there():
    assert "portable" in kernels.cpu_paths()
    with pytest.raises(ValueError, match="does not run"):
        kernels.force_path("avx1024")


@pytest.mark.parametrize(("count", "probability"), [(200_000, 0.01), (400, 0.9), (1, 0.5), (0, 0.5), (10**15, 1e-12)])
def test_candidates_equal_their_twin(path, count, probability):
    rng = kernels.new_rng(bytes(range(1, 33)))
    want, state = twins.sample_candidates(rng, 77, count, probability)
    assert kernels.sample_candidates(rng, 77, count, probability).tolist() == want
    assert rng.tolist() == state


def test_candidates_are_the_same_on_every_path():
    seen = []
    for name in kernels.cpu_paths():
        kernels.force_path(name)
        rng = kernels.new_rng(bytes(range(32)))
        seen.append((kernels.sample_candidates(rng, 1000, 3_000_000, 0.01), rng))
    kernels.force_path(None)
    for positions, rng in seen[1:]:
        np.testing.assert_array_equal(positions, seen[0][0])
        np.testing.assert_array_equal(rng, seen[0][1])


def test_candidates_are_ascending_in_range_and_as_many_as_expected(path):
    rng = kernels.new_rng(b"\x07" * 32)
    for probability in (1e-6, 0.003, 0.3, 0.999):
        count = 2_000_000
        positions = kernels.sample_candidates(rng, 5, count, probability)
        assert len(positions) == 0 or (positions[0] >= 5 and positions[-1] < 5 + count)
        assert np.all(np.diff(positions.astype(np.int64)) > 0)
        assert stats.binomtest(len(positions), count, probability).pvalue > FALSE_ALARM
    assert len(kernels.sample_candidates(rng, 0, 10**9, 0.0)) == 0
    assert len(kernels.sample_candidates(rng, 0, 0, 0.5)) == 0


def test_candidate_gaps_are_geometric(path):
    rng = kernels.new_rng(b"\x21" * 32)
    gaps = np.diff(kernels.sample_candidates(rng, 0, 4_000_000, 0.05).astype(np.int64))
    edges = np.arange(1, 101)
    observed = [np.sum(gaps == g) for g in edges] + [np.sum(gaps > 100)]
    expected = [*stats.geom.pmf(edges, 0.05), stats.geom.sf(100, 0.05)]
    assert stats.chisquare(observed, np.array(expected) * len(gaps) / sum(expected)).pvalue > FALSE_ALARM


@pytest.mark.parametrize("intercept", [0, 1 << 31, 1 << 32])
def test_clicks_equal_their_twin(path, intercept):
    dice = np.random.default_rng(5)
    positions = np.cumsum(dice.integers(1, 40, 5000)).astype(np.uint64)
    alice, bob = dice.integers(0, 2**64, (2, 5000), np.uint64)
    thresholds = np.array([3_000_000_000, 4_000_000_000], np.uint32)
    accept = np.array([1.0, 0.4, 0.05])
    outcome = np.array([[[0.9, 0.98], [0.48, 0.97]], [[0.95, 0.99], [0.5, 0.99]], [[0.5, 0.999], [0.5, 0.999]]])
    start = kernels.new_rng(b"\x03" * 32)
    want = twins.thin_clicks(
        start,
        positions,
        alice,
        bob,
        thresholds,
        59_000,
        58_000,
        intercept,
        accept,
        outcome,
        30,
        kernels.NEVER,
    )
    rng = start.copy()
    got = kernels.thin_clicks(
        rng,
        positions,
        alice,
        bob,
        intensity_thresholds=thresholds,
        alice_basis_threshold=59_000,
        bob_basis_threshold=58_000,
        intercept_threshold=intercept,
        accept=accept,
        outcome=outcome,
        dead_pulses=30,
        last_click=kernels.NEVER,
    )
    assert [part.tolist() for part in got[:3]] == [list(part) for part in want[:3]]
    assert got[3:] == want[3:5]
    assert rng.tolist() == want[5]


def sifted_qber(intercept):
    """Errors over clicks where Bob's basis is Alice's, on a link without noise, and how many clicks."""
    rng, dice = kernels.new_rng(b"\x33" * 32), np.random.default_rng(4)
    positions = kernels.sample_candidates(rng, 0, 10_000_000, 0.02)
    alice, bob = (dice.integers(0, 2**64, len(positions), dtype=np.uint64) for _ in range(2))
    clicked, basis, bit, last, doubles = kernels.thin_clicks(
        rng,
        positions,
        alice,
        bob,
        intensity_thresholds=np.zeros(0, np.uint32),
        alice_basis_threshold=32_768,
        bob_basis_threshold=32_768,
        intercept_threshold=intercept,
        accept=np.array([0.5]),
        outcome=np.array([[[1.0, 1.0], [0.5, 1.0]]]),
        dead_pulses=20,
        last_click=kernels.NEVER,
    )
    assert doubles == 0
    assert last == clicked[-1]
    assert np.diff(clicked.astype(np.int64)).min() == 21
    words = alice[np.searchsorted(positions, clicked)]
    matched = ((words >> np.uint64(32)) & np.uint64(0xFFFF) >= 32_768) == basis
    errors = ((words >> np.uint64(48)) & np.uint64(1) != bit)[matched]
    return int(errors.sum()), len(errors)


def test_a_noiseless_link_has_no_errors_and_a_full_intercept_makes_one_bit_in_four_wrong(path):
    assert sifted_qber(0)[0] == 0
    assert stats.binomtest(*sifted_qber(1 << 32), 0.25).pvalue > FALSE_ALARM
    assert stats.binomtest(*sifted_qber(1 << 31), 0.125).pvalue > FALSE_ALARM


def test_syndromes_equal_their_twin(path):
    dice = np.random.default_rng(1)
    code = small_code(dice)
    bits = dice.integers(0, 2, (3, code.n)).astype(np.uint8)
    got = kernels.ldpc_syndrome(code, bits)
    for frame, want in zip(got, bits, strict=True):
        np.testing.assert_array_equal(frame, twins.syndrome(code, want))


@pytest.mark.parametrize("lift", [64, 128, 192, 512])
def test_decoding_equals_its_twin_whether_it_converges_or_not(path, lift):
    dice = np.random.default_rng(2)
    code = small_code(dice, lift=lift)
    outcomes = set()
    for qber in (0.005, 0.02, 0.12):
        errors = (dice.random((4, code.n)) < qber).astype(np.uint8)
        channel = np.full((4, code.n), kernels.channel_value(qber), np.int8)
        channel[:, -100:] = kernels.KNOWN
        errors[:, -100:] = 0
        wanted = kernels.ldpc_syndrome(code, errors)
        got, iterations = kernels.ldpc_decode(code, wanted, channel, 12)
        for frame in range(4):
            want, count = twins.decode(code, wanted[frame], channel[frame], 12)
            np.testing.assert_array_equal(got[frame], want)
            assert iterations[frame] == count
            outcomes.add(count > 0)
            if count > 0:
                np.testing.assert_array_equal(twins.syndrome(code, got[frame]), wanted[frame])
    assert outcomes == {True, False}


def test_the_belief_falls_with_the_error_rate_and_stays_where_the_decoder_still_moves():
    values = [kernels.channel_value(qber) for qber in np.linspace(1e-6, 0.4, 500)]
    assert values == sorted(values, reverse=True)
    assert values[0] == kernels.CHANNEL_MAX
    assert values[-1] == kernels.CHANNEL_MIN


CODES = Path(kernels.__file__).parent / "distil" / "codes"
INDEX = json.loads((CODES / "index.json").read_text())


@pytest.mark.parametrize("entry", INDEX, ids=lambda entry: entry["name"])
def test_a_shipped_code_is_what_its_index_says_and_has_no_short_cycle(entry):
    code = kernels.load_code(entry["name"], (CODES / f"{entry['name']}.txt").read_text())
    assert (code.n, code.m) == (entry["n"], entry["m"])
    assert np.bincount(code.column, minlength=code.columns).min() >= 2
    seen = set()
    rows = np.repeat(np.arange(code.rows), np.diff(code.row_start))
    for column in range(code.columns):
        edges = np.flatnonzero(code.column == column)
        for a in edges:
            for b in edges[edges > a]:
                step = (rows[a], rows[b], (code.shift[a] - code.shift[b]) % code.lift)
                assert step not in seen
                seen.add(step)


@pytest.mark.parametrize("entry", INDEX, ids=lambda entry: entry["name"])
def test_a_shipped_code_corrects_a_tenth_below_its_design_qber(entry):
    # At the design rate 1 frame in 300 may fail; so far below it all three pass but for 1e-3, seed fixed.
    code = kernels.load_code(entry["name"], (CODES / f"{entry['name']}.txt").read_text())
    qber = 0.9 * entry["design_qber"]
    errors = (np.random.default_rng(11).random((3, code.n)) < qber).astype(np.uint8)
    channel = np.full(errors.shape, kernels.channel_value(qber), np.int8)
    found, iterations = kernels.ldpc_decode(code, kernels.ldpc_syndrome(code, errors), channel, 60)
    assert iterations.min() > 0
    np.testing.assert_array_equal(found, errors)


@given(st.integers(1, 300), st.data())
def test_toeplitz_equals_the_direct_sum(n, data):
    length = data.draw(st.integers(1, n))
    dice = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    x, seed = dice.integers(0, 2, n).astype(np.uint8), dice.integers(0, 2, n + length - 1).astype(np.uint8)
    want = np.packbits(twins.toeplitz(x, seed, length))
    for name in kernels.cpu_paths():
        kernels.force_path(name)
        got = kernels.toeplitz_hash(np.packbits(x), n, np.packbits(seed), length)
        np.testing.assert_array_equal(got, want)
    kernels.force_path(None)


@pytest.mark.parametrize(("n", "length"), [(32768, 9000), (33001, 33001), (40001, 1), (70_000, 20_011)])
def test_toeplitz_equals_a_convolution_at_sizes_that_recurse(path, n, length):
    dice = np.random.default_rng(n)
    x, seed = dice.integers(0, 2, n), dice.integers(0, 2, n + length - 1)
    # Sums stay below 2^17, so rounding a double-precision FFT convolution is exact.
    sums = np.rint(signal.fftconvolve(seed.astype(float), x.astype(float)))[n - 1 : n - 1 + length]
    want = np.packbits((sums.astype(np.int64) & 1).astype(np.uint8))
    packed = [np.packbits(part.astype(np.uint8)) for part in (x, seed)]
    np.testing.assert_array_equal(kernels.toeplitz_hash(packed[0], n, packed[1], length), want)


@given(st.binary(min_size=16, max_size=16), st.binary(max_size=400))
def test_the_polynomial_hash_equals_its_twin(key, data):
    want = twins.poly_hash(key, data)
    for name in kernels.cpu_paths():
        kernels.force_path(name)
        assert kernels.poly_hash(key, data) == want
        cut = len(data) // 2 // 16 * 16
        assert kernels.poly_hash(key, data[cut:], kernels.poly_hash(key, data[:cut])) == want
    kernels.force_path(None)


@given(st.lists(st.integers(1, 2**40), max_size=200))
def test_positions_survive_the_wire(gaps):
    positions = np.cumsum(np.array(gaps, np.uint64)) if gaps else np.zeros(0, np.uint64)
    octets = kernels.encode_gaps(positions)
    limit = int(positions[-1]) + 1 if gaps else 0
    np.testing.assert_array_equal(kernels.decode_gaps(octets, len(gaps), limit), positions)
    if gaps:
        with pytest.raises(ValueError, match="limit"):
            kernels.decode_gaps(octets, len(gaps), limit - 1)
        with pytest.raises(ValueError, match=r"octets|count"):
            kernels.decode_gaps(octets[:-1], len(gaps), limit)
        with pytest.raises(ValueError, match="left over"):
            kernels.decode_gaps(np.append(octets, np.uint8(1)), len(gaps), limit)


@given(st.binary(max_size=40), st.integers(0, 40))
def test_whatever_decodes_as_positions_was_in_shortest_form(octets, count):
    data = np.frombuffer(octets, np.uint8)
    try:
        positions = kernels.decode_gaps(data, count, 2**50)
    except ValueError:
        return
    assert kernels.encode_gaps(positions).tobytes() == octets


def test_an_array_is_refused_rather_than_copied():
    words = np.arange(1, 9, dtype=np.uint64)
    with pytest.raises(ValueError, match="rng: must be C-contiguous"):
        kernels.sample_candidates(words[::2], 0, 10, 0.5)
    with pytest.raises(TypeError, match="rng: a NumPy array of uint64 is needed, not int64"):
        kernels.sample_candidates(words[:4].astype(np.int64), 0, 10, 0.5)
    with pytest.raises(TypeError, match=r"positions: .* not list"):
        kernels.encode_gaps([1, 2])
    with pytest.raises(ValueError, match="syndromes: 2 dimension"):
        kernels.ldpc_decode(
            small_code(np.random.default_rng(0)), np.zeros(256, np.uint8), np.zeros((1, 768), np.int8), 5
        )
    frozen = words[:4].copy()
    frozen.flags.writeable = False
    with pytest.raises(TypeError):
        kernels.sample_candidates(frozen, 0, 10, 0.5)


def test_the_decoder_refuses_what_is_not_a_code_a_syndrome_or_a_belief():
    code = small_code(np.random.default_rng(0))
    syndromes, channel = np.zeros((1, code.m), np.uint8), np.full((1, code.n), 10, np.int8)
    assert kernels.ldpc_decode(code, syndromes, channel, 5)[1].tolist() == [1]
    with pytest.raises(ValueError, match="syndromes: zeros and ones"):
        kernels.ldpc_decode(code, syndromes + 2, channel, 5)
    with pytest.raises(ValueError, match="bits: zeros and ones"):
        kernels.ldpc_syndrome(code, np.full((1, code.n), 3, np.uint8))
    with pytest.raises(ValueError, match="channel: not negative"):
        kernels.ldpc_decode(code, syndromes, -channel, 5)
    with pytest.raises(ValueError, match="iterations_max"):
        kernels.ldpc_decode(code, syndromes, channel, 0)
    for change, what in [
        ({"column": code.column * 0}, "twice in one row"),
        ({"column": code.column + 12}, "out of range"),
        ({"shift": code.shift - 64}, "out of range"),
        ({"row_start": np.array([0, 1000, 14, 21, 28], np.int32)}, "2 to 128 edges"),
        ({"row_start": np.array([0, 7, 28], np.int32)}, "row_start"),
        ({"lift": 65}, "lift"),
    ]:
        with pytest.raises(ValueError, match=what):
            kernels.ldpc_syndrome(dataclasses.replace(code, **change), np.zeros((1, code.n), np.uint8))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "4 2 64",
        "4 x 64 4\n2 0:1 1:2\n2 2:3 3:4",
        "4 2 64 4\n2 0:1 1\n2 2:3 3:4",
        "4 2 64 4\n3 0:1 1:2\n1 2:3 3:4",
    ],
)
def test_a_text_that_is_not_a_code_is_refused(text):
    with pytest.raises(ValueError, match="code bad: "):
        kernels.load_code("bad", text)


def test_bad_arguments_are_named():
    rng = kernels.new_rng(b"\x01" * 32)
    with pytest.raises(ValueError, match="probability"):
        kernels.sample_candidates(rng, 0, 10, 1.0)
    with pytest.raises(ValueError, match="rng"):
        kernels.sample_candidates(np.zeros(3, np.uint64), 0, 10, 0.5)
    with pytest.raises(ValueError, match="seed"):
        kernels.toeplitz_hash(np.zeros(2, np.uint8), 16, np.zeros(2, np.uint8), 8)
    with pytest.raises(ValueError, match="key"):
        kernels.poly_hash(b"short", b"")
    with pytest.raises(ValueError, match="seed"):
        kernels.new_rng(bytes(32))
    with pytest.raises(ValueError, match="bits"):
        kernels.ldpc_syndrome(small_code(np.random.default_rng(0)), np.zeros((1, 5), np.uint8))
    with pytest.raises(ValueError, match="announced"):
        kernels.load_code("bad", "4 2 64 5\n2 0:1 1:2\n2 2:3 3:4")
    with pytest.raises(ValueError, match="ascending"):
        kernels.encode_gaps(np.array([5, 5], np.uint64))
