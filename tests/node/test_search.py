"""Searches in a process of their own: answered, failed, and gone with the node that asks."""

import asyncio
import os
import subprocess
import sys

import msgspec
import pytest

from qtrunk.node.search import SearchFailed, search
from qtrunk.plan.light import Expectation


def test_a_search_answers():
    found = asyncio.run(search("expect", b"[]"))
    assert msgspec.json.decode(found, type=list[Expectation]) == []


def test_a_question_that_it_cannot_read_is_an_error_that_says_so():
    with pytest.raises(SearchFailed, match="ValidationError"):
        asyncio.run(search("expect", b'{"no": "links"}'))


def test_a_search_without_its_node_does_not_begin():
    done = subprocess.run(
        [sys.executable, "-m", "qtrunk.plan.search", "expect", str(os.getppid())],
        input=b"[]",
        capture_output=True,
        check=False,
    )
    assert done.returncode != 0
    assert done.stdout == b""
    assert b"who started this process is gone" in done.stderr
