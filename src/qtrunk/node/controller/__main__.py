"""One controller as a process: `python -m qtrunk.node.controller --config FILE [--parent PID]`."""

import argparse
import asyncio
import contextlib
import logging
import logging.handlers
import signal
from pathlib import Path

import uvloop

from qtrunk.api import https
from qtrunk.base.parent import die_with_parent
from qtrunk.node.controller.config import ControllerConfig, load
from qtrunk.node.controller.northbound import northbound
from qtrunk.node.controller.process import ControllerRunner
from qtrunk.node.hardening import harden
from qtrunk.node.revocation import CHECK_PERIOD_S, Registry
from qtrunk.node.world import SystemClock

LOG_OCTETS_MAX = 4 << 20


async def run(config: ControllerConfig, stop: asyncio.Event) -> None:
    """Until told to stop."""
    runner = ControllerRunner(config)
    credentials = (Path(config.certificate), Path(config.private_key), Path(config.ca_certificate))
    path = None if config.revocation_list is None else Path(config.revocation_list)
    registry = Registry(path, Path(config.ca_certificate), SystemClock())

    async def keep_looking() -> None:
        while True:
            registry.look()
            await asyncio.sleep(CHECK_PERIOD_S)

    gate = northbound(runner, registry.is_revoked)
    server = https.HttpsServer(gate.handle, https.server_context(*credentials), is_revoked=registry.is_revoked)
    await server.start(config.api.host, config.api.port)
    waiting = asyncio.ensure_future(stop.wait())
    tasks = [asyncio.create_task(runner.run()), asyncio.create_task(keep_looking())]
    try:
        done, _ = await asyncio.wait([waiting, *tasks], return_when=asyncio.FIRST_COMPLETED)
        for ended in done:
            ended.result()
    finally:
        for task in [waiting, *tasks]:
            task.cancel()
        await asyncio.gather(waiting, *tasks, return_exceptions=True)
        await server.stop()
        runner.close()


async def _main(config: ControllerConfig) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    await run(config, stop)


def main() -> None:
    """Run a controller until told to stop."""
    parser = argparse.ArgumentParser(description="a controller of a quantum-secured network")
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--parent", type=int, help="stop when this process is gone")
    options = parser.parse_args()
    harden()
    if options.parent is not None:
        die_with_parent(options.parent)
    handler = logging.handlers.RotatingFileHandler(
        options.config.parent / "controller.log", maxBytes=LOG_OCTETS_MAX, backupCount=3
    )
    logging.basicConfig(level=logging.INFO, handlers=[handler], format="%(asctime)s %(levelname)s %(name)s %(message)s")
    with contextlib.suppress(KeyboardInterrupt):
        uvloop.run(_main(load(options.config)))


if __name__ == "__main__":
    main()
