"""A lab in the foreground beside another one: Ctrl-C ends it, all of it, and nothing else."""

import contextlib
import os
import pty
import signal
import subprocess
import sys
import threading
import time

import lab_kit


def test_control_c_stops_a_lab_in_the_foreground_and_a_second_one_runs_beside_it(small_lab, short_directory):
    path = short_directory / "front.toml"
    path.write_text(lab_kit.SMALL_TRUNK)
    handle = lab_kit.LabHandle(short_directory / "front", str(path))
    master, slave = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "qtrunk.cli.main", "up", str(path)],
        env={**os.environ, "QTRUNK_STATE": str(handle.state), "TERM": "xterm", "COLUMNS": "140"},
        stdin=slave,
        stdout=slave,
        stderr=slave,
        start_new_session=True,
    )
    os.close(slave)
    shown = bytearray()
    try:
        deadline_s = time.monotonic() + 60
        while b"ACTIVE" not in shown and time.monotonic() < deadline_s:
            with contextlib.suppress(OSError):
                shown += os.read(master, 65536)
        assert b"ACTIVE" in shown
        assert b"QBER" in shown
        pids = [*handle.pids().values(), handle.supervisor_pid()]
        assert all(lab_kit.is_alive(pid) for pid in small_lab.pids().values())
        os.kill(process.pid, signal.SIGINT)
        reader = threading.Thread(target=drain, args=(master,), daemon=True)
        reader.start()
        assert process.wait(30) == 0
        assert lab_kit.gone(pids)
        assert not list(handle.state.rglob("*.part"))
        assert all(lab_kit.is_alive(pid) for pid in small_lab.pids().values())
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
        os.close(master)


def drain(descriptor: int) -> None:
    with contextlib.suppress(OSError):
        while os.read(descriptor, 65536):
            pass
