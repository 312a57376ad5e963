"""What a topology file says about the key interface: how certificates name SAEs, and the switches of `[key_api]`."""

from collections.abc import Mapping, Sequence

import msgspec

from qtrunk.base.errors import RequestRefused
from qtrunk.base.ids import SaeId, parse_identity
from qtrunk.config.field import Entry, Range
from qtrunk.config.problem import quoted, shown
from qtrunk.topology import KeyApi, Sae

KEY_API_KEYS = KeyApi.__dataclass_fields__
IDENTITIES_MAX = 16
CERTIFICATES_MAX = 4
"""Of one SAE: as many as the boxes in the field can hold."""
RETRY_WINDOW = Range(0, 600, "s")


def key_api(entry: Entry) -> KeyApi:
    """Read `[key_api]`; what is missing or wrong has its default."""
    given = {key: entry.choice(key, (False, True)) for key in ("strict", "edition2", "loopback_test")}
    given["not_found_status"] = entry.choice("not_found_status", (400, 404))
    given["retry_window_s"] = entry.number("retry_window_s", RETRY_WINDOW)
    return msgspec.convert({key: value for key, value in given.items() if value is not None}, KeyApi)


def identities(entry: Entry) -> tuple[str, ...]:
    """An SAE's `identities` in canonical form; those with mistakes are left out."""
    found: list[str] = []
    items = entry.items("identities") or ()
    if len(items) > IDENTITIES_MAX:
        entry.wrong("identities", f"{len(items)} given; an SAE has at most {IDENTITIES_MAX}")
        return ()
    for index, item in enumerate(items):
        if not isinstance(item, str):
            entry.wrong_item("identities", index, f"{shown(item)} is not text")
            continue
        try:
            identity = parse_identity(item)
        except RequestRefused as error:
            entry.wrong_item("identities", index, f"{quoted(item)}: {error}")
            continue
        if identity in found:
            entry.wrong_item("identities", index, f"{quoted(item)} is given twice")
        found.append(identity)
    if sum(identity.startswith("sha256:") for identity in found) > CERTIFICATES_MAX:
        entry.wrong(
            "identities", f"more than {CERTIFICATES_MAX} fingerprints; an SAE has at most that many certificates"
        )
    return tuple(found)


def check_unambiguous(saes: Sequence[Sae], entries: Mapping[SaeId, Entry]) -> None:
    """No certificate may speak for two SAEs: every identity has one owner, IDs that stand for themselves included.

    Noted where it is listed. IDs that differ in case only are nobody's mistake; a DNS name that fits both fits none.
    """
    listed = {identity: sae.id for sae in saes for identity in sae.identities}
    for sae in saes:
        for identity in sae.claims():
            lister = listed.get(identity, sae.id)
            if lister != sae.id:
                entries[lister].wrong(
                    "identities",
                    f"{quoted(identity)} stands for {quoted(sae.id)}, too; a certificate speaks for one SAE",
                )
