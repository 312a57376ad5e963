"""What was recorded comes back; what is torn, changed or impossible is refused by name."""

import json
import os
import re
import stat
import subprocess
import sys
from pathlib import Path

import msgspec
import numpy as np
import pytest

from qtrunk.base.errors import ConfigError, RequestRefused
from qtrunk.quantum.source import decode_settings, words
from qtrunk.sim import recording
from qtrunk.sim.recording import Header, ReceiverWriter, TransmitterWriter, read_receiver, read_transmitter
from qtrunk.stages import Settings

pa = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")

HEADER = Header(
    link="a-b",
    clock_hz=1.25e9,
    intensities=(0.5, 0.2, 0.0002),
    probabilities=(0.7, 0.2, 0.1),
    key_basis_probability=0.8,
    source="simulated",
    made_unix_s=1.7e9,
)
PULSES = 1_000_000


def clicks(seed, count=1000, pulses=PULSES):
    rng = np.random.default_rng(seed)
    positions = np.sort(rng.choice(pulses, count, replace=False)).astype(np.uint64)
    basis, bit = rng.integers(0, 2, (2, count)).astype(np.uint8)
    detectors = rng.integers(0, 3, count).astype(np.uint8)
    return positions, basis, bit, detectors, positions.astype(np.int64) * 800 + rng.integers(-300, 300, count)


def write(path, blocks=(1, 2, 5), slices=7, header=HEADER):
    with ReceiverWriter(path, header) as writer:
        for block in blocks:
            for part in np.array_split(np.arange(1000), slices):
                writer.add(block, *(column[part] for column in clicks(block)))
            writer.finish(block, PULSES, {"double_clicks": block, "slots": [1, 2.5]})
    return path


@pytest.mark.parametrize("group", [1 << 20, 100, 1000, 999])
def test_clicks_come_back_block_by_block(tmp_path, monkeypatch, group):
    monkeypatch.setattr(recording, "ROWS_PER_GROUP", group)
    found = read_receiver(write(tmp_path / "r"))
    assert found.finished == (1, 2, 5)
    assert all(getattr(found.header, name) == getattr(HEADER, name) for name in Header.__struct_fields__)
    for block in found:
        positions, basis, bit, detectors, times_ps = clicks(block.pulses.block)
        assert np.array_equal(block.detections.positions, positions)
        assert np.array_equal(block.detections.basis, basis)
        assert np.array_equal(block.detections.bit, bit)
        assert np.array_equal(block.detectors, detectors)
        assert np.array_equal(block.times_ps, times_ps)
        assert block.readings == {"double_clicks": block.pulses.block, "slots": [1, 2.5]}
        assert (block.pulses.count, block.pulses.intensities) == (PULSES, HEADER.intensities)
        assert block.detections.positions.dtype == np.uint64
        assert block.times_ps.dtype == np.int64
    assert np.array_equal(found.read(2).detections.positions, clicks(2)[0]), "any block, in any order"


def test_seeds_give_the_settings_that_the_source_gave(tmp_path):
    with TransmitterWriter(tmp_path / "t", HEADER) as writer:
        for block in (1, 2):
            writer.add_seed(block, bytes([block]) * 32)
            writer.finish(block, PULSES)
    found = read_transmitter(tmp_path / "t")
    positions = clicks(3)[0]
    sent = found.settings(2)(positions)
    expected = decode_settings(words(bytes([2]) * 32, positions), HEADER.settings)
    for field in ("intensity", "basis", "bit"):
        assert np.array_equal(getattr(sent, field), getattr(expected, field))
    assert found.pulses(2).probabilities == HEADER.settings.exact_probabilities
    assert found.pulses(2).key_basis_probability == HEADER.settings.exact_key_basis_probability


def test_noted_settings_come_back_where_they_were_noted_and_nowhere_else(tmp_path):
    positions, basis, bit, detectors, _ = clicks(4)
    sent = Settings(intensity=detectors, basis=basis, bit=bit)
    with TransmitterWriter(tmp_path / "t", HEADER, has_seeds=False) as writer:
        writer.add(9, positions, sent)
        writer.finish(9, PULSES)
    found = read_transmitter(tmp_path / "t")
    look_up = found.settings(9)
    some = look_up(positions[100:900:3])
    assert np.array_equal(some.intensity, detectors[100:900:3])
    assert np.array_equal(some.bit, bit[100:900:3])
    assert found.pulses(9).probabilities == HEADER.probabilities
    missing = np.setdiff1d(np.arange(PULSES, dtype=np.uint64), positions)[[5]]
    with pytest.raises(RequestRefused, match=f"{missing[0]} is not there"):
        look_up(missing)


