"""Whatever the file holds, `load` gives a Topology that survives JSON, or a ConfigError with clean lines."""

import json
import string
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qtrunk.base.errors import ConfigError
from qtrunk.config import field, network, shortform, tenant, vendor
from qtrunk.topology import Topology

SEEDS = [path.read_text() for path in sorted((Path(__file__).parent / "good").glob("*.toml"))]
FUZZ = settings(
    max_examples=150, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck), database=None
)
KEYS = [
    *shortform.FILE_KEYS,
    *shortform.NODE_KEYS,
    *shortform.SAE_KEYS,
    *shortform.DEMAND_KEYS,
    *tenant.TENANT_KEYS,
    *vendor.SOURCE_KEYS,
    *vendor.VENDOR_KEYS,
    *vendor.END_KEYS,
    *field.LINK_KEYS,
    *("a", "b", "a-b", "b-c", "key_api", "nonsense", "", "a b"),
]
ODD_VALUES = [
    *("nan", "inf", "-inf", "-0.0", "1e400", "-1", "0", "8443", "true", "1979-05-27", "07:32:00"),
    *(
        '""',
        '"a"',
        '"b@a"',
        '"@"',
        '".."',
        '"\\u0000"',
        "[]",
        "[[]]",
        '["a"]',
        '[["a", "b"]]',
        "{}",
        "{ a = 1 }",
    ),
    *("[0.5, 0.1, 0]", "[1, 0, 0]", "[nan, nan, nan]", "0x" + "f" * 4000),
]


def judge(text: str) -> None:
    topology = None
    problems: list[str] = []
    try:
        topology = network.load(text)
    except ConfigError as error:
        problems = error.problems
    if topology is None:
        assert problems
        assert all(line.isprintable() for line in problems)
    else:
        assert Topology.from_dict(json.loads(json.dumps(network.describe(topology)))) == topology


def inline(value: object) -> str:
    """A value as TOML writes it on one line."""
    if isinstance(value, dict):
        pairs = (f"{json.dumps(key)} = {inline(item)}" for key, item in value.items())
        return "{ " + ", ".join(pairs) + " }"
    if isinstance(value, list):
        return "[" + ", ".join(inline(item) for item in value) + "]"
    return str(value)


names = st.sampled_from(['"a"', '"b"', '"c"', '"bank@a"', '"bank"', '"x\\u001b"'])
leaves = st.one_of(
    names,
    st.sampled_from(ODD_VALUES),
    st.integers(-(2**70), 2**70).map(str),
    st.floats(allow_nan=False, allow_infinity=False).map(repr),
)
values = st.recursive(
    leaves,
    lambda below: st.one_of(st.lists(below, max_size=4), st.dictionaries(st.sampled_from(KEYS), below, max_size=4)),
    max_leaves=12,
)


@FUZZ
@given(st.dictionaries(st.sampled_from(KEYS), values, max_size=8))
def test_any_document_gives_a_topology_or_a_list_of_problems(document: dict[str, object]) -> None:
    judge("\n".join(f"{json.dumps(key)} = {inline(value)}" for key, value in document.items()))


@FUZZ
@given(st.sampled_from(SEEDS), st.data())
def test_a_good_file_with_odd_values_gives_a_topology_or_a_list_of_problems(text: str, data: st.DataObject) -> None:
    lines = text.splitlines()
    settable = [index for index, line in enumerate(lines) if " = " in line]
    for index in data.draw(st.lists(st.sampled_from(settable), min_size=1, max_size=3)):
        key = lines[index].split(" = ")[0]
        lines[index] = f"{key} = {data.draw(st.sampled_from(ODD_VALUES))}"
    judge("\n".join(lines))


@FUZZ
@given(st.sampled_from(SEEDS), st.data())
def test_a_good_file_with_torn_text_gives_a_topology_or_a_list_of_problems(text: str, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, len(text)))
    length = data.draw(st.integers(0, 20))
    patch = data.draw(st.text(string.printable, max_size=6))
    judge(text[:start] + patch + text[start + length :])


@FUZZ
@given(st.text(max_size=60))
def test_any_text_gives_a_topology_or_a_list_of_problems(text: str) -> None:
    judge(text)
