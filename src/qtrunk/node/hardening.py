"""A node's memory is for the node alone: no core dumps, no ptrace(2) by its own user, pages of secrets locked.

To be called once, before any secret is made. `state` says, for the node's status, what of it is in force.

Sources: prctl(2) PR_SET_DUMPABLE, getrlimit(2) RLIMIT_CORE, RLIMIT_MEMLOCK and RLIMIT_NOFILE. Errors: LabError (the
system refused).
"""

import ctypes
import os
import resource
from dataclasses import asdict

from qtrunk.base import arena
from qtrunk.base.errors import LabError

_PR_GET_DUMPABLE, _PR_SET_DUMPABLE = 3, 4
_libc = ctypes.CDLL(None, use_errno=True)


def harden() -> None:
    """Forbid dumps and tracing; allow this process to lock, and to open, what its hard limits allow."""
    if _libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0) != 0:
        raise LabError(f"prctl(PR_SET_DUMPABLE): {os.strerror(ctypes.get_errno())}")
    try:
        # A pipe to a handler of cores (core(5)) does not mind this limit; that is what the flag above is for.
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        most = resource.getrlimit(resource.RLIMIT_MEMLOCK)[1]
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (most, most))
        # Strangers' handshakes hold files, too: they must not be what the store or a link can open no more.
        most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    except (OSError, ValueError) as error:
        raise LabError(f"setrlimit: {error}") from error


def state() -> dict[str, object]:
    """What is in force, as JSON values."""
    return {
        "is_dumpable": _libc.prctl(_PR_GET_DUMPABLE, 0, 0, 0, 0) != 0,
        "core_octets_max": resource.getrlimit(resource.RLIMIT_CORE)[0],
        "secrets": asdict(arena.state()),
    }
