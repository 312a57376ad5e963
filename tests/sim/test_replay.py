"""A recording through the real machines of distillation, and the commands that show it."""

import json
from dataclasses import fields, replace

import numpy as np
import pytest
from click.testing import CliRunner

from qtrunk.base.errors import AuthenticationFailed, KeyExhausted, RequestRefused
from qtrunk.cli import recordings
from qtrunk.cli.main import cli
from qtrunk.distil.parties import AUTH_OCTETS
from qtrunk.quantum.source import decode_bases, decode_settings, words
from qtrunk.sim.recording import Header, ReceiverWriter, TransmitterWriter, read_receiver, read_transmitter
from qtrunk.sim.replay import BlockResult, ReplayLedger, distil
from qtrunk.stages import Settings

pytest.importorskip("pyarrow")

FALSE_ALARM = 6e-7
"""Of each statistical assertion: 5 sigma."""
HEADER = Header(
    link="a-b",
    clock_hz=1.25e9,
    intensities=(0.46, 0.20, 0.0002),
    probabilities=(0.48, 0.42, 0.10),
    key_basis_probability=0.7,
    source="simulated",
    made_unix_s=1.7e9,
)
PULSES, CANDIDATES = 350_000_000, 750_000
QBER = 0.02


class Dice:
    """Repeatable octets for what both ends draw in public."""

    def __init__(self, seed=5):
        self.rng = np.random.default_rng(seed)

    def octets(self, count):
        return self.rng.bytes(count)


def seed(block):
    return bytes([block]) * 32


def light(block, qber=QBER):
    """What both ends have of a block: clicks grow with the intensity, errors come at a rate of `qber`."""
    rng = np.random.default_rng(block)
    positions = np.unique(rng.integers(0, PULSES, CANDIDATES, np.uint64))
    sent = decode_settings(words(seed(block), positions), HEADER.settings)
    gains = 1 - np.exp(-0.003 * np.array(HEADER.intensities)) + 2e-6
    chosen = rng.random(len(positions)) < gains[sent.intensity] / gains[0]
    positions = positions[chosen]
    sent = Settings(intensity=sent.intensity[chosen], basis=sent.basis[chosen], bit=sent.bit[chosen])
    basis = decode_bases(words(bytes([block, 7]) * 16, positions), HEADER.settings)
    wrong = np.where(sent.basis == basis, rng.random(len(basis)) < qber, rng.random(len(basis)) < 0.5)
    return positions, sent, basis, sent.bit ^ wrong.astype(np.uint8)


def record(folder, blocks, *, qber=QBER, seed_of=seed):
    with (
        TransmitterWriter(folder / "t", HEADER) as transmitter,
        TransmitterWriter(folder / "s", HEADER, has_seeds=False) as settings,
        ReceiverWriter(folder / "r", HEADER) as receiver,
    ):
        for block in blocks:
            positions, sent, basis, bit = light(block, qber)
            transmitter.add_seed(block, seed_of(block))
            settings.add(block, positions, sent)
            receiver.add(block, positions, basis, bit, bit, positions.astype(np.int64) * 800)
            for writer in (transmitter, settings, receiver):
                writer.finish(block, PULSES)
    return folder / "t", folder / "r"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Two blocks of one run, the transmitter's side by seed and by settings."""
    folder = tmp_path_factory.mktemp("run")
    record(folder, (1, 2))
    return folder


def test_a_recording_gives_the_key_that_its_clicks_support(run):
    results = distil(read_transmitter(run / "t"), read_receiver(run / "r"), Dice())
    assert [result.block for result in results] == [1, 2]
    for result in results:
        positions, sent, basis, bit = light(result.block)
        in_key, in_test = (sent.basis == basis) & (basis == 0), (sent.basis == basis) & (basis == 1)
        assert result.cause is None
        assert result.clicks == len(positions)
        assert result.sifted_bits == in_key.sum()
        assert result.qber_test == (sent.bit != bit)[in_test].mean()
        assert result.qber_key == (sent.bit != bit)[in_key].mean()
        assert abs(result.qber_key - QBER) < 5 * np.sqrt(QBER / in_key.sum())
        assert 2 * result.auth_bits < result.secret_bits < result.sifted_bits - result.leak_bits
        assert result.auth_bits == 8 * AUTH_OCTETS, "a block keeps what it spent"
        strongest = (sent.basis == basis) & (sent.intensity == 0)
        sent_matched = PULSES * HEADER.settings.exact_probabilities[0] * (0.7**2 + 0.3**2)
        assert result.gains[0] == pytest.approx(strongest.sum() / sent_matched, rel=1e-4)


