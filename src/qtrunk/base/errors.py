"""Every error qtrunk raises on purpose, drawn once.

    QtrunkError
    ├── ConfigError            a topology file or option is wrong; carries every problem found
    ├── WireError              octets from a peer are not a valid message
    ├── AuthenticationFailed   a tag, certificate or identity does not verify
    ├── BlockAborted           a block of key must be destroyed; carries the reason
    ├── KeyExhausted           not enough key now; carries when to try again
    ├── BudgetSpent            a link's epsilons would add up to more than the operator allows
    ├── KeyNotFound            a key ID is unknown, spent, expired or voided here
    ├── NotAuthorised          this SAE may not do this
    ├── RequestRefused         the request itself is wrong
    ├── RouteUnavailable       no usable way over the network to a node
    ├── StoreError             the key store cannot record what it must record
    ├── DeviceError            a QKD module does not answer as it must
    ├── RandomnessFailed       the random number generator fails its health tests
    ├── SealedFileError        a protected file is not what was sealed
    └── LabError               the processes of a lab cannot be started, reached or stopped

A message says what failed, on which object, why, and the fix. It never holds key material.
"""


class QtrunkError(Exception):
    """Something went wrong that qtrunk knows about."""


class ConfigError(QtrunkError):
    """A topology file or an option is wrong; `problems` has one line for each mistake."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = list(problems)


class WireError(QtrunkError):
    """Octets from a peer are not a valid message of this protocol version."""


class AuthenticationFailed(QtrunkError):
    """A tag, a certificate or an identity does not verify."""


class BlockAborted(QtrunkError):
    """A block of key is in doubt and must be destroyed at both ends.

    `cause` is one word for the alarm (`qber`, `authentication`, `verification`, `no-key`, `protocol`,
    `leak-budget`, `epsilon`); the text says why.
    """

    def __init__(self, cause: str, why: str) -> None:
        super().__init__(why)
        self.cause = cause


class KeyExhausted(QtrunkError):
    """There is not enough key now; try again after `retry_after_s` seconds."""

    def __init__(self, why: str, retry_after_s: int = 1) -> None:
        super().__init__(why)
        self.retry_after_s = retry_after_s


class BudgetSpent(QtrunkError):
    """What may go wrong on a link would add up to more than the operator allows: no key is made until they do."""


class KeyNotFound(QtrunkError):
    """A key ID is unknown, already delivered, expired or voided at this node."""


class KeyPending(KeyNotFound):
    """A block of link key is not released at this node yet; the neighbour is a moment ahead."""


class NotAuthorised(QtrunkError):
    """This SAE may not do what it asked for."""


class RequestRefused(QtrunkError):
    """The request itself is wrong; the text says which field and what is allowed."""


class RouteUnavailable(QtrunkError):
    """There is no usable route over the network to the node that serves an SAE."""


class StoreError(QtrunkError):
    """The key store cannot record what must be recorded first, so nothing goes out."""


class RandomnessFailed(QtrunkError):
    """The random number generator fails its health tests; nothing secret may be made of it."""


class DeviceError(QtrunkError):
    """A QKD module (or its stand-in) does not answer as it must."""


class SealedFileError(QtrunkError):
    """A protected file is not, octet for octet, what was sealed for this SAE."""


class LabError(QtrunkError):
    """The processes of a lab cannot be started, reached or stopped."""
