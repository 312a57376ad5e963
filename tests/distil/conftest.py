"""Makes the helper module importable from the tests of this folder."""

import importlib.util
import sys
from pathlib import Path

_spec = importlib.util.spec_from_file_location("distil_link", Path(__file__).parent / "link.py")
_module = importlib.util.module_from_spec(_spec)
sys.modules["distil_link"] = _module
_spec.loader.exec_module(_module)
