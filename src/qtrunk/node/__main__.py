"""One trusted node as a process: `python -m qtrunk.node --config FILE [--parent PID]`."""

import argparse
import asyncio
import contextlib
import logging
import logging.handlers
import signal
import sys
from pathlib import Path
from typing import Any

import uvloop

from qtrunk.base.parent import die_with_parent
from qtrunk.node.config import load
from qtrunk.node.node import Node
from qtrunk.node.world import forbid_core_dumps

LOG_OCTETS_MAX = 4 << 20
SWITCH_INTERVAL_S = 0.0002


async def _run(config_path: Path) -> None:
    node = Node(load(config_path))
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    await node.start()
    try:
        stopped: asyncio.Future[bool] = asyncio.ensure_future(stop.wait())
        watched: list[asyncio.Future[Any]] = [stopped, node.failed, *node.tasks]
        done, _ = await asyncio.wait(watched, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            # A task of the node never ends by itself: if one did, its error stops the process.
            task.result()
    finally:
        await node.stop()


def main() -> None:
    """Run the node until told to stop."""
    parser = argparse.ArgumentParser(description="one trusted node of a quantum-secured network")
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--parent", type=int, help="stop when this process is gone")
    options = parser.parse_args()
    forbid_core_dumps()
    # The event loop answers applications while link workers compute: it must not wait 5 ms for its turn each time.
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    if options.parent is not None:
        die_with_parent(options.parent)
    handler = logging.handlers.RotatingFileHandler(
        options.config.parent / "node.log", maxBytes=LOG_OCTETS_MAX, backupCount=3
    )
    logging.basicConfig(level=logging.INFO, handlers=[handler], format="%(asctime)s %(levelname)s %(name)s %(message)s")
    with contextlib.suppress(KeyboardInterrupt):
        uvloop.run(_run(options.config))


if __name__ == "__main__":
    main()