def test_noted_settings_and_seeds_give_the_same_key(run):
    by_seed = distil(read_transmitter(run / "t"), read_receiver(run / "r"), Dice())
    by_settings = distil(read_transmitter(run / "s"), read_receiver(run / "r"), Dice())
    for one, other in zip(by_seed, by_settings, strict=True):
        # Thresholds of 2^-32 make the probabilities differ in the tenth digit, and the length by a step at most.
        assert abs(one.secret_bits - other.secret_bits) <= 128
        assert replace(one, gains=None, secret_bits=0) == replace(other, gains=None, secret_bits=0)


def test_authentication_key_of_a_replay_is_spent_once_too():
    ledger = ReplayLedger(bytes(AUTH_OCTETS), 1000)
    assert ledger.reserve(0.0).reference == (0, 0)
    with pytest.raises(KeyExhausted):
        ledger.take(0, 0, 0.0)
    with pytest.raises(AuthenticationFailed):
        ReplayLedger(bytes(AUTH_OCTETS), 1000).take(0, AUTH_OCTETS, 0.0)


def test_what_comes_out_has_no_field_for_key():
    assert {field.name for field in fields(BlockResult)} == {
        *("block", "pulses", "clicks", "sifted_bits", "qber_test", "qber_key", "gains", "leak_bits"),
        *("secret_bits", "auth_bits", "cause", "why"),
    }


def test_too_many_errors_destroy_the_block(tmp_path):
    transmitter, receiver = record(tmp_path, (3,), qber=0.14)
    (result,) = distil(read_transmitter(transmitter), read_receiver(receiver), Dice())
    assert (result.cause, result.secret_bits, result.qber_key) == ("qber", 0, None)
    assert result.qber_test == pytest.approx(0.14, abs=0.01)


def test_the_seed_of_another_block_gives_no_key(tmp_path):
    # What a node would do to a recording: it draws a seed of its own, and settings and clicks have nothing in common.
    transmitter, receiver = record(tmp_path, (4,), seed_of=lambda _: bytes(range(32)))
    (result,) = distil(read_transmitter(transmitter), read_receiver(receiver), Dice())
    assert result.cause == "qber"
    assert result.qber_test == pytest.approx(0.5, abs=0.02)


def test_a_block_that_one_end_does_not_have_is_reported(run, tmp_path):
    with TransmitterWriter(tmp_path / "t", HEADER) as transmitter:
        transmitter.add_seed(2, seed(2))
        transmitter.finish(2, PULSES)
    results = distil(read_transmitter(tmp_path / "t"), read_receiver(run / "r"), Dice())
    assert [result.cause for result in results] == ["device", None]


def test_a_position_without_settings_destroys_the_block(run, tmp_path):
    positions, sent, *_ = light(1)
    with TransmitterWriter(tmp_path / "s", HEADER, has_seeds=False) as transmitter:
        some = slice(0, -1)
        parts = Settings(intensity=sent.intensity[some], basis=sent.basis[some], bit=sent.bit[some])
        transmitter.add(1, positions[some], parts)
        transmitter.finish(1, PULSES)
    first, _ = distil(read_transmitter(tmp_path / "s"), read_receiver(run / "r"), Dice())
    assert first.cause == "protocol"
    assert str(positions[-1]) in first.why


