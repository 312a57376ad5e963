"""The parser in docs/sealed-file.md opens what sealing writes."""

import io
import os
import re
from pathlib import Path

from qtrunk.base.ids import KeyId, SaeId
from qtrunk.base.secret import Secret
from qtrunk.gateway import sealedfile


def test_the_parser_of_the_documentation_opens_a_file():
    page = (Path(__file__).parents[2] / "docs" / "sealed-file.md").read_text()
    scope: dict = {}
    exec(re.search(r"```python\n(.*?)```", page, re.DOTALL)[1], scope)
    for size in (0, 5, sealedfile.CHUNK_OCTETS + 3):
        octets, key, sealed = os.urandom(size), os.urandom(32), io.BytesIO()
        key_id = KeyId("7a8a2fd6-2d2c-4a0e-8f0a-3d1f5f0b9c11")
        sealedfile.seal(io.BytesIO(octets), sealed, key_id, Secret(key), SaeId("a"), SaeId("b"))
        assert scope["opened"](sealed.getvalue(), key) == octets