def test_a_recording_is_for_its_owner_and_never_overwritten(tmp_path):
    before = os.umask(0)
    try:
        path = write(tmp_path / "r")
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    octets = path.read_bytes()
    with pytest.raises(RequestRefused, match="exists"):
        ReceiverWriter(path, HEADER)
    assert path.read_bytes() == octets


def test_metadata_hold_no_raw_key(tmp_path):
    seed = bytes(range(100, 132))
    with TransmitterWriter(tmp_path / "t", HEADER) as writer:
        writer.add_seed(1, seed)
        writer.finish(1, PULSES)
    octets = (tmp_path / "t").read_bytes()
    assert octets.count(seed) == 1, "in its column, and not again in a directory of smallest and largest values"
    footer = octets[-8 - int.from_bytes(octets[-8:-4], "little") :]
    assert seed not in footer
    assert seed.hex().encode() not in octets


def test_a_block_that_was_not_finished_is_marked_and_left_out(tmp_path):
    with ReceiverWriter(tmp_path / "r", HEADER) as writer:
        writer.add(1, *clicks(1))
        writer.add(2, *clicks(2))
        writer.finish(2, PULSES)
        writer.add(3, *clicks(3))
    found = read_receiver(tmp_path / "r")
    assert found.finished == (2,)
    assert [(entry.block, entry.rows, entry.pulses) for entry in found.blocks] == [
        (1, 1000, None),
        (2, 1000, PULSES),
        (3, 1000, None),
    ]
    assert np.array_equal(next(iter(found)).detections.positions, clicks(2)[0])
    with pytest.raises(RequestRefused, match="no finished block 1"):
        found.read(1)


