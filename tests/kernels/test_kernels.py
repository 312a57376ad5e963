"""Every kernel on every path equals its twin bit for bit, refuses bad arguments, and samples what it says."""

import base64
import dataclasses
import importlib.util
import json
import uuid
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import signal, stats

from qtrunk import kernels
from qtrunk.quantum import source

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


LINK = {
    "alice_seed": b"a" * 32,
    "bob_seed": b"b" * 32,
    "candidate_probability": 0.02,
    "intensity_thresholds": np.array([2_000_000_000, 3_800_000_000], np.uint32),
    "alice_basis_threshold": 51_000,
    "bob_basis_threshold": 40_000,
    "dead_pulses": 30,
    "afterpulses": kernels.Afterpulses(mean=0.4, first=31**-0.2, last=31_000**-0.2, inverse=-5.0),
}


def limits_of(levels, error=0.02, mismatched=0.5, doubles=0.01):
    """Shares of a candidate of each level that click; state 2 basis + bit, the bit is the detector."""
    limits = np.zeros((len(levels), 4, 2, 3))
    for state in range(4):
        for basis in range(2):
            wrong = error if state // 2 == basis else mismatched
            first = (1 - doubles) * (wrong if state % 2 else 1 - wrong)
            limits[:, state, basis] = np.outer(levels, (first, 1 - doubles, 1.0))
    return (limits * 2.0**53).astype(np.uint64)


def sampled(count=200_000, start=77, seed=b"\x03" * 32, **changes):
    link = {**LINK, "limits": limits_of((1.0, 0.4, 0.05)), **changes}
    rng, memory, tally = kernels.new_rng(seed), kernels.new_memory(), np.zeros(256, np.uint64)
    positions, flags = kernels.sample_link(rng, memory, tally, start, count, **link)
    return positions, flags, rng, memory, tally, link


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"dead_pulses": 0, "afterpulses": kernels.Afterpulses()},
        {"dead_pulses": 400, "candidate_probability": 0.5, "count": 20_000},
        {"candidate_probability": 0.0},
        {"count": 10**15, "candidate_probability": 1e-12},
    ],
)
def test_clicks_of_a_link_equal_their_twin(path, changes):
    positions, flags, rng, memory, tally, link = sampled(**changes)
    if link["candidate_probability"] == 0:
        assert len(positions) == 0
        return
    count = changes.get("count", 200_000)
    before = kernels.new_memory()
    options = {name: value for name, value in link.items() if name != "count"}
    want, state = twins.sample_link(kernels.new_rng(b"\x03" * 32), before, 77, count, source.words, **options)
    assert list(zip(positions.tolist(), flags.tolist(), strict=True)) == want.clicks
    assert rng.tolist() == state
    assert memory[0] == want.last
    assert memory[3 : 3 + memory[2]].tolist() == want.waiting
    np.testing.assert_array_equal(tally, np.bincount(flags, minlength=256))


def test_a_slice_goes_on_where_the_one_before_ended(path):
    # Dead time and waiting charges cross the border; the dice do not, so the halves are compared with the twin's.
    link = {**LINK, "limits": limits_of((1.0, 0.4, 0.05))}
    rng, memory, tally = kernels.new_rng(b"\x04" * 32), kernels.new_memory(), np.zeros(256, np.uint64)
    got, want, state, twin_memory = [], [], kernels.new_rng(b"\x04" * 32), kernels.new_memory()
    for start in (0, 50_000):
        positions, flags = kernels.sample_link(rng, memory, tally, start, 50_000, **link)
        got += zip(positions.tolist(), flags.tolist(), strict=True)
        twin, state = twins.sample_link(state, twin_memory, start, 50_000, source.words, **link)
        want += twin.clicks
        twin_memory[:3] = twin.last, twin.until, len(twin.waiting)
        twin_memory[3 : 3 + len(twin.waiting)] = twin.waiting
    assert got == want
    positions = np.array([position for position, _ in got])
    assert np.all(np.diff(positions) > 30)
    assert any(flag & 4 and position > 50_000 for position, flag in got)


