"""Asking a simulated fibre about itself and telling Eve what to do there; for the command line of a lab."""

import socket
from pathlib import Path

from qtrunk.base.errors import DeviceError, LabError
from qtrunk.base.wire import FRAME_HEADER_OCTETS, Message, decode, encode, frame, frame_length
from qtrunk.quantum import device

TIMEOUT_S = 5.0


def _receive(connection: socket.socket, count: int) -> bytes:
    octets = bytearray()
    while len(octets) < count:
        part = connection.recv(count - len(octets))
        if not part:
            raise LabError("the optics process closed the connection")
        octets += part
    return bytes(octets)


def _ask(connection: socket.socket, question: Message) -> bytes:
    connection.sendall(frame(encode(question)))
    return _receive(connection, frame_length(_receive(connection, FRAME_HEADER_OCTETS)))
