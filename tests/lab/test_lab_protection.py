"""A ring in which things fail: supply between the nodes that live goes on without one failed request."""

import contextlib
import os
import signal
import threading
import time
from collections import Counter

import lab_kit
import pytest

from qtrunk.base.errors import QtrunkError
from qtrunk.base.ids import SaeId
from qtrunk.cli.labclient import LabClient
from qtrunk.node.lab import Lab

RING = """
name = "small-ring"
rings = [["ada", "bert", "cleo", "dora"]]
saes = ["bank@ada", "vault@cleo", "shop@bert", "grid@dora"]

[[demands]]
between = ["bank", "vault"]
rate_bps = 2000

[link]
length_km = 20
loss_db = 8
block_s = 1.0
clock_fraction = 0.25
"""


class Customers:
    """Both ends of one pair ask and collect without pause; every failure is kept."""

    def __init__(self, lab, initiator: str, target: str) -> None:
        self.failures: list[str] = []
        self.given: Counter[str] = Counter()
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._run, args=(lab.client(a), lab.client(b), a, b))
            for a, b in ((initiator, target), (target, initiator))
        ]

    def __enter__(self):
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _run(self, source, sink, initiator: str, target: str) -> None:
        while not self._stop.wait(0.2):
            try:
                keys = source.get_keys(SaeId(target), 1, 256)
                found = sink.get_keys_with_ids(SaeId(initiator), [key.key_id for key in keys])
                assert [key.material for key in found] == [key.material for key in keys]
                self.given[initiator] += 1
            except (QtrunkError, AssertionError) as error:
                self.failures.append(f"{time.monotonic():.1f} {initiator}: {error!r}")


def node_status(handle, name: str) -> dict:
    """Asked from here: a new process for each question is too slow to see what lasts seconds."""
    return LabClient(Lab.open(handle.state)).node(name, "/admin/v1/status")


def alarm_types(handle, name: str) -> dict[str, str]:
    return {alarm["type"]: alarm["severity"] for alarm in node_status(handle, name)["alarms"]["active"]}


def link_end(handle, name: str, link: str) -> dict:
    return next(end for end in node_status(handle, name)["links"] if end["link"] == link)


def ways(handle, name: str, end: str) -> list[str]:
    return ["-".join(r["nodes"]) for r in node_status(handle, name)["routes_in_use"] if r["nodes"][-1] == end]


def until(condition, what: str, within_s: float = 60.0):
    deadline_s = time.monotonic() + within_s
    while time.monotonic() < deadline_s:
        found = condition()
        if found:
            return found
        time.sleep(0.25)
    raise AssertionError(f"{what}: not within {within_s} s")


@pytest.fixture(scope="module")
def small_ring(short_directory):
    handle = lab_kit.start(short_directory, "guarded", RING)
    try:
        handle.wait_for_keys()
        for pair in (("bank", "vault"), ("vault", "bank")):
            handle.client(pair[0]).get_keys(SaeId(pair[1]), 1, 256)
            handle.wait_for_pool(*pair, 2048)
        yield handle
    finally:
        handle.close_clients()
        lab_kit.stop(handle)


def test_a_drained_link_is_left_before_anything_stops_and_the_window_ends_by_itself(small_ring):
    way = ways(small_ring, "ada", "cleo")[0]
    middle = way.split("-")[1]
    link = next(name for name in small_ring.links() if set(name.split("-")) == {"ada", middle})
    with Customers(small_ring, "bank", "vault") as customers:
        told = small_ring.qtrunk("drain", link, "--for", "1h", "--why", "new splice", "--wait").stdout
        assert "work may begin" in told
        until(lambda: ways(small_ring, "ada", "cleo") != [way], "routes leave the link")
        windows = node_status(small_ring, "dora" if middle == "bert" else "bert")["maintenance"]
        assert {(window["resource"], window["phase"]) for window in windows} == {(link, "under way")}
        assert alarm_types(small_ring, "ada")["UnderMaintenance"] == "warning"
        assert "has another window" in small_ring.qtrunk("drain", link, check=False).stderr
        small_ring.qtrunk("undrain", link)
        until(lambda: not node_status(small_ring, "ada")["maintenance"], "the window is called off")
        small_ring.qtrunk("drain", link, "--for", "3s")
        until(lambda: not node_status(small_ring, "ada")["maintenance"], "the window ends by itself")
        until(lambda: "UnderMaintenance" not in alarm_types(small_ring, "ada"), "nobody works there any more")
        small_ring.qtrunk("drain", middle, "--at", "2030-01-01T02:00", "--for", "2h")
        assert node_status(small_ring, middle)["maintenance"][0]["phase"] == "planned"
        small_ring.qtrunk("undrain", middle)
        assert node_status(small_ring, middle)["maintenance"] == []
    assert customers.failures == []


def test_a_cut_fibre_moves_routes_and_fails_no_request_and_its_return_is_damped(small_ring):
    (way,) = ways(small_ring, "ada", "cleo")
    middle = way.split("-")[1]
    other = {"bert": "dora", "dora": "bert"}[middle]
    link = next(name for name in small_ring.links() if set(name.split("-")) == {"ada", middle})
    with Customers(small_ring, "bank", "vault") as customers:
        small_ring.qtrunk("attack", link, "cut")
        until(lambda: ways(small_ring, "ada", "cleo") == [f"ada-{other}-cleo"], "the other way round")
        # The routes may have left before, for a better price: the cut itself is seen by the link.
        until(lambda: link_end(small_ring, "ada", link)["is_doubtful"], "the cut is seen")
        time.sleep(2.0)
        small_ring.qtrunk("attack", link, "none")
        # Good again, and not yet used.
        held = until(
            lambda: (found := link_end(small_ring, "ada", link))["hold_off_s"] > 0 and found,
            "the link returns and is held back",
        )
        assert (held["state"], held["is_doubtful"]) == ("ACTIVE", True)
        until(lambda: not link_end(small_ring, "ada", link)["is_doubtful"], "the hold-off ends")
    assert customers.failures == []
    assert min(customers.given[sae] for sae in ("bank", "vault")) > 10


def test_a_node_killed_at_once_fails_no_request_of_others(small_ring):
    (way,) = ways(small_ring, "ada", "cleo")
    middle = way.split("-")[1]
    with Customers(small_ring, "bank", "vault") as customers:
        for _ in range(3):
            with contextlib.suppress(ProcessLookupError):
                os.kill(small_ring.running()[f"node-{middle}"], signal.SIGKILL)
            time.sleep(2.0)
        until(lambda: ways(small_ring, "ada", "cleo") != [way], "the other way round")
        time.sleep(2.0)
    assert customers.failures == []
    assert min(customers.given[sae] for sae in ("bank", "vault")) > 10