def test_a_torn_file_is_refused_by_name(tmp_path):
    octets = write(tmp_path / "r").read_bytes()
    for length in (0, 3, 4, len(octets) // 2, len(octets) - 1):
        torn = tmp_path / f"torn-{length}"
        torn.write_bytes(octets[:length])
        with pytest.raises(RequestRefused, match=f"torn-{length}.*not a whole Parquet file"):
            read_receiver(torn)


def test_a_writer_that_dies_leaves_a_file_that_is_refused(tmp_path):
    path = tmp_path / "r"
    program = (
        "import os, numpy as np, msgspec, sys; from pathlib import Path; from qtrunk.sim import recording as r\n"
        "r.ROWS_PER_GROUP = 10\n"
        "w = r.ReceiverWriter(Path(sys.argv[1]), msgspec.json.decode(sys.argv[2], type=r.Header))\n"
        "p = np.arange(1000, dtype=np.uint64); z = np.zeros(1000, np.uint8)\n"
        "w.add(1, p, z, z, z, p.astype(np.int64) * 800); w.finish(1, 1000); os._exit(9)\n"
    )
    died = subprocess.run([sys.executable, "-c", program, path, msgspec.json.encode(HEADER)], check=False)
    assert died.returncode == 9
    with pytest.raises(RequestRefused, match="did not close it"):
        read_receiver(path)


def test_changed_octets_are_noticed(tmp_path):
    octets = bytearray(write(tmp_path / "r", blocks=(1,)).read_bytes())
    found = parquet.ParquetFile(tmp_path / "r").metadata.row_group(0).column(3)
    octets[found.data_page_offset + found.total_compressed_size // 2] ^= 4
    (tmp_path / "changed").write_bytes(octets)
    with pytest.raises(RequestRefused, match="changed"):
        read_receiver(tmp_path / "changed").read(1)


def changed(path, columns=None, meta=None, drop=(), key=recording.METADATA_KEY):
    """The recording with other columns or metadata, as some other program may write it."""
    table = parquet.read_table(path)
    told = json.loads(parquet.read_metadata(path).metadata[recording.METADATA_KEY]) | (meta or {})
    for name, column in (columns or {}).items():
        table = table.set_column(table.schema.get_field_index(name), name, pa.array(column))
    out = path.with_name("changed")
    parquet.write_table(table.drop_columns(list(drop)).replace_schema_metadata({key: json.dumps(told)}), out)
    return out


def replaced(index, value, column):
    column = column.copy()
    column[index] = value
    return column


POSITIONS, BASIS, BIT, DETECTORS, TIMES = clicks(1)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"columns": {"position": replaced(5, POSITIONS[4], POSITIONS)}}, "position: must ascend"),
        (
            {"columns": {"position": replaced(-1, PULSES, POSITIONS), "time_ps": replaced(-1, PULSES * 800, TIMES)}},
            f"position: {PULSES} of {PULSES} pulses",
        ),
        ({"columns": {"position": POSITIONS.astype(np.int64)}}, "column position: uint64"),
        ({"columns": {"basis": replaced(0, 2, BASIS)}}, "basis: 2"),
        ({"columns": {"bit": replaced(999, 7, BIT)}}, "bit: 7"),
        ({"columns": {"detector": replaced(50, 3, DETECTORS)}}, "detector: 3"),
        ({"columns": {"time_ps": replaced(50, TIMES[50] + 2000, TIMES)}}, "time_ps"),
        ({"columns": {"block": np.full(1000, 2, np.uint32)}}, "rows of another block"),
        ({"columns": {"bit": pa.array([None, *BIT[1:].tolist()], "uint8")}}, "column bit: has empty cells"),
        ({"drop": ["detector"]}, "column detector"),
        ({"key": b"other"}, "no qtrunk.recording"),
        ({"meta": {"version": 2}}, "version: 2"),
        ({"meta": {"format": "sender"}}, "format"),
        ({"meta": {"link": "no/link"}}, "link"),
        ({"meta": {"clock_hz": -1.0}}, "clock_hz"),
        ({"meta": {"intensities": [0.2, 0.5, 0.1]}}, "intensities"),
        ({"meta": {"intensities": []}}, "intensities"),
        ({"meta": {"probabilities": [0.5, 0.2, 0.1]}}, "probabilities"),
        ({"meta": {"probabilities": [0.5, 0.5]}}, "probabilities"),
        ({"meta": {"key_basis_probability": 1.0}}, "key_basis_probability"),
        ({"meta": {"made_unix_s": "yesterday"}}, "made_unix_s"),
        ({"meta": {"blocks": [{"block": 1, "rows": 999, "pulses": PULSES, "readings": {}}]}}, "rows: 999"),
        ({"meta": {"blocks": [{"block": 1, "rows": 1000, "pulses": -1, "readings": {}}]}}, "-1 pulses"),
        ({"meta": {"blocks": [{"block": 1 << 32, "rows": 1000, "pulses": 1, "readings": {}}]}}, "cannot follow"),
        ({"meta": {"blocks": 3}}, "blocks"),
    ],
)
def test_what_cannot_be_is_refused_with_file_and_field(tmp_path, change, why):
    path = changed(write(tmp_path / "r", blocks=(1,)), **change)
    with pytest.raises(RequestRefused, match=why) as refused:
        read_receiver(path).read(1)
    assert str(path) in str(refused.value)


def test_a_file_that_another_program_wrote_by_the_book_is_read(tmp_path):
    path = changed(write(tmp_path / "r", blocks=(1,)), columns={"bit": 1 - BIT}, meta={"source": "bench"})
    found = read_receiver(path)
    assert found.header.source == "bench"
    assert np.array_equal(found.read(1).detections.bit, 1 - BIT)


