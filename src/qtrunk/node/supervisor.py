"""The lab's supervisor: starts every process of a lab, restarts what dies, stops all of it.

    python -m qtrunk.node.supervisor --state DIR [--parent PID]

It loads the code of its children once and forks them: to load it for each of a hundred processes takes minutes of two
cores. It holds no secret and runs no thread, so a child begins with nothing but code. (A node in service outside a lab
is a process of its own from the start: `python -m qtrunk.node`.)

Children ask the kernel to be told when the supervisor dies, so a killed supervisor leaves nothing running; they
run in sessions of their own, so a Ctrl-C at the terminal reaches them as an orderly SIGTERM and in order. A child that
keeps dying at once is restarted ever more slowly, up to BACKOFF_S_MAX. SIGHUP: the plan has changed; only the processes
that are new in it or gone from it are touched.
"""

import argparse
import contextlib
import fcntl
import gc
import importlib
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.context import ForkProcess
from pathlib import Path
from types import FrameType

import msgspec

from qtrunk.base.errors import LabError
from qtrunk.base.parent import die_with_parent, name_process

POLL_S = 0.05
STOP_GRACE_S = 8.0
BACKOFF_S_MAX = 5.0
STABLE_S = 2.0
"""A child that lived so long starts again without delay."""


class ChildSpec(msgspec.Struct, frozen=True):
    """One process of the lab."""

    name: str
    module: str
    """It has a function `main` that reads the command line."""
    arguments: list[str]


class Plan(msgspec.Struct, frozen=True):
    """What the supervisor runs; written by `Lab.prepare`."""

    children: list[ChildSpec]


class SupervisorState(msgspec.Struct):
    """What the supervisor says of itself in `supervisor.json`."""

    pid: int
    started_unix_s: float
    children: dict[str, dict[str, int]]
    """Name to `pid` and `restarts`."""


@dataclass(slots=True)
class _Child:
    spec: ChildSpec
    process: ForkProcess | None = None
    started_s: float = 0.0
    restarts: int = 0
    quick_deaths: int = 0
    start_at_s: float = field(default=0.0)


