"""One lab for all tests in this folder; it is down before others run labs of their own."""

import datetime as dt
from collections.abc import Iterator
from pathlib import Path

import lab_kit
import pytest
from lab_kit import LabHandle


@pytest.fixture(scope="package")
def running_small_lab(short_directory: Path) -> Iterator[LabHandle]:
    """Three nodes in a row, two links; tests must leave it in service."""
    handle = lab_kit.start(short_directory, "small", lab_kit.SMALL_TRUNK)
    try:
        handle.wait_for_keys()
        yield handle
    finally:
        lab_kit.stop(handle)


@pytest.fixture
def small_lab(running_small_lab: LabHandle) -> Iterator[LabHandle]:
    """The shared lab; what a test opened is closed behind it."""
    yield running_small_lab
    running_small_lab.close_clients()


@pytest.fixture
def foreign_certificate():
    """Makes certificates that a lab must not take: of another CA, or its own but expired."""

    def make(handle: LabHandle, directory: Path, kind: str) -> tuple[Path, Path]:
        from qtrunk.node import pki
        from qtrunk.node.ca import certificates
        from qtrunk.node.ca.identity import Kind

        if kind == "foreign":
            made = pki.LabPki(directory / "other-ca").credentials(directory / "foreign", Kind.SAE, "bank")
            return made.certificate, made.private_key
        authority = pki.LabPki(handle.state / "pki")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(pki, "LEAF_DAYS", -1)
            patch.setattr(certificates, "BACKDATE", dt.timedelta(days=2))
            made = authority.credentials(directory / "expired", Kind.SAE, "bank")
        return made.certificate, made.private_key

    return make
