"""The code checks itself: house rules that no linter knows."""

import ast
import re
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent.parent / "src" / "qtrunk"
MODULES = sorted(SOURCE.rglob("*.py"))
LINES_MAX = 620


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_a_module_says_what_it_is_for_and_is_not_too_long(path):
    text = path.read_text()
    assert ast.get_docstring(ast.parse(text))
    assert len(text.splitlines()) <= LINES_MAX


def test_nothing_is_left_to_do_and_no_key_lies_in_the_tree():
    for path in [*MODULES, *SOURCE.rglob("*.toml")]:
        text = path.read_text()
        assert not re.search(r"\b(TODO|FIXME|XXX)\b|NotImplementedError", text), path
        assert "PRIVATE KEY-----" not in text, path


@pytest.mark.parametrize(
    ("compiled", "module"), [("_kernels", "kernels.py"), ("_front", "front.py"), ("_load", "load.py")]
)
def test_only_one_module_knows_a_compiled_one(compiled, module):
    knowing = [path.name for path in MODULES if re.search(rf"(import|from)\s.*\b{compiled}\b", path.read_text())]
    assert knowing == [module]


def test_no_module_has_a_vague_name():
    vague = {"utils", "util", "helpers", "common", "core", "misc"}
    assert not vague & {path.stem for path in MODULES}


SIMULATED_DICE = {"sim/network", "plan/scale"}
"""Where chance is simulated: no secret of a real node comes from there."""


def test_secrets_come_from_the_system_and_simulated_dice_stay_with_the_light():
    for path in MODULES:
        if str(path.parent.relative_to(SOURCE)) in SIMULATED_DICE:
            continue
        text = path.read_text()
        assert not re.search(r"^\s*(import random|from random)\b|numpy\.random|np\.random", text, re.MULTILINE), path
        if path.parent.name not in ("sim", "quantum", "bench") and path.name != "kernels.py":
            assert "new_rng" not in text, path