class Supervisor:
    """Runs the children of one lab until told to stop."""

    def __init__(self, state: Path, lock: int) -> None:
        self._state = state
        self._lock = lock
        self._logs = state / "logs"
        self._logs.mkdir(mode=0o700, exist_ok=True)
        plan = msgspec.json.decode((state / "plan.json").read_bytes(), type=Plan)
        self._children = [_Child(spec) for spec in plan.children]
        self._is_stopping = False
        self._is_replanned = False
        self._is_changed = True
        self._started_unix_s = time.time()

    def stop(self, _signal: int = 0, _frame: FrameType | None = None) -> None:
        """Ask the run loop to end (also the signal handler)."""
        self._is_stopping = True

    def replan(self, _signal: int = 0, _frame: FrameType | None = None) -> None:
        """Ask the run loop to follow the plan as it is on the disk now (also the signal handler)."""
        self._is_replanned = True

    def run(self) -> None:
        """Start everything, keep it running, stop it in order."""
        self._load()
        try:
            while not self._is_stopping:
                if self._is_replanned:
                    self._is_replanned = False
                    self._follow_plan()
                self._is_changed |= self._look()
                if self._is_changed:
                    self._write_state()
                time.sleep(POLL_S)
        finally:
            self._stop_children()

    def _load(self) -> None:
        for module in {child.spec.module for child in self._children}:
            importlib.import_module(module)
        # What is there now stays in all children: collections that never touch it leave its pages shared.
        gc.collect()
        gc.freeze()

    def _follow_plan(self) -> None:
        """Stop what the plan does not name any more; what it names anew is started as if it had died."""
        plan = msgspec.json.decode((self._state / "plan.json").read_bytes(), type=Plan)
        gone = [child for child in self._children if child.spec not in plan.children]
        kept = [child for child in self._children if child.spec in plan.children]
        known = [child.spec for child in kept]
        self._stop(gone)
        self._children = kept + [_Child(spec) for spec in plan.children if spec not in known]
        self._is_changed = True

    def _look(self) -> bool:
        """Start what is due, notice what died; whether anything changed."""
        changed = False
        now_s = time.monotonic()
        for child in self._children:
            if child.process is not None and child.process.exitcode is not None:
                self._note_death(child, now_s)
                changed = True
            if child.process is None and now_s >= child.start_at_s:
                self._start(child, now_s)
                changed = True
        return changed

    def _note_death(self, child: _Child, now_s: float) -> None:
        # To the supervisor's own output: what it said itself, if anything, is in the child's.
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime())
        how = _exit_in_words(child.process.exitcode if child.process else None)
        print(
            f"{when} {child.spec.name} ended, {how}, after {now_s - child.started_s:.1f} s", file=sys.stderr, flush=True
        )
        child.process = None
        child.restarts += 1
        child.quick_deaths = child.quick_deaths + 1 if now_s - child.started_s < STABLE_S else 0
        # The first quick deaths are forgiven: whoever kills processes on purpose is not made to wait.
        delay_s = 0.0 if child.quick_deaths < 5 else min(BACKOFF_S_MAX, 0.25 * 2 ** (child.quick_deaths - 5))
        child.start_at_s = now_s + delay_s

    def _start(self, child: _Child, now_s: float) -> None:
        child.process = multiprocessing.get_context("fork").Process(target=self._become, args=(child.spec,))
        child.process.start()
        child.started_s = now_s

    def _become(self, spec: ChildSpec) -> None:
        """In the new process: what an interpreter of its own would have begun with, then its `main`."""
        os.setsid()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        os.close(self._lock)
        with (self._logs / f"{spec.name}.out").open("ab") as out:
            os.dup2(out.fileno(), sys.stdout.fileno())
            os.dup2(out.fileno(), sys.stderr.fileno())
        name_process(spec.name)
        sys.argv = [spec.module, *spec.arguments, "--parent", str(os.getppid())]
        importlib.import_module(spec.module).main()

    def _write_state(self) -> None:
        state = SupervisorState(
            pid=os.getpid(),
            started_unix_s=self._started_unix_s,
            children={
                child.spec.name: {
                    "pid": (child.process.pid or 0) if child.process else 0,
                    "restarts": child.restarts,
                }
                for child in self._children
            },
        )
        part = self._state / "supervisor.json.part"
        try:
            part.write_bytes(msgspec.json.encode(state))
            part.replace(self._state / "supervisor.json")
        except OSError:
            # A full disk: go on supervising, and write when there is room again.
            part.unlink(missing_ok=True)
        else:
            self._is_changed = False

    def _stop_children(self) -> None:
        self._stop(self._children)
        (self._state / "supervisor.json").unlink(missing_ok=True)

    @staticmethod
    def _stop(children: Sequence[_Child]) -> None:
        """SIGTERM to all, a grace period, then SIGKILL; nothing stays behind."""
        running = [child.process for child in children if child.process is not None]
        for process in running:
            process.terminate()
        deadline_s = time.monotonic() + STOP_GRACE_S
        for process in running:
            process.join(max(0.0, deadline_s - time.monotonic()))
        for process in running:
            process.kill()
        for process in running:
            process.join()


def _exit_in_words(code: int | None) -> str:
    """How a process ended: its status, or the signal that killed it."""
    return f"killed by {signal.Signals(-code).name}" if code is not None and code < 0 else f"status {code}"


@contextlib.contextmanager
def exclusive_lock(state: Path) -> Iterator[int]:
    """Hold the lab's lock, by this descriptor; LabError if another supervisor has it."""
    descriptor = os.open(state / "supervisor.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        raise LabError(f"lab {state} is already up; `qtrunk down --state {state}` stops it") from error
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def is_running(state: Path) -> bool:
    """Whether a supervisor holds the lab's lock."""
    if not (state / "supervisor.lock").exists():
        return False
    try:
        with exclusive_lock(state):
            return False
    except LabError:
        return True


def running_state(state: Path) -> SupervisorState | None:
    """What the running supervisor says, or None if there is none (or it has only just begun)."""
    if not is_running(state):
        return None
    try:
        return msgspec.json.decode((state / "supervisor.json").read_bytes(), type=SupervisorState)
    except FileNotFoundError:
        return None


def main() -> None:
    """Run the supervisor of one lab."""
    parser = argparse.ArgumentParser(description="supervisor of a qtrunk lab")
    parser.add_argument("--state", type=Path, required=True)
    parser.add_argument("--parent", type=int, help="stop when this process is gone")
    options = parser.parse_args()
    if options.parent is not None:
        die_with_parent(options.parent)
    # No threads of a library before a fork.
    os.environ["OPENBLAS_NUM_THREADS"] = "1"
    with exclusive_lock(options.state) as lock:
        supervisor = Supervisor(options.state, lock)
        signal.signal(signal.SIGTERM, supervisor.stop)
        signal.signal(signal.SIGINT, supervisor.stop)
        signal.signal(signal.SIGHUP, supervisor.replan)
        supervisor.run()


if __name__ == "__main__":
    main()