def test_files_of_different_runs_are_refused(run, tmp_path):
    other = Header(**{name: getattr(HEADER, name) for name in Header.__struct_fields__} | {"clock_hz": 1e9})
    with TransmitterWriter(tmp_path / "clock", other):
        pass
    with pytest.raises(RequestRefused, match=r"clock_hz: 1250000000\.0 and 1000000000\.0"):
        distil(read_transmitter(tmp_path / "clock"), read_receiver(run / "r"), Dice())
    with TransmitterWriter(tmp_path / "pulses", HEADER) as transmitter:
        transmitter.add_seed(1, seed(1))
        transmitter.finish(1, PULSES - 1)
    with pytest.raises(RequestRefused, match="pulses"):
        distil(read_transmitter(tmp_path / "pulses"), read_receiver(run / "r"), Dice())


def call(command, *words):
    done = CliRunner().invoke(command, [str(word) for word in words])
    assert done.exit_code == 0, done.output
    return done.output


def test_the_replay_command_shows_figures_and_a_rate(run):
    told = json.loads(call(recordings.replay_, run / "t", run / "r", "--format", "json"))
    assert told["secret_bits"] == sum(block["secret_bits"] for block in told["blocks"]) > 0
    assert told["light_s"] == pytest.approx(2 * PULSES / 1.25e9)
    table = call(recordings.replay_, run / "t", run / "r")
    assert "secret in 0.56 s of light" in table
    assert table.count(" key ") >= 2


def test_the_inspect_command_shows_either_end_without_raw_key(run):
    told = json.loads(call(recordings.inspect_, run / "r", "--format", "json"))
    positions, _, basis, bit = light(1)
    assert told["link"] == "a-b"
    assert told["blocks"][0]["rows"] == len(positions)
    assert told["blocks"][0]["key_basis_share"] == (basis == 0).mean()
    assert told["blocks"][0]["second_detector_share"] == bit.mean()
    for file in ("t", "s", "r"):
        shown = call(recordings.inspect_, run / file)
        assert "clock_hz" in shown
        assert seed(1).hex() not in shown
        assert repr(seed(1)) not in shown


def test_the_import_command_takes_a_seed_from_a_file_and_reports(tmp_path):
    rng = np.random.default_rng(6)
    positions = np.unique(rng.integers(0, 10_000_000, 5000))
    times = np.rint(positions * 800 * (1 + 3e-6) + rng.normal(0, 60, len(positions)) + 10**9).astype(np.int64)
    bit = rng.integers(0, 2, len(positions))
    lines = [f"{time},{channel}" for time, channel in zip(times, 1 + bit, strict=True)]
    (tmp_path / "tags.csv").write_text("time_ps,channel\n" + "\n".join(lines) + "\n")
    (tmp_path / "seed").write_bytes(seed(9))
    light_options = ["--link", "a-b", "--clock-hz", 1.25e9, "--intensities", 0.5, 0.2, 0.001]
    light_options += ["--probabilities", 0.5, 0.3, 0.2, "--key-basis-probability", 0.7, "--pulses", 10_000_000]
    tagger_options = ["--tags-format", "csv", "--gate-ps", 700, "--start-ps", 10**9, "--detector", 1, "--detector", 2]
    shown = call(
        recordings.import_,
        *(tmp_path / "tags.csv", tmp_path / "r", *light_options, *tagger_options),
        *("--basis-seed", tmp_path / "seed"),
    )
    assert f"records                {len(positions)}" in shown
    block = read_receiver(tmp_path / "r").read(1)
    assert np.array_equal(block.detections.positions, positions)
    assert np.array_equal(block.detections.bit, bit)
    expected = decode_bases(words(seed(9), positions.astype(np.uint64)), read_receiver(tmp_path / "r").header.settings)
    assert np.array_equal(block.detections.basis, expected)


def test_a_refusal_is_one_line_and_not_a_traceback(tmp_path):
    (tmp_path / "t").write_bytes(b"PAR1 no")
    done = CliRunner().invoke(cli, ["link", "inspect", str(tmp_path / "t")])
    assert done.exit_code == 1
    assert "not a whole Parquet file" in done.output
    assert "Traceback" not in done.output