def test_flags_tell_both_ends_settings_as_their_streams_have_them(path):
    positions, flags, *_ = sampled(2_000_000)
    settings = source.SourceSettings((0.5, 0.2, 0.0), (0.5, 0.4, 0.1), 0.7)
    sent = source.decode_settings(source.words(LINK["alice_seed"], positions), settings)
    low = (source.words(LINK["alice_seed"], positions) & np.uint64(0xFFFFFFFF)).astype(np.uint32)
    level = (low[:, None] >= LINK["intensity_thresholds"]).sum(axis=1)
    np.testing.assert_array_equal(flags >> 6, level)
    np.testing.assert_array_equal(flags >> 4 & 1, sent.bit)
    test_draw = (source.words(LINK["alice_seed"], positions) >> np.uint64(32)) & np.uint64(0xFFFF)
    np.testing.assert_array_equal(flags >> 5 & 1, test_draw >= LINK["alice_basis_threshold"])
    bob = source.words(LINK["bob_seed"], positions) & np.uint64(0xFFFF)
    np.testing.assert_array_equal(flags >> 3 & 1, bob >= LINK["bob_basis_threshold"])


def test_the_stream_is_the_cipher_that_nodes_use(path):
    for count in (0, 1, 7, 8, 9, 15, 16, 17, 1000):
        positions = np.arange(count, dtype=np.uint64) * np.uint64(0x123456789ABC)
        np.testing.assert_array_equal(kernels.stream_words(b"k" * 32, positions), source.words(b"k" * 32, positions))


def test_clicks_are_ascending_in_range_and_as_many_as_expected(path):
    no_memory = {"dead_pulses": 0, "afterpulses": kernels.Afterpulses(), "limits": limits_of((1.0, 1.0, 1.0))}
    for probability in (1e-6, 0.003, 0.3, 0.999):
        positions, *_ = sampled(100_000, 5, candidate_probability=probability, **no_memory)
        assert len(positions) == 0 or (positions[0] >= 5 and positions[-1] < 5 + 100_000)
        assert np.all(np.diff(positions.astype(np.int64)) > 0)
        assert stats.binomtest(len(positions), 100_000, probability).pvalue > FALSE_ALARM


def test_gaps_without_memory_are_geometric(path):
    positions, _ = plain(kernels.new_rng(b"\x21" * 32), 4_000_000, 0.05)
    gaps = np.diff(positions.astype(np.int64))
    edges = np.arange(1, 101)
    observed = [np.sum(gaps == g) for g in edges] + [np.sum(gaps > 100)]
    expected = [*stats.geom.pmf(edges, 0.05), stats.geom.sf(100, 0.05)]
    assert stats.chisquare(observed, np.array(expected) * len(gaps) / sum(expected)).pvalue > FALSE_ALARM


def test_afterpulses_come_as_often_and_as_late_as_they_should():
    law = kernels.Afterpulses(mean=0.3, first=101**-0.2, last=100_000**-0.2, inverse=-5.0)
    positions, flags, *_ = sampled(
        40_000_000_000,
        candidate_probability=1e-6,
        dead_pulses=100,
        afterpulses=law,
        limits=limits_of((1.0, 1.0, 1.0), doubles=0),
    )
    is_after = flags & 4 > 0
    # So rare is light here that every charge finds the receiver live and every click has 0.3 / 0.7 descendants.
    light = int((~is_after).sum())
    # Descendants of a branching process: variance m / (1 - m)^3 of each ancestor's; the sum is as good as normal.
    deviation = (is_after.sum() - light * 0.3 / 0.7) / (light * 0.3 / 0.7**3) ** 0.5
    assert 2 * stats.norm.sf(abs(deviation)) > FALSE_ALARM
    lags = np.diff(positions.astype(np.int64))[is_after[1:] & ~is_after[:-1]]
    assert lags.min() > 100
    share_late = (1000**-0.2 - law.last) / (law.first - law.last)
    # The first of several charges comes a little early, and light of its own a little late: a tenth at most.
    assert abs((lags > 1000).mean() - share_late) < 0.1 * share_late + 5 * (share_late / len(lags)) ** 0.5


PLAIN = {
    "basis_threshold": 50_000,
    "level_limits": np.array([3_000_000_000, 4_200_000_000], np.uint32),
    "error_limits": (np.array([0.01, 0.03, 0.5, 0.5]) * 2**31).astype(np.uint32),
}


def plain(rng, count, probability):
    return kernels.sample_plain(rng, 77, count, probability=probability, **PLAIN)


