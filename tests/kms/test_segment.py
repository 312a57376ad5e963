"""A segment gives back what was written, octet for octet, until it is shredded or damaged."""

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kms_kit import KEK_OCTETS, LINK, material_of

from qtrunk.base.errors import StoreError
from qtrunk.base.ids import LinkId, NodeId
from qtrunk.base.secret import Secret
from qtrunk.kms.segment import PIECE_OCTETS, SegmentDamagedError, Segments

OCTETS = 3 * PIECE_OCTETS + 100


@pytest.fixture
def segments(memory_path: Path) -> Segments:
    made = Segments(memory_path / "segments", NodeId("a"), Secret(KEK_OCTETS))
    made.write(LINK, 1, Secret(material_of(1, OCTETS)))
    return made


def read(segments: Segments, block: int, offset: int, length: int) -> bytes:
    into = bytearray(length)
    segments.read(LINK, block, offset, memoryview(into))
    return bytes(into)


def only_file(path: Path) -> Path:
    (file,) = (path / "segments").iterdir()
    return file


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_octets_of_a_block_can_be_read(segments: Segments, data: st.DataObject) -> None:
    offset = data.draw(st.integers(0, OCTETS - 1))
    length = data.draw(st.integers(1, OCTETS - offset))
    assert read(segments, 1, offset, length) == material_of(1, OCTETS)[offset : offset + length]


def test_a_shredded_segment_is_gone_and_its_header_was_overwritten(segments: Segments, memory_path: Path) -> None:
    file = only_file(memory_path)
    other_name = memory_path / "kept"
    other_name.hardlink_to(file)
    before = other_name.read_bytes()
    segments.shred(LINK, 1)
    assert not file.exists()
    assert other_name.read_bytes()[:92] == bytes(92)
    assert before[:92] != bytes(92)
    with pytest.raises(SegmentDamagedError):
        read(segments, 1, 0, 1)
    segments.shred(LINK, 1)


@pytest.mark.parametrize("position", [0, 9, 20, 60, 91, 92, 92 + PIECE_OCTETS, -1])
def test_a_segment_with_one_octet_changed_is_noticed(segments: Segments, memory_path: Path, position: int) -> None:
    file = only_file(memory_path)
    octets = bytearray(file.read_bytes())
    octets[position] ^= 1
    file.write_bytes(octets)
    with pytest.raises(SegmentDamagedError):
        read(segments, 1, 0, OCTETS)


@pytest.mark.parametrize("left", [0, 50, 92, 5000])
def test_a_segment_cut_short_is_noticed(segments: Segments, memory_path: Path, left: int) -> None:
    file = only_file(memory_path)
    file.write_bytes(file.read_bytes()[:left])
    with pytest.raises(SegmentDamagedError):
        read(segments, 1, 0, OCTETS)


def test_a_segment_does_not_open_as_another_block_or_node(segments: Segments, memory_path: Path) -> None:
    file = only_file(memory_path)
    file.rename(file.with_name(f"{LINK}.2.seg"))
    with pytest.raises(SegmentDamagedError):
        read(segments, 2, 0, 1)
    file.with_name(f"{LINK}.2.seg").rename(file)
    with pytest.raises(SegmentDamagedError):
        read(Segments(memory_path / "segments", NodeId("b"), Secret(KEK_OCTETS)), 1, 0, 1)


def test_nothing_beyond_the_material_can_be_read(segments: Segments) -> None:
    with pytest.raises(SegmentDamagedError):
        read(segments, 1, OCTETS - 1, 2)


def test_a_segment_is_never_written_over(segments: Segments) -> None:
    with pytest.raises(FileExistsError):
        segments.write(LINK, 1, Secret(bytes(10)))
    assert read(segments, 1, 0, OCTETS) == material_of(1, OCTETS)


@pytest.mark.parametrize("link", ["", "../x", "a/b", ".hidden", "a" * 300])
def test_a_link_name_cannot_leave_the_directory(segments: Segments, link: str) -> None:
    with pytest.raises(StoreError):
        segments.write(LinkId(link), 1, Secret(bytes(10)))


def test_a_foreign_file_among_segments_is_not_touched(segments: Segments, memory_path: Path) -> None:
    assert segments.present() == {(LINK, 1)}
    (memory_path / "segments" / "notes.txt").write_text("x")
    with pytest.raises(StoreError, match=r"notes\.txt"):
        segments.present()


def test_a_piece_that_nobody_reads_is_overwritten_and_read_again_when_it_is_needed(segments: Segments) -> None:
    reader = segments.reader(LINK, 1)
    wanted = material_of(1, OCTETS)[64:160]
    (first,) = reader.secrets(64, 96, 96, 1)
    reader.rest()
    assert bytes(reader._octets[64:160]) == bytes(first.reveal()) == wanted
    reader.rest()
    assert bytes(reader._octets) == bytes(PIECE_OCTETS)
    keys = reader.secrets(64, 32, 32, 3)
    assert b"".join(bytes(key.reveal()) for key in keys) == wanted
    reader.close()
