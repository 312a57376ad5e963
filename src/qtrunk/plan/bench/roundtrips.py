"""Round trips: get a key at one key manager, collect it by its ID at another, over and over on many connections.

A process of its own (`python -m qtrunk.plan.bench.roundtrips`), JSON in on its standard input, JSON out. Both keys are
compared: a key that differs ends the run. The loop is compiled (`src/load`): it runs on the cores of those that it
measures.
"""

import json
import sys

import msgspec

from qtrunk.plan.bench.load import place, round_trips

_HOST = "localhost"


class End(msgspec.Struct, frozen=True):
    """One key manager and who asks there."""

    port: int
    certificate: str
    private_key: str
    ca_certificate: str
    path: str
    """Up to the method's name: `/api/v1/keys/bob`."""


class Task(msgspec.Struct, frozen=True):
    """What to do."""

    initiator: End
    target: End
    connections: int
    seconds: float


def run(task: Task) -> tuple[int, float]:
    """Round trips done, and seconds that it took; RuntimeError where one fails."""
    get = f"GET {task.initiator.path}/enc_keys?number=1&size=256 HTTP/1.1\r\nHost: {_HOST}\r\n\r\n"
    ends = [
        place(_HOST, end.port, end.certificate, end.private_key, end.ca_certificate)
        for end in (task.initiator, task.target)
    ]
    collect = f"{task.target.path}/dec_keys?key_ID="
    return round_trips(ends[0], ends[1], get.encode(), collect.encode(), task.connections, task.seconds)


def main() -> None:
    """JSON of a Task on standard input; JSON of the outcome on standard output."""
    done, seconds = run(msgspec.json.decode(sys.stdin.buffer.read(), type=Task))
    print(json.dumps({"done": done, "seconds": seconds}))


if __name__ == "__main__":
    main()
