"""A lab on the disk whose parts can be broken, and servers in the place of its nodes."""

import asyncio
import datetime as dt
import shutil
import threading
from pathlib import Path

import msgspec
import pytest

from qtrunk.api import https
from qtrunk.cli.doctor.finding import Finding, Level
from qtrunk.cli.doctor.site import Answer, Site
from qtrunk.config import network
from qtrunk.node import pki
from qtrunk.node.ca import certificates
from qtrunk.node.config import Address, NodeConfig
from qtrunk.node.lab import Lab

TOPOLOGY = """
name = "pair"
trunks = [["ada", "bert"]]
saes = ["bank@ada", "shop@bert"]
link.length_km = 10
"""


def make_lab(directory: Path, text: str = TOPOLOGY) -> Lab:
    return Lab.prepare(directory / "lab", network.load(text))


def restored(directory: Path) -> Lab:
    """The lab of a directory, made once and copied from then on (its files name their own places)."""
    pristine = directory / "pristine"
    if not pristine.exists():
        make_lab(directory)
        shutil.copytree(directory / "lab", pristine, symlinks=True)
    shutil.rmtree(directory / "lab")
    shutil.copytree(pristine, directory / "lab", symlinks=True)
    return Lab.open(directory / "lab")


def pretend_up(site: Site, **answers: Answer) -> Site:
    """The site as if its nodes ran and had answered so."""
    vars(site).update(is_meant_to_run=True, answers=answers)
    return site


def with_nodes(site: Site, **changes: dict) -> Site:
    """The site with fields of nodes' configurations changed."""
    nodes = [msgspec.structs.replace(config, **changes.get(config.node, {})) for config in site.nodes]
    return Site(nodes, site.operator, site.lab)


def node_file(lab: Lab, node: str) -> Path:
    return lab.state / "nodes" / node / "node.json"


def change_node(lab: Lab, of: str, **changes: object) -> None:
    path = node_file(lab, of)
    document = msgspec.json.decode(path.read_bytes())
    path.write_bytes(msgspec.json.encode({**document, **changes}))


def reissue(lab: Lab, directory: Path, kind, name: str, *, days: float, ago_days: float, authority: Path | None = None):
    """A certificate of the lab's (or another) authority in the place of another, with a life of its own."""
    for file in ("cert.pem", "key.pem"):
        (directory / file).unlink(missing_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pki, "LEAF_DAYS", days)
        patch.setattr(certificates, "BACKDATE", dt.timedelta(days=ago_days))
        made = pki.LabPki(authority or lab.state / "pki")
        made.credentials(directory, kind, name)
        made.close()


def one(found) -> Finding:
    found = list(found)
    assert len(found) == 1, found
    assert found[0].what
    assert found[0].why
    assert found[0].fix
    return found[0]


def an_error(found, on: str, what: str) -> Finding:
    finding = one(found)
    assert (finding.level, on in finding.on, what in finding.what) == (Level.ERROR, True, True), finding
    return finding


def a_warning(found, on: str, what: str) -> Finding:
    finding = one(found)
    assert (finding.level, on in finding.on, what in finding.what) == (Level.WARNING, True, True), finding
    return finding


class Server:
    """An HTTPS server with a node's certificate, on a loop of its own thread."""

    def __init__(self, config: NodeConfig, handler=None) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        paths = (Path(config.certificate), Path(config.private_key), Path(config.ca_certificate))

        async def not_found(_request):
            return https.error(404, "nothing is here")

        self._server = https.HttpsServer(handler or not_found, https.server_context(*paths))
        self.port = self._run(self._server.start("127.0.0.1", 0))
        self.address = Address("127.0.0.1", self.port)

    def _run(self, work):
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(10)

    def __enter__(self) -> "Server":
        return self

    def __exit__(self, *_nothing) -> None:
        self._run(self._server.stop())
        self._run(asyncio.sleep(0))
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()


def answering(document):
    """A handler that gives documents by the last part of the path."""

    async def handle(request):
        found = document.get(request.segments[-1])
        return https.error(404, "unknown path") if found is None else https.Response(200, msgspec.json.encode(found))

    return handle
