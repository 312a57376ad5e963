"""One-time-pad files: every octet of key once, none in vain, and the user knows beforehand."""

import dataclasses
import io
import os
import threading

import pytest

from qtrunk.base.errors import KeyExhausted, SealedFileError
from qtrunk.base.ids import SaeId
from qtrunk.gateway import files, onetimepad, sealedfile

BANK, VAULT = SaeId("bank"), SaeId("vault")


def test_the_one_time_pad_says_what_it_needs_and_waits_for_it(desk):
    desk.network.pool_bits = 8192 * 8
    desk.network.fill_bps = 10_000.0
    refill = threading.Timer(0.5, lambda: setattr(desk.network, "pool_bits", 8192 * 200))
    refill.start()
    octets = os.urandom(100_000)
    desk.seal(octets, otp=True)
    refill.join()
    (said,) = desk.said
    assert "802816 key bits are needed, 65536 are there; enough in about 74 s" in said
    assert desk.open() == octets


def test_without_key_the_one_time_pad_gives_up_and_leaves_nothing(desk):
    desk.network.pool_bits = desk.network.fill_bps = 0
    with pytest.raises(KeyExhausted):
        files.seal_file_otp(
            desk.plain_of(b"x"), desk.sealed, desk.network, BANK, VAULT, desk.said.append, patience_s=1.5
        )
    assert "not known" in desk.said[0]
    assert desk.network.given == 0
    assert {path.name for path in desk.directory.iterdir()} == {"plain"}


def test_too_large_a_file_for_a_one_time_pad_is_refused(desk):
    with pytest.raises(SealedFileError, match="AES-256-GCM"):
        onetimepad.need(onetimepad.SIZE_MAX + 1, desk.network.status(None))


def test_no_octet_of_a_one_time_pad_is_used_twice(desk):
    octets = bytes(30_000)
    sealed = desk.seal(octets, otp=True)
    # Of zeros the ciphertext is the pad itself: no 16 octets of it may come back.
    header = sealedfile.read_header(io.BytesIO(sealed))
    pad = sealed[len(header.octets) : -16]
    pieces = [pad[at : at + 16] for at in range(0, len(pad) - 15, 16)]
    assert len(set(pieces)) == len(pieces)


def test_a_wait_in_vain_costs_no_key_and_is_told_while_it_lasts(desk):
    desk.network.pool_bits = 8192 * 8
    seen = []
    with pytest.raises(KeyExhausted, match="none was used"):
        files.seal_file_otp(
            desk.plain_of(bytes(100_000)),
            desk.sealed,
            desk.network,
            BANK,
            VAULT,
            desk.said.append,
            patience_s=0.2,
            progress=lambda *bits: seen.append(bits),
        )
    assert set(seen) == {(8192 * 8, 802_816)}
    assert desk.network.given == 0


def test_more_keys_than_a_key_manager_gives_at_once_are_collected_in_batches(desk):
    octets = os.urandom(20_000)
    desk.seal(octets, otp=True)
    desk.network.per_request_max = 3
    assert desk.open() == octets


def test_a_header_that_could_not_be_read_again_is_never_written(desk):
    status = dataclasses.replace(desk.network.status(None), key_bits_max=256)
    most = onetimepad.need(3_000_000, status)
    assert onetimepad.header_octets_max(most.count) <= sealedfile.HEADER_OCTETS_MAX
    with pytest.raises(SealedFileError, match="too many for one file"):
        onetimepad.need(4_000_000, status)


def test_a_key_manager_without_whole_octets_is_refused(desk):
    status = dataclasses.replace(desk.network.status(None), key_bits_min=4, key_bits_max=7)
    with pytest.raises(SealedFileError, match="none of whole octets"):
        onetimepad.need(1, status)


@pytest.mark.parametrize("size", [0, 1, 991, 992, 993, 100_000, onetimepad.SIZE_MAX])
def test_what_is_needed_covers_pad_and_tag_and_no_key_is_idle(desk, size):
    wanted = onetimepad.need(size, desk.network.status(None))
    assert wanted.bits >= 8 * (32 + size) > wanted.bits - wanted.key_bits
