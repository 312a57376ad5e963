"""Makes the helper module importable from the tests of this folder."""

import importlib.util
import sys
from pathlib import Path

_spec = importlib.util.spec_from_file_location("quantum_links", Path(__file__).parent / "links.py")
_module = importlib.util.module_from_spec(_spec)
sys.modules["quantum_links"] = _module
_spec.loader.exec_module(_module)
