"""A search by a process of its own (`plan.search`): what is asked goes in, what was found comes out."""

import asyncio
import os
import sys
from asyncio.subprocess import PIPE

from qtrunk.base.errors import QtrunkError

TIMEOUT_S = 1800.0
"""Searches of one machine wait for each other."""


class SearchFailed(QtrunkError):
    """A search gave no answer, and why; what was known before goes on."""


async def search(name: str, question: bytes) -> bytes:
    """The answer of the search `name`, JSON; SearchFailed."""
    process = None
    try:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "qtrunk.plan.search", name, str(os.getpid())), stdin=PIPE, stdout=PIPE, stderr=PIPE
        )
        async with asyncio.timeout(TIMEOUT_S):
            answer, errors = await process.communicate(question)
    except (OSError, TimeoutError) as error:
        raise SearchFailed(f"{type(error).__name__}: {error}") from error
    finally:
        if process is not None and process.returncode is None:
            process.kill()
    if process.returncode:
        raise SearchFailed(errors.decode(errors="replace")[-500:])
    return answer
