"""Staying with the parent process: what a lab's processes do so that a killed lab leaves nothing running. Linux.

Source: prctl(2) PR_SET_PDEATHSIG and PR_SET_NAME.
"""

import ctypes
import os
import signal

from qtrunk.base.errors import LabError

_PR_SET_PDEATHSIG, _PR_SET_NAME = 1, 15
_NAME_OCTETS = 15


def name_process(name: str) -> None:
    """What `ps -e` and `top` call this process: the first octets of `name`."""
    ctypes.CDLL(None).prctl(_PR_SET_NAME, name.encode()[:_NAME_OCTETS], 0, 0, 0)


def die_with_parent(parent_pid: int) -> None:
    """Ask the kernel for SIGTERM when the parent dies; LabError if it is gone already."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0) != 0:
        raise LabError(f"prctl(PR_SET_PDEATHSIG): {os.strerror(ctypes.get_errno())}")
    if os.getppid() != parent_pid:
        # The parent went between our start and the call above: the signal would never come.
        raise LabError("who started this process is gone")
