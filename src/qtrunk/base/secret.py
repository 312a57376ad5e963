"""Secret octets: shown never by accident, compared in constant time, wiped after use."""

import hmac
from typing import NoReturn


class Secret:
    """Owns a mutable copy of secret octets.

    `reveal()` is the only reader, so a search for it lists every use of key material. CPython may
    keep copies that a library made from what `reveal()` returned; docs/security.md says what is
    beyond us.
    """

    __slots__ = ("_octets",)

    def __init__(self, octets: bytes | bytearray | memoryview) -> None:
        self._octets = bytearray(octets)

    def reveal(self) -> memoryview:
        """The octets themselves, read-only, without a copy. Do not keep the view."""
        return memoryview(self._octets).toreadonly()

    def wipe(self) -> None:
        """Overwrite the octets with zeros; the length stays."""
        self._octets[:] = bytes(len(self._octets))

    def __len__(self) -> int:
        return len(self._octets)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Secret):
            return NotImplemented
        return hmac.compare_digest(self._octets, other._octets)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"Secret({len(self._octets)} octets)"

    __str__ = __repr__

    def __reduce__(self) -> NoReturn:
        raise TypeError("a Secret is never pickled or copied")

    def __del__(self) -> None:
        if not hasattr(self, "_octets"):
            return
        try:
            # Fails while a view from reveal() lives: `give().reveal()` must not turn to zeros under its reader.
            self._octets.append(0)
        except BufferError:
            return
        self._octets[:] = bytes(len(self._octets))
