"""Asking a simulated fibre about itself and telling Eve what to do there; for the command line of a lab."""

import socket
from pathlib import Path

from qtrunk.base.errors import LabError, RequestRefused
from qtrunk.base.wire import FRAME_HEADER_OCTETS, Message, decode, encode, frame, frame_length
from qtrunk.quantum.device import Attach, Attached, Refused

LAB = "lab"
TIMEOUT_S = 5.0


class SetAttack(Message, frozen=True, tag="set-attack"):
    """Put Eve on the fibre, or (kind `none`) take her away. In force from the next slice of light."""

    kind: str
    fraction: float
    strength: float | None = None


class GetState(Message, frozen=True, tag="get-state"):
    """Ask what is going on."""


class OpticsState(Message, frozen=True, tag="optics-state"):
    """What is going on."""

    attack: str
    fraction: float
    strength: float | None
    blocks: int
    real_time_factor: float


def _receive(connection: socket.socket, count: int) -> bytes:
    octets = bytearray()
    while len(octets) < count:
        part = connection.recv(count - len(octets))
        if not part:
            raise LabError("the optics process closed the connection")
        octets += part
    return bytes(octets)


def ask(path: Path, link: str, question: SetAttack | GetState) -> OpticsState:
    """Ask the optics process at a socket; LabError where it does not answer, RequestRefused where it refuses."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(TIMEOUT_S)
        try:
            connection.connect(str(path))
            connection.sendall(frame(encode(Attach(role=LAB, link=link))) + frame(encode(question)))
            while True:
                length = frame_length(_receive(connection, FRAME_HEADER_OCTETS))
                answer = decode(_receive(connection, length), Attached | OpticsState | Refused)
                if isinstance(answer, Refused):
                    raise RequestRefused(answer.reason)
                if isinstance(answer, OpticsState):
                    return answer
        except OSError as error:
            raise LabError(f"link {link}: the optics process does not answer ({error}); is the lab up?") from error


def set_attack(path: Path, link: str, kind: str, fraction: float, strength: float | None = None) -> OpticsState:
    """Let Eve act on a link."""
    return ask(path, link, SetAttack(kind=kind, fraction=fraction, strength=strength))
