"""Switching to another route: a ring of four real nodes, a fibre of it cut, a node of it killed, while both ends of a
pair go on asking for keys.

Two times are measured from outside, so each is an upper bound. After a **cut** of a link on the route in use: from the
last moment at which neither end of the link had seen it to the first at which the initiator's node uses the other way
round; nothing but adverts tells that node. After a **kill** of the node between: from before the signal.
"""

import os
import signal
import statistics
import threading
import time
from collections.abc import Callable

from qtrunk.base.errors import LabError
from qtrunk.plan.bench.figures import Figure
from qtrunk.plan.bench.lab import Connection, Document, Lab
from qtrunk.plan.bench.roundtrips import End

HOME, FAR = "ada", "cleo"
POOL_OCTETS = 2048
PAUSE_S = 0.05
WITHIN_S = 180.0
RUNS_MAX = 2
"""A link that fails is held back, the longer the more often: each run of a cut waits for that."""
TOPOLOGY = """
name = "small-ring"
rings = [["ada", "bert", "cleo", "dora"]]
saes = ["bank@ada", "vault@cleo"]

[[demands]]
between = ["bank", "vault"]
rate_bps = 2000

[link]
length_km = 20
loss_db = 8
block_s = 1.0
clock_fraction = 0.1
"""


class _Customers:
    """One pair, both ways, each key collected and compared, without pause; every failure is kept."""

    def __init__(self, lab: Lab) -> None:
        self.failures: list[str] = []
        self.done = 0
        self._stop = threading.Event()
        ends = [("bank", "vault"), ("vault", "bank")]
        self._threads = [threading.Thread(target=self._run, args=(lab.end(a, b), lab.end(b, a))) for a, b in ends]

    def __enter__(self) -> "_Customers":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _run(self, here: End, there: End) -> None:
        source, sink = Connection.to(here), Connection.to(there)
        while not self._stop.wait(PAUSE_S):
            try:
                given = source.get(f"{here.path}/enc_keys?number=1&size=256")["keys"]
                found = sink.get(f"{there.path}/dec_keys?key_ID={given[0]['key_ID']}")["keys"]
                if given != found:
                    raise LabError(f"key {given[0]['key_ID']} differs between the two ends")
                self.done += 1
            except LabError as error:
                self.failures.append(str(error))


class _Ring:
    """The running lab, and its nodes' status."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self._admin = {node: Connection(*lab.admin(node)) for node in lab.nodes()}

    def status(self, node: str) -> Document:
        """Of a node that runs."""
        return self._admin[node].get("/admin/v1/status")

    def way(self) -> list[str]:
        """The route in use from home to the far end; nothing where there is none yet."""
        rows: list[list[str]] = [entry["nodes"] for entry in self.status(HOME)["routes_in_use"]]
        return next((row for row in rows if row[-1] == FAR), [])

    def doubts(self, link: str, nodes: tuple[str, str]) -> bool:
        """Whether one of its ends says that no new key may be had over a link."""
        return any(end["is_doubtful"] for node in nodes for end in self.status(node)["links"] if end["link"] == link)

    def is_well(self) -> bool:
        """All nodes up, no link in doubt, a pool that is full enough, at both ends and ways."""
        try:
            found = [self.status(node) for node in self._admin]
        except LabError:
            return False  # A node that was killed is not back yet.
        pools = [pool["available"] for status in found for pool in status["pools"]]
        doubts = [end["is_doubtful"] or not end["is_connected"] for status in found for end in status["links"]]
        return len(pools) == 4 and min(pools) >= POOL_OCTETS and not any(doubts) and len(self.way()) > 2


def _until(condition: Callable[[], bool], what: str) -> float:
    """When it came true."""
    deadline_s = time.monotonic() + WITHIN_S
    while not condition():
        if time.monotonic() > deadline_s:
            raise LabError(f"{what}: not within {WITHIN_S:.0f} s")
        time.sleep(0.005)
    return time.monotonic()


def _cut(ring: _Ring) -> float:
    """Seconds from when the cut of the far link of the route was seen to the other way round; the link is well after
    that."""
    way = ring.way()
    link, ends = ring.lab.link(*way[-2:]), (way[-2], way[-1])
    ring.lab.qtrunk("attack", link, "cut")
    unseen_s = time.monotonic()

    def is_seen() -> bool:
        nonlocal unseen_s
        asked_s = time.monotonic()
        if ring.doubts(link, ends):
            return True
        unseen_s = asked_s
        return False

    _until(is_seen, f"the cut of {link} is seen")
    took_s = _until(lambda: ring.way() not in ([], way), "the other way round") - unseen_s
    ring.lab.qtrunk("attack", link, "none")
    return took_s


def _kill(ring: _Ring) -> float:
    """Seconds from the death of the node between to the other way round."""
    way = ring.way()
    pid = ring.lab.pids()[way[1]]
    began_s = time.monotonic()
    os.kill(pid, signal.SIGKILL)
    return _until(lambda: ring.way() not in ([], way), "the other way round") - began_s


def switchover(runs: int, _with_rivals: bool) -> list[Figure]:
    """Times after a cut and a kill; requests that failed meanwhile."""
    times: dict[str, list[float]] = {"cut": [], "kill": []}
    with Lab.running(TOPOLOGY) as lab:
        ring = _Ring(lab)
        _until(ring.is_well, "keys, pools and routes of the ring")
        with _Customers(ring.lab) as customers:
            for _ in range(max(1, min(runs, RUNS_MAX))):
                for name, fail in (("kill", _kill), ("cut", _cut)):
                    times[name].append(fail(ring))
                    _until(ring.is_well, f"the ring is well again after a {name}")
    if not customers.done:
        raise LabError("nobody was given a key meanwhile")
    return [
        *(
            Figure(
                name=f"other routes in use after a {what}",
                value=statistics.median(times[name]),
                unit="s",
                goal=1.0,
                samples=tuple(times[name]),
                is_less_better=True,
                note=note,
            )
            for name, what, note in (
                ("cut", "fibre cut that one end has seen", "at a node that only hears of it; with the time to ask"),
                ("kill", "node was killed", "at its neighbour; with the time to detect it and to ask"),
            )
        ),
        Figure(
            name="requests that failed meanwhile",
            value=float(len(customers.failures)),
            unit="requests",
            goal=0.0,
            is_less_better=True,
            samples=(float(len(customers.failures)),),
            note=f"{customers.done} keys given out and collected"
            + "".join(f"; {text}" for text in customers.failures[:3]),
        ),
    ]
