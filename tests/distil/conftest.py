"""Makes the helper modules importable from the tests of this folder."""

import importlib.util
import sys
from pathlib import Path

for _name, _file in (("distil_link", "link.py"), ("proof_kit", "proof_kit.py")):
    _spec = importlib.util.spec_from_file_location(_name, Path(__file__).parent / _file)
    _module = importlib.util.module_from_spec(_spec)
    sys.modules[_name] = _module
    _spec.loader.exec_module(_module)