@pytest.mark.parametrize(("count", "probability"), [(200_000, 0.01), (400, 0.9), (1, 0.5), (0, 0.5), (10**15, 1e-12)])
def test_plain_clicks_equal_their_twin(path, count, probability):
    rng = kernels.new_rng(bytes(range(1, 33)))
    want, state = twins.sample_plain(rng, 77, count, probability, *PLAIN.values())
    positions, attributes = plain(rng, count, probability)
    assert list(zip(positions.tolist(), attributes.tolist(), strict=True)) == want
    assert rng.tolist() == state


def test_plain_clicks_have_the_shares_they_should(path):
    positions, attributes = plain(kernels.new_rng(b"\x22" * 32), 50_000_000, 0.02)
    level, a, bit, b, wrong = (attributes >> s & m for s, m in ((0, 3), (2, 1), (3, 1), (4, 1), (5, 1)))
    total = len(positions)
    test = 1 - 50_000 / 65_536

    def fits(where, among, probability):
        return stats.binomtest(int(where.sum()), int(among), probability).pvalue > FALSE_ALARM

    assert fits(level == 0, total, 3_000_000_000 / 2**32)
    assert fits(level == 2, total, 1 - 4_200_000_000 / 2**32)
    assert fits(a == 1, total, test)
    assert fits((a == 1) & (b == 1), total, test**2)
    assert fits(bit == 1, total, 0.5)
    for k, error in enumerate((0.01, 0.03, 0.5)):
        here = (level == k) & (a == b)
        assert fits(wrong[here] == 1, here.sum(), error)
    assert fits(wrong[a != b] == 1, (a != b).sum(), 0.5)


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
        channel = np.full(code.n, kernels.channel_value(qber), np.int8)
        channel[-100:] = kernels.KNOWN
        errors[:, -100:] = 0
        wanted = kernels.ldpc_syndrome(code, errors)
        got, iterations = kernels.ldpc_decode(code, wanted, channel, 12)
        for frame in range(4):
            want, count = twins.decode(code, wanted[frame], channel, 12)
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
def test_a_shipped_code_corrects_a_tenth_below_its_reach(entry):
    # At its reach 1 frame in 50 fails; so far below it all three pass but for 1e-2, seed fixed.
    code = kernels.load_code(entry["name"], (CODES / f"{entry['name']}.txt").read_text())
    qber = 0.9 * entry["reach"][0]
    errors = (np.random.default_rng(11).random((3, code.n)) < qber).astype(np.uint8)
    channel = np.full(code.n, kernels.channel_value(qber), np.int8)
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


def toeplitz_by_convolution(x, seed, length):
    # Sums stay below 2^21, so rounding a double-precision FFT convolution is exact for bits as random as these.
    n = len(x)
    sums = np.rint(signal.fftconvolve(seed.astype(float), x.astype(float)))[n - 1 : n - 1 + length]
    return np.packbits((sums.astype(np.int64) & 1).astype(np.uint8))


@pytest.mark.parametrize(
    ("n", "length"),
    [
        *[(40_001, length) for length in (1, 1023, 1024, 1025, 16_383, 16_384, 16_385, 32_767, 32_768, 32_769, 40_001)],
        *[(32_768, 9000), (65_536, 65_536), (70_000, 20_011), (262_144, 78_643), (300_000, 1500), (1 << 20, 314_572)],
        *[(1 << 20, 1 << 20), (1_500_007, 250_000)],
    ],
)
def test_toeplitz_equals_a_convolution_at_sizes_that_are_cut(path, n, length):
    dice = np.random.default_rng(n + length)
    x, seed = dice.integers(0, 2, n).astype(np.uint8), dice.integers(0, 2, n + length - 1).astype(np.uint8)
    got = kernels.toeplitz_hash(np.packbits(x), n, np.packbits(seed), length)
    np.testing.assert_array_equal(got, toeplitz_by_convolution(x, seed, length))


@settings(max_examples=25, deadline=None)
@given(st.integers(1024, 150_000), st.data())
def test_toeplitz_equals_a_convolution_at_any_size(n, data):
    length = data.draw(st.integers(1, n))
    dice = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    x, seed = dice.integers(0, 2, n).astype(np.uint8), dice.integers(0, 2, n + length - 1).astype(np.uint8)
    want = toeplitz_by_convolution(x, seed, length)
    for name in kernels.cpu_paths():
        kernels.force_path(name)
        np.testing.assert_array_equal(kernels.toeplitz_hash(np.packbits(x), n, np.packbits(seed), length), want)
    kernels.force_path(None)


