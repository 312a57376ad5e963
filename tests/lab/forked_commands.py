"""`qtrunk` for lab tests: each command is a process of its own, forked from one that has loaded the code once.

A lab test gives some hundred commands, and each takes a second of a core in an interpreter of its own. What runs is the
same: `qtrunk.cli.main.cli` with arguments, environment, output and exit status. (`test_foreground` starts one as a
shell does.)

As a program (`python forked_commands.py SOCKET`) this is the process that forks; it ends when its standard input does.
It runs no thread. A request and its answer are JSON, one on each connection.
"""

import atexit
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
from contextlib import suppress
from importlib import import_module
from pathlib import Path

NOT_LOADED = ("bench", "rate", "recordings", "simulate")
"""Modules of commands with numerical libraries behind them."""


class Commands:
    """Runs commands; its process begins with the first one and ends with this one."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None
        self._path = Path(tempfile.mkdtemp(prefix="qtc")) / "s"
        atexit.register(self.close)

    def run(
        self, arguments: list[str], variables: dict[str, str], timeout_s: float
    ) -> subprocess.CompletedProcess[str]:
        """One command; TimeoutError if it does not end, and then it is killed."""
        if self._process is None:
            self._start()
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(timeout_s)
            connection.connect(str(self._path))
            connection.sendall(json.dumps([arguments, variables]).encode() + b"\n")
            with connection.makefile("rb") as answer:
                pid = int(answer.readline())
                try:
                    octets = answer.readline()
                except TimeoutError:
                    os.kill(pid, signal.SIGKILL)
                    raise
        if not octets:
            raise AssertionError(f"qtrunk {' '.join(arguments)}: its process {pid} died")
        status, out, err = json.loads(octets)
        return subprocess.CompletedProcess(["qtrunk", *arguments], status, out, err)

    def _start(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__, str(self._path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            # No threads of a library before a fork.
            env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
        )
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "ready\n", "the process that forks did not start"

    def close(self) -> None:
        """End its process and remove its socket."""
        if self._process is not None:
            self._process.communicate()
        self._path.unlink(missing_ok=True)
        self._path.parent.rmdir()


def serve(path: str) -> None:
    """Fork for each connection, until standard input ends."""
    from qtrunk.cli.main import COMMANDS

    for module in {name.split(":")[0] for name in COMMANDS.values()} - {*NOT_LOADED}:
        import_module(f"qtrunk.cli.{module}")
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # Whoever asked waits for the answer; nobody for the process.
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen(16)
        print("ready", flush=True)
        while True:
            ready, _, _ = select.select([listener, sys.stdin], [], [])
            if sys.stdin in ready:
                return
            connection, _ = listener.accept()
            with connection:
                if os.fork() == 0:
                    listener.close()
                    _become_command(connection)


def _become_command(connection: socket.socket) -> None:
    """In the new process: run the command, answer, end."""
    status = 70
    try:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        connection.sendall(f"{os.getpid()}\n".encode())
        with connection.makefile("rb") as asked:
            arguments, variables = json.loads(asked.readline())
        os.environ.update(variables)
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err, open(os.devnull) as nothing:  # noqa: PTH123
            for stream, number in ((nothing, 0), (out, 1), (err, 2)):
                os.dup2(stream.fileno(), number)
            status = _run(arguments)
            texts = []
            for stream in (out, err):
                stream.seek(0)
                texts.append(stream.read().decode())
        connection.sendall(json.dumps([status, *texts]).encode() + b"\n")
    finally:
        os._exit(status)


def _run(arguments: list[str]) -> int:
    """What a shell would call its exit status."""
    from qtrunk.cli.main import cli

    sys.argv = ["qtrunk", *arguments]
    try:
        cli.main(arguments, prog_name="qtrunk")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        sys.excepthook(*sys.exc_info())
        return 1
    finally:
        with suppress(OSError):
            sys.stdout.flush()
        sys.stderr.flush()
    return 0


if __name__ == "__main__":
    serve(sys.argv[1])
