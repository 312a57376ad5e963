"""The simulated disk: what a flush that failed has lost stays lost, but where it was written anew since."""

import os

import pytest

from qtrunk.sim.network.dice import Dice
from qtrunk.sim.network.disk import SECTOR_OCTETS, Disk, Disks
from qtrunk.sim.network.machine import Machine

SECTORS = 16
OLD, NEW, ANEW = (bytes([octet]) * SECTOR_OCTETS for octet in (1, 2, 3))


def test_what_a_failed_flush_lost_is_on_the_disk_once_it_was_written_anew(tmp_path):
    root = tmp_path / "a"
    root.mkdir()
    disk, disks = Disk(root, Machine("a", lambda _machine: None), Dice("disk"), lambda _what: None), Disks()
    disks.add(disk)
    files = disks.files
    handle = files.open(root / "file", os.O_RDWR | os.O_CREAT)

    def write(octets, sectors):
        for sector in sectors:
            files.pwrite(handle, octets, sector * SECTOR_OCTETS)

    write(OLD, range(SECTORS))
    files.fsync(handle)
    directory = files.open(root, os.O_RDONLY | os.O_DIRECTORY)
    files.fsync(directory)
    write(NEW, range(SECTORS))
    disk.error_probability = 1.0
    with pytest.raises(OSError, match="simulated"):
        files.fsync(handle)
    disk.error_probability = 0.0
    write(ANEW, range(SECTORS // 2))
    files.fsync(handle)
    disk.copy_to(tmp_path / "copy", is_power_loss=True)
    files.close_all()
    octets = (tmp_path / "copy" / "file").read_bytes()
    found = [octets[at : at + SECTOR_OCTETS] for at in range(0, len(octets), SECTOR_OCTETS)]
    assert found[: SECTORS // 2] == [ANEW] * (SECTORS // 2)
    # Each of the others was lost or not, by the dice: none of 8 or all of them once in 128 seeds.
    assert {*found[SECTORS // 2 :]} == {OLD, NEW}