@pytest.mark.parametrize(
    ("n", "length"), [((1 << 22) - 1, 1_258_291), ((1 << 22) + 37, (1 << 22) + 37), (1 << 24, 5_033_164)]
)
def test_long_toeplitz_of_few_ones_is_a_sum_of_pieces_of_the_seed(n, length):
    dice = np.random.default_rng(n)
    seed = dice.integers(0, 2, n + length - 1).astype(np.uint8)
    places = np.unique(np.concatenate([dice.integers(0, n, 60), [0, 1, 31, 32, 63, 64, n - 2, n - 1]]))
    x, want = np.zeros(n, np.uint8), np.zeros(length, np.uint8)
    for j in places:
        x[j] = 1
        want ^= seed[n - 1 - j : n - 1 - j + length]
    got = kernels.toeplitz_hash(np.packbits(x), n, np.packbits(seed), length)
    np.testing.assert_array_equal(got, np.packbits(want))


def test_toeplitz_is_exact_where_sums_are_largest(path):
    n, length = (1 << 20) + 1, 300_000
    ones = np.full((n + length - 1 + 7) // 8, 0xFF, np.uint8)
    got = np.unpackbits(kernels.toeplitz_hash(ones[: (n + 7) // 8], n, ones, length))
    assert got[:length].all()
    assert not got[length:].any()


@given(st.binary(min_size=16, max_size=16), st.integers(0, 2200), st.integers(0, 2**32))
def test_the_polynomial_hash_equals_its_twin(key, length, seed):
    data = np.random.default_rng(seed).bytes(length)
    want = twins.poly_hash(key, data)
    for name in kernels.cpu_paths():
        kernels.force_path(name)
        assert kernels.poly_hash(key, data) == want
        cut = len(data) // 2 // 16 * 16
        assert kernels.poly_hash(key, data[cut:], kernels.poly_hash(key, data[:cut])) == want
    kernels.force_path(None)


@pytest.mark.parametrize("octets", [1008, 1023, 1024, 1025, 1536, 1537, 2047, 2048, 5000])
def test_the_polynomial_hash_equals_its_twin_where_blocks_are_taken_together(path, octets):
    dice = np.random.default_rng(octets)
    key, state, data = dice.bytes(16), dice.bytes(16), dice.bytes(octets)
    assert kernels.poly_hash(key, data, state) == twins.poly_hash(key, data, state)


@pytest.mark.parametrize("path", kernels.cpu_paths())
@given(
    st.lists(st.tuples(st.integers(0, 60), st.integers(1, 2**34)), max_size=40),
    st.integers(0, 2**20),
    st.integers(0, 5),
)
def test_positions_survive_the_wire(path, runs, room, scale):
    # Runs of neighbours, and now and then a gap of any size: every width, with and without the largest word.
    gaps = [gap for near, far in runs for gap in [1 + near % 3] * near + [max(1, far >> (7 * scale))]]
    positions = np.cumsum(np.array(gaps, np.uint64)) if gaps else np.zeros(0, np.uint64)
    limit = int(positions[-1]) + 1 + room if gaps else room
    kernels.force_path(path)
    octets = kernels.encode_gaps(positions, limit)
    assert octets.tobytes() == twins.encode_gaps(positions, limit)
    np.testing.assert_array_equal(kernels.decode_gaps(octets, len(gaps), limit), positions)
    for wrong in (octets[:-1], np.append(octets, np.uint8(1)), np.append(octets, np.full(4, 255, np.uint8))):
        if gaps:
            with pytest.raises(ValueError, match=r"octets|count"):
                kernels.decode_gaps(wrong, len(gaps), limit)
    kernels.force_path(None)


@pytest.mark.parametrize("path", kernels.cpu_paths())
@pytest.mark.parametrize("spacing", [1, 40, 63, 65, 700, 16000, 20_000_000])
def test_many_positions_survive_the_wire(path, spacing):
    gaps = np.random.default_rng(spacing).geometric(1 / spacing, 5000).astype(np.uint64)
    positions = np.cumsum(gaps) - np.uint64(1)
    limit = int(positions[-1]) + 1
    kernels.force_path(path)
    octets = kernels.encode_gaps(positions, limit)
    assert octets.tobytes() == twins.encode_gaps(positions, limit)
    np.testing.assert_array_equal(kernels.decode_gaps(octets, len(gaps), limit), positions)
    with pytest.raises(ValueError, match="octets"):
        kernels.decode_gaps(octets, len(gaps), limit - 1)
    kernels.force_path(None)


@pytest.mark.parametrize("path", kernels.cpu_paths())
@given(st.binary(max_size=40), st.integers(0, 40), st.sampled_from([100, 5_000, 2**20, 2**48]))
def test_whatever_decodes_as_positions_is_what_they_are_written_as(path, octets, count, limit):
    data = np.frombuffer(octets, np.uint8)
    kernels.force_path(path)
    try:
        positions = kernels.decode_gaps(data, count, limit)
        assert kernels.encode_gaps(positions, limit).tobytes() == octets
    except ValueError as error:
        assert "octets" in str(error) or "count" in str(error)  # noqa: PT017 - most octets are no positions
    kernels.force_path(None)


# ── Cascade ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def cascade_of(rng, count, error, frames, length, blocks, extras, cover):
    """Bits of both ends, and what both have in common."""
    ours = rng.integers(0, 2, count, dtype=np.uint8)
    return (
        (ours, ours ^ (rng.random(count) < error)),
        {
            "frames": frames,
            "length": length,
            "blocks": np.array(blocks, np.uint32),
            "extras": extras,
            "cover": cover,
            "mixers": rng.integers(0, 1 << 16, 8 * (len(blocks) + extras), dtype=np.uint16),
            "check_key": rng.bytes(16),
        },
    )


@pytest.mark.parametrize(
    ("count", "error", "frames", "length", "blocks", "extras", "cover"),
    [
        (64 * 300, 0.03, 64, 300, [32, 128, 150, 150, 150], 4, 150),
        (5000, 0.11, 5, 1024, [8, 32, 512], 6, 512),  # filled with 120 zeros
        (1000, 0.02, 1, 1000, [33, 77], 8, 10),  # odd sizes; too few passes, so that the check has work to do
        (2000, 0.5, 7, 300, [2, 3, 300, 299], 3, 1000),  # nothing in common
        (63, 0.0, 1, 64, [64], 1, 64),
    ],
)
def test_cascade_equals_its_twin_at_both_ends(path, count, error, frames, length, blocks, extras, cover):
    bits, shared = cascade_of(np.random.default_rng(5), count, error, frames, length, blocks, extras, cover)
    ends = [kernels.CascadeBatch(own, **shared) for own in bits]
    twin_ends = [twins.CascadeBatch(own, **shared) for own in bits]
    rounds = 0
    while twin_ends[0].questions:
        rounds += 1
        for end, twin in zip(ends, twin_ends, strict=True):
            assert end.questions == twin.questions
            assert np.array_equal(end.parities(), twin.parities())
        mismatches = ends[0].parities() ^ ends[1].parities()
        assert all(end.learn(mismatches) for end in [*ends, *twin_ends])
        assert ends[0].errors_found == ends[1].errors_found == twin_ends[0].errors_found
    assert rounds >= 2
    for end, twin in zip(ends, twin_ends, strict=True):
        assert end.questions == 0
        assert end.is_checked == twin.is_checked
        assert np.array_equal(end.errors(), twin.errors())
        # A 32-bit hash says so, so this fails with probability 2^-27 at most; the seed is fixed.
        assert end.is_checked == np.array_equal(end.errors(), bits[0] ^ bits[1])


def test_cascade_takes_more_passes_where_the_hash_shows_errors():
    found = []
    for seed in range(20):
        bits, shared = cascade_of(np.random.default_rng(seed), 4000, 0.02, 4, 1000, [32], 30, 500)
        ends = [kernels.CascadeBatch(own, **shared) for own in bits]
        while ends[0].questions:
            mismatches = ends[0].parities() ^ ends[1].parities()
            assert all(end.learn(mismatches) for end in ends)
        found.append(ends[1].is_checked and np.array_equal(ends[1].errors(), bits[0] ^ bits[1]))
    assert all(found)  # one pass leaves about 30 errors; 30 more miss one pair with probability 2^-30 times its places


@given(
    octets=st.binary(min_size=1, max_size=400),
    count=st.integers(1, 400),
    frames=st.integers(1, 6),
    blocks=st.lists(st.integers(2, 90), min_size=1, max_size=5),
)
def test_whatever_the_peer_says_cascade_ends_or_says_that_it_is_a_lie(octets, count, frames, blocks):
    # Fewer questions than bits in each pass and its searches: lies cannot make it ask for ever.
    length, extras = 80, 2
    count = min(count, frames * length)
    mixers = np.arange(8 * (len(blocks) + extras), dtype=np.uint16) * np.uint16(40503)
    batch = kernels.CascadeBatch(
        np.zeros(count, np.uint8),
        frames=frames,
        length=length,
        blocks=np.array(blocks, np.uint32),
        extras=extras,
        cover=40,
        mixers=mixers,
        check_key=b"k" * 16,
    )
    asked, at = 0, 0
    while batch.questions:
        asked += batch.questions
        wanted = (batch.questions + 7) // 8
        said = np.frombuffer((octets * (wanted + 1))[at % len(octets) :][:wanted], np.uint8)
        at += wanted
        if not batch.learn(said):
            break
    assert asked <= 2 * frames * length * (len(blocks) + extras) + 32
    assert int(batch.errors().sum()) == batch.errors_found <= count


def test_cascade_refuses_what_is_no_batch():
    bits, shared = cascade_of(np.random.default_rng(1), 200, 0.1, 2, 100, [8, 32], 1, 50)
    for name, value, text in [
        ("frames", 0, "frames: 1 to 64"),
        ("frames", 65, "frames: 1 to 64"),
        ("length", 63, "length: 64 to 65536"),
        ("length", 65537, "length: 64 to 65536"),
        ("length", 99, "bits: more than the frames hold"),
        ("blocks", np.array([], np.uint32), "1 to 32 passes"),
        ("blocks", np.array([8, 1], np.uint32), "blocks: at least 2 bits"),
        ("extras", 33, "1 to 32 passes"),
        ("extras", 2, "mixers: eight for each pass"),
        ("check_key", b"short", "check_key: 16 octets"),
    ]:
        with pytest.raises(ValueError, match=text):
            kernels.CascadeBatch(bits[0], **{**shared, name: value})
    with pytest.raises(ValueError, match="bits: zeros and ones"):
        kernels.CascadeBatch(bits[0] * 2, **shared)
    with pytest.raises(TypeError, match="mixers: a NumPy array of uint16"):
        kernels.CascadeBatch(bits[0], **{**shared, "mixers": shared["mixers"].astype(np.uint32)})
    batch = kernels.CascadeBatch(bits[0], **shared)
    with pytest.raises(ValueError, match="mismatches: one bit for each question"):
        batch.learn(np.zeros(1, np.uint8))


def test_an_array_is_refused_rather_than_copied():
    words = np.arange(1, 65, dtype=np.uint64)
    with pytest.raises(ValueError, match="rng: must be C-contiguous"):
        plain(words[::2], 10, 0.5)
    with pytest.raises(TypeError, match="rng: a NumPy array of uint64 is needed, not int64"):
        plain(words[:32].astype(np.int64), 10, 0.5)
    with pytest.raises(TypeError, match=r"positions: .* not list"):
        kernels.encode_gaps([1, 2], 10)
    with pytest.raises(ValueError, match="syndromes: 2 dimension"):
        kernels.ldpc_decode(
            small_code(np.random.default_rng(0)), np.zeros(256, np.uint8), np.zeros((1, 768), np.int8), 5
        )
    frozen = words[:32].copy()
    frozen.flags.writeable = False
    with pytest.raises(TypeError):
        plain(frozen, 10, 0.5)


def test_the_decoder_refuses_what_is_not_a_code_a_syndrome_or_a_belief():
    code = small_code(np.random.default_rng(0))
    syndromes, channel = np.zeros((1, code.m), np.uint8), np.full(code.n, 10, np.int8)
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
        plain(rng, 10, 1.0)
    with pytest.raises(ValueError, match="rng"):
        plain(np.zeros(4, np.uint64), 10, 0.5)
    for change, what in [
        ({"alice_seed": b"short"}, "seeds"),
        ({"candidate_probability": 1.0}, "candidate_probability"),
        ({"limits": np.zeros((2, 4, 2, 3), np.uint64)}, "limits"),
        ({"dead_pulses": -1}, "dead_pulses"),
        ({"afterpulses": kernels.Afterpulses(mean=1.0)}, "afterpulse_mean"),
    ]:
        with pytest.raises(ValueError, match=what):
            sampled(**change)
    with pytest.raises(ValueError, match="seed"):
        kernels.toeplitz_hash(np.zeros(2, np.uint8), 16, np.zeros(2, np.uint8), 8)
    with pytest.raises(ValueError, match="key"):
        kernels.poly_hash(b"short", b"")
    with pytest.raises(ValueError, match="seed"):
        kernels.new_rng(bytes(31))
    with pytest.raises(ValueError, match="bits"):
        kernels.ldpc_syndrome(small_code(np.random.default_rng(0)), np.zeros((1, 5), np.uint8))
    with pytest.raises(ValueError, match="announced"):
        kernels.load_code("bad", "4 2 64 5\n2 0:1 1:2\n2 2:3 3:4")
    with pytest.raises(ValueError, match="ascending"):
        kernels.encode_gaps(np.array([5, 5], np.uint64), 10)


@pytest.mark.parametrize("count", [0, 1, 3, 63, 64, 65, 1000, 100_003])
def test_settings_and_bases_come_out_of_words_as_numpy_has_them(path, count):
    words = np.random.default_rng(count).integers(0, 2**64, count, np.uint64)
    for thresholds in ([], [2**31], [2**31, 2**32 - 1], [0, 7, 2**32 - 1]):
        limits = np.array(thresholds, np.uint32)
        intensity, basis, bit = kernels.decode_settings(words, limits, 51_000)
        low = (words & np.uint64(0xFFFFFFFF)).astype(np.uint32)
        np.testing.assert_array_equal(intensity, (low[:, None] >= limits).sum(axis=1))
        np.testing.assert_array_equal(basis, (words >> np.uint64(32) & np.uint64(0xFFFF)) >= 51_000)
        np.testing.assert_array_equal(bit, words >> np.uint64(48) & np.uint64(1))
    for threshold in (0, 1, 40_000, 65_536):
        np.testing.assert_array_equal(kernels.decode_bases(words, threshold), (words & np.uint64(0xFFFF)) >= threshold)


@pytest.mark.parametrize("count", [0, 1, 63, 64, 65, 1000, 100_003])
def test_what_a_mask_keeps_and_how_often_values_come_are_as_numpy_has_them(path, count):
    dice = np.random.default_rng(count)
    values = dice.integers(0, 256, count).astype(np.uint8)
    for share in (0.0, 0.01, 0.5, 1.0):
        mask = (dice.random(count) < share).astype(np.uint8)
        np.testing.assert_array_equal(kernels.select(values, mask), values[mask.astype(bool)])
    np.testing.assert_array_equal(kernels.tally(values), np.bincount(values, minlength=256))


def test_masks_and_words_of_the_wrong_kind_are_refused():
    octets = np.zeros(10, np.uint8)
    with pytest.raises(ValueError, match="mask: one for each value"):
        kernels.select(octets, octets[:9].copy())
    with pytest.raises(TypeError, match="mask: a NumPy array of uint8"):
        kernels.select(octets, octets.astype(bool))
    with pytest.raises(ValueError, match="up to 3"):
        kernels.decode_settings(np.zeros(4, np.uint64), np.zeros(4, np.uint32), 1)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 5), st.integers(1, 70), st.integers(0, 2**32))
def test_a_key_container_is_json_of_its_keys_and_ids(count, key_octets, seed):
    rng = np.random.default_rng(seed)
    ids, material = rng.bytes(16 * count), rng.bytes(key_octets * count)
    made = kernels.key_container(ids, memoryview(material), key_octets)
    keys = [
        {
            "key_ID": str(uuid.UUID(bytes=ids[16 * i : 16 * i + 16])),
            "key": base64.b64encode(material[key_octets * i : key_octets * (i + 1)]).decode(),
        }
        for i in range(count)
    ]
    assert made.decode() == json.dumps({"keys": keys}, separators=(",", ":"))


def test_every_six_bits_have_their_octet_in_a_container():
    sextets = [(a, (a + b) % 64) for a in range(64) for b in (0, 21)]
    material = b"".join((a << 18 | b << 12 | b << 6 | a).to_bytes(3, "big") for a, b in sextets)
    found = json.loads(kernels.key_container(bytes(16), memoryview(material), len(material)))
    assert base64.b64decode(found["keys"][0]["key"], validate=True) == material
    assert len(set(found["keys"][0]["key"])) == 64


def test_a_container_of_ids_without_keys_is_refused():
    for ids, material, key_octets, named in (
        (bytes(15), bytes(32), 32, "ids"),
        (bytes(32), bytes(32), 32, "material"),
        (bytes(16), bytes(32), 0, "key_octets"),
    ):
        with pytest.raises(ValueError, match=named):
            kernels.key_container(ids, memoryview(material), key_octets)
