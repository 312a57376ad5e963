"""Fixtures of the lab tests; the lab itself is in lab_kit."""

import datetime as dt
import importlib.util
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

_spec = importlib.util.spec_from_file_location("lab_kit", Path(__file__).parent / "lab_kit.py")
lab_kit = importlib.util.module_from_spec(_spec)
sys.modules["lab_kit"] = lab_kit
_spec.loader.exec_module(lab_kit)
LabHandle = lab_kit.LabHandle


@pytest.fixture(scope="session")
def short_directory() -> Iterator[Path]:
    """Unix sockets need short paths."""
    with tempfile.TemporaryDirectory(prefix="qt") as directory:
        yield Path(directory)


@pytest.fixture(scope="session")
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