@pytest.mark.parametrize(
    ("columns", "why"),
    [
        ((POSITIONS[::-1].copy(), BASIS, BIT, DETECTORS, TIMES), "position"),
        ((POSITIONS, BASIS[1:], BIT, DETECTORS, TIMES), "unlike length"),
        ((POSITIONS.astype(np.int64), BASIS, BIT, DETECTORS, TIMES), "position"),
        ((POSITIONS, BASIS + np.uint8(2), BIT, DETECTORS, TIMES), "basis"),
        ((POSITIONS, BASIS, BIT, DETECTORS + np.uint8(1), TIMES), "detector"),
        ((POSITIONS, BASIS, BIT, DETECTORS, TIMES + 10_000), "time_ps"),
    ],
)
def test_a_writer_takes_nothing_that_a_reader_would_refuse(tmp_path, columns, why):
    with ReceiverWriter(tmp_path / "r", HEADER) as writer:
        with pytest.raises(RequestRefused, match=why):
            writer.add(1, *columns)
        writer.add(1, *clicks(1))
        with pytest.raises(RequestRefused, match="must ascend"):
            writer.add(1, *clicks(1))
        with pytest.raises(RequestRefused, match="pulses"):
            writer.finish(1, int(POSITIONS[-1]))
        with pytest.raises(RequestRefused, match="readings"):
            writer.finish(1, PULSES, {"monitor": object()})
        writer.finish(1, PULSES)
        with pytest.raises(RequestRefused, match="cannot follow"):
            writer.add(1, *clicks(1))
    assert len(read_receiver(tmp_path / "r").read(1).times_ps) == 1000


def test_seeds_and_settings_do_not_mix(tmp_path):
    with TransmitterWriter(tmp_path / "seeds", HEADER) as writer:
        with pytest.raises(RequestRefused, match="seed: none"):
            writer.finish(1, PULSES)
        with pytest.raises(RequestRefused, match="takes no settings"):
            writer.add(1, POSITIONS, Settings(intensity=BIT, basis=BASIS, bit=BIT))
        with pytest.raises(RequestRefused, match="32 octets"):
            writer.add_seed(2, bytes(31))
        writer.add_seed(2, bytes(32))
        with pytest.raises(RequestRefused, match="seed"):
            writer.add_seed(2, bytes(32))
    other = TransmitterWriter(tmp_path / "settings", HEADER, has_seeds=False)
    with pytest.raises(RequestRefused, match="seed"), other:
        other.add_seed(1, bytes(32))
    with pytest.raises(RequestRefused, match="the receiver's is needed"):
        read_receiver(tmp_path / "seeds")


def test_any_tool_reads_the_files(tmp_path):
    path = write(tmp_path / "r", blocks=(1,))
    table = parquet.read_table(path)
    assert table.column_names == ["block", "position", "basis", "bit", "detector", "time_ps"]
    assert np.array_equal(table["time_ps"].to_numpy(), TIMES)
    told = json.loads(parquet.read_metadata(path).metadata[b"qtrunk.recording"])
    assert told["format"] == "receiver"
    assert told["blocks"][0]["pulses"] == PULSES


def test_the_program_of_the_documentation_counts_clicks(tmp_path, monkeypatch):
    write(tmp_path / "link.receiver")
    monkeypatch.chdir(tmp_path)
    page = (Path(__file__).parents[2] / "docs" / "recordings.md").read_text()
    scope = {}
    exec(re.search(r"```python\n(.*?)```", page, re.DOTALL)[1], scope)
    assert scope["clicks"] == {1: 1000, 2: 1000, 5: 1000}
    assert scope["doubles"] == {block: int(np.sum(clicks(block)[3] == 2)) for block in (1, 2, 5)}
    assert scope["gain"][5] == 1000 / PULSES


def test_without_pyarrow_the_error_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ConfigError, match=r"qtrunk\[recordings\]"):
        ReceiverWriter(tmp_path / "r", HEADER)
    with pytest.raises(ConfigError, match=r"qtrunk\[recordings\]"):
        read_receiver(tmp_path / "r")


def test_memory_follows_a_block_and_not_the_file(tmp_path, monkeypatch):
    monkeypatch.setattr(recording, "ROWS_PER_GROUP", 50_000)
    tracemalloc = pytest.importorskip("tracemalloc")

    def peaks(blocks):
        path = tmp_path / str(blocks)
        tracemalloc.start()
        with ReceiverWriter(path, HEADER) as writer:
            for block in range(blocks):
                writer.add(block, *clicks(block, 20_000))
                writer.finish(block, PULSES)
        _, writing = tracemalloc.get_traced_memory()
        tracemalloc.reset_peak()
        assert sum(len(block.times_ps) for block in read_receiver(path)) == 20_000 * blocks
        _, reading = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return writing, reading

    few, many = peaks(6), peaks(24)
    assert all(later < 1.3 * first for first, later in zip(few, many, strict=True))
