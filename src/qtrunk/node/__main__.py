"""One trusted node as a process: `python -m qtrunk.node --config FILE [--parent PID] [--sealed]`."""

import argparse
import asyncio
import contextlib
import logging
import logging.handlers
import os
import signal
import sys
from functools import partial
from pathlib import Path

import uvloop

from qtrunk.base.parent import die_with_parent
from qtrunk.node.config import load
from qtrunk.node.custody import Custody
from qtrunk.node.hardening import harden

LOG_OCTETS_MAX = 4 << 20
SWITCH_INTERVAL_S, BUSY_SWITCH_INTERVAL_S = 0.0002, 0.002
"""A thread that waits for the interpreter asks for it so often. The event loop answers applications while link workers
compute, and must not wait 5 ms for its turn each time. But where the one that has the interpreter waits for a core
itself, asking so often costs a busy machine of many nodes more than the waiting does.
"""
BUSY = 4.0
"""A machine is busy from so many runnable threads a core on."""
LOOK_S = 5.0


async def _keep_switching() -> None:
    """Let threads ask for the interpreter as often as the machine can bear, for ever."""
    while True:
        is_busy = os.getloadavg()[0] > BUSY * (os.cpu_count() or 1)
        sys.setswitchinterval(BUSY_SWITCH_INTERVAL_S if is_busy else SWITCH_INTERVAL_S)
        await asyncio.sleep(LOOK_S)


async def _run(config_path: Path, *, is_held: bool) -> bool:
    """Until told to stop; whether an officer has sealed the node."""
    custody = Custody(load(config_path), is_held=is_held, reread=partial(load, config_path))
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    await custody.start()
    switching = asyncio.create_task(_keep_switching())
    try:
        await custody.run_until(stop)
    finally:
        switching.cancel()
        await custody.stop()
    return custody.is_sealing.is_set()


def main() -> None:
    """Run the node until told to stop."""
    parser = argparse.ArgumentParser(description="one trusted node of a quantum-secured network")
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--parent", type=int, help="stop when this process is gone")
    parser.add_argument("--sealed", action="store_true", help="stay sealed, whatever could unseal without people")
    options = parser.parse_args()
    harden()
    if options.parent is not None:
        die_with_parent(options.parent)
    handler = logging.handlers.RotatingFileHandler(
        options.config.parent / "node.log", maxBytes=LOG_OCTETS_MAX, backupCount=3
    )
    logging.basicConfig(level=logging.INFO, handlers=[handler], format="%(asctime)s %(levelname)s %(name)s %(message)s")
    with contextlib.suppress(KeyboardInterrupt):
        if uvloop.run(_run(options.config, is_held=options.sealed)):
            arguments = ["--config", str(options.config), "--sealed"]
            if options.parent is not None:
                arguments += ["--parent", str(options.parent)]
            # Not one octet of this process's memory is the next one's.
            os.execv(sys.executable, [sys.executable, "-m", "qtrunk.node", *arguments])  # noqa: S606


if __name__ == "__main__":
    main()
