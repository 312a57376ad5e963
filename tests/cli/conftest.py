"""Fixtures of the doctor's tests; the lab itself is in doctor_kit."""

import importlib.util
import sys
import tempfile
from pathlib import Path

import pytest

_spec = importlib.util.spec_from_file_location("doctor_kit", Path(__file__).parent / "doctor_kit.py")
doctor_kit = importlib.util.module_from_spec(_spec)
sys.modules["doctor_kit"] = doctor_kit
_spec.loader.exec_module(doctor_kit)


@pytest.fixture(scope="session")
def lab_directory():
    """Unix sockets need short paths."""
    with tempfile.TemporaryDirectory(prefix="qt") as directory:
        yield Path(directory)


@pytest.fixture
def tmp_path():
    """Unix sockets need short paths."""
    with tempfile.TemporaryDirectory(prefix="qt") as directory:
        yield Path(directory)


@pytest.fixture
def lab(lab_directory):
    """Two nodes, two SAEs, on the disk only, as good as new."""
    return doctor_kit.restored(lab_directory)


@pytest.fixture
def site(lab):
    from qtrunk.cli.doctor.site import Site

    return Site.of_lab(lab.state)
