"""Observations of blocks as a JSON document: what `qtrunk rate --observed` reads.

One object or a list of them. Fields, all needed (others are passed over): `intensities` (mean photon numbers, strongest
first) and `probabilities` of as many levels as the proof is for; `n_Z`, `m_Z`, `n_X`, `m_X`: detections and errors by
intensity in the key basis Z and the test basis X; `leak_bits`: said in public to reconcile, the verification tag apart;
`eps_sec`, `eps_cor`. Every mistake in the document is found at once, each with file, index and field.
"""

import json
from collections.abc import Mapping
from math import fsum, isfinite

from qtrunk.base.errors import ConfigError
from qtrunk.distil.decoy import check_levels
from qtrunk.distil.keylength import EPS_MIN
from qtrunk.distil.proofs import PROOFS, Observed

LISTS = ("intensities", "probabilities", "n_Z", "m_Z", "n_X", "m_X")
NUMBERS = ("leak_bits", "eps_sec", "eps_cor")
SUM_TOLERANCE = 1e-9
"""Of the probabilities, against 1: decimal fractions do not add up to the last bit."""


def read(text: str, name: str, proof: str) -> tuple[list[Observed], bool]:
    """The blocks of a document for one proof, and whether it was a list; ConfigError with every mistake.

    `name` is what the user called the document.
    """
    try:
        document = json.loads(text, object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:
        raise ConfigError([f"{name}: not a JSON document: {error}"]) from None
    is_list = isinstance(document, list)
    problems: list[str] = []
    blocks = []
    for index, block in enumerate(document if is_list else [document]):
        where = f"{name}: [{index}]" if is_list else name
        found, wrong = _block(block, proof)
        problems += [f"{where}{'.' if is_list else ': '}{problem}" for problem in wrong]
        if found is not None:
            blocks.append(found)
    if problems:
        raise ConfigError(problems)
    return blocks, is_list


def _once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """An object without a field that comes twice: which of the two would be meant?"""
    made = dict(pairs)
    if len(made) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"field {next(n for n in names if names.count(n) > 1)!r} comes twice in one object")
    return made


def _block(block: object, proof: str) -> tuple[Observed | None, list[str]]:
    """One block, or what is wrong with it."""
    if not isinstance(block, Mapping):
        return None, ["an object with the counts of a block is needed" if block is not None else "null is no block"]
    problems = [f"{field}: missing" for field in (*LISTS, *NUMBERS) if field not in block]
    levels = PROOFS[proof].levels
    lists = {field: _numbers(block[field], levels, proof, field, problems) for field in LISTS if field in block}
    numbers = {field: _number(block[field], field, problems) for field in NUMBERS if field in block}
    if not problems:
        _check_source(lists["intensities"], lists["probabilities"], problems)
        for basis in "ZX":
            for level, (count, errors) in enumerate(zip(lists[f"n_{basis}"], lists[f"m_{basis}"], strict=True)):
                if errors > count:
                    problems.append(f"m_{basis}[{level}]: {errors:g} errors among n_{basis}[{level}] = {count:g}")
        if not EPS_MIN <= numbers["eps_sec"] < 1:
            problems.append(f"eps_sec: {numbers['eps_sec']:g} is not from {EPS_MIN:g} to below 1")
        if not 0 < numbers["eps_cor"] < 1:
            problems.append(f"eps_cor: {numbers['eps_cor']:g} is not between 0 and 1, both excluded")
    if problems:
        return None, problems
    return Observed(
        intensities=lists["intensities"],
        probabilities=lists["probabilities"],
        key_counts=lists["n_Z"],
        key_errors=lists["m_Z"],
        test_counts=lists["n_X"],
        test_errors=lists["m_X"],
        leak_bits=numbers["leak_bits"],
        eps_sec=numbers["eps_sec"],
        eps_cor=numbers["eps_cor"],
    ), []


def _check_source(intensities: tuple[float, ...], probabilities: tuple[float, ...], problems: list[str]) -> None:
    try:
        check_levels(intensities)
    except ValueError as error:
        problems.append(f"{error}; {list(intensities)} came")
    problems += [f"probabilities[{i}]: {p:g} is not above 0" for i, p in enumerate(probabilities) if p <= 0]
    if abs(fsum(probabilities) - 1) > SUM_TOLERANCE:
        problems.append(f"probabilities: they add up to {fsum(probabilities):.12g}, not to 1")


def _numbers(value: object, levels: int, proof: str, field: str, problems: list[str]) -> tuple[float, ...]:
    """A list of one number for each intensity."""
    if not isinstance(value, list):
        problems.append(f"{field}: a list of {levels} numbers is needed")
        return ()
    if len(value) != levels:
        problems.append(f"{field}: {len(value)} entries; {proof} is for {levels} intensities")
    return tuple(_number(entry, f"{field}[{at}]", problems) for at, entry in enumerate(value))


def _number(value: object, field: str, problems: list[str]) -> float:
    """A finite number that is not negative."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        problems.append(f"{field}: {json.dumps(value)[:40]} is not a number")
        return 0.0
    try:
        number = float(value)
    except OverflowError:
        number = float("inf")
    if not isfinite(number):
        problems.append(f"{field}: {str(value)[:40]} is not a finite number")
    elif number < 0:
        problems.append(f"{field}: {value} is negative")
    return number
