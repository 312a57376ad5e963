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
SWITCH_INTERVAL_S = 0.002
"""A thread that waits for its turn asks for it so often; also while the one that has it waits for a core of a busy
machine: a shorter interval costs a machine of many nodes more than the waiting does.
"""


async def _run(config_path: Path, *, is_held: bool) -> bool:
    """Until told to stop; whether an officer has sealed the node."""
    custody = Custody(load(config_path), is_held=is_held, reread=partial(load, config_path))
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    await custody.start()
    try:
        await custody.run_until(stop)
    finally:
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
    # The event loop answers applications while link workers compute: it must not wait 5 ms for its turn each time.
    sys.setswitchinterval(SWITCH_INTERVAL_S)
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
