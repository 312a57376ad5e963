"""Receivers of alarms for tests: HTTPS, syslog over streams, a mail server; each on a port of its own."""

import contextlib
import http.server
import socketserver
import ssl
import threading
from dataclasses import dataclass, field


@dataclass
class Received:
    items: list = field(default_factory=list)
    change: threading.Condition = field(default_factory=threading.Condition)

    def add(self, item):
        with self.change:
            self.items.append(item)
            self.change.notify_all()

    def wait(self, count):
        with self.change:
            assert self.change.wait_for(lambda: len(self.items) >= count, 20), self.items
            return self.items


@contextlib.contextmanager
def serving(server):
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def server_side(credentials):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(credentials.certificate, credentials.private_key)
    return context


@contextlib.contextmanager
def web_server(credentials, statuses):
    received, left = Received(), list(statuses)

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            status = left.pop(0) if left else 204
            self.send_response(status)
            self.end_headers()
            received.add((self.path, self.headers["Authorization"], status, body))

        def log_message(self, *arguments):
            pass

    server = http.server.ThreadingHTTPServer(("localhost", 0), Handler)
    server.socket = server_side(credentials).wrap_socket(server.socket, server_side=True)
    with serving(server) as port:
        yield port, received


@contextlib.contextmanager
def stream_server(credentials):
    """Takes octet-counted frames; closes each connection after two."""
    received = Received()

    class Handler(socketserver.BaseRequestHandler):
        def handle(self):
            connection = self.request
            if credentials is not None:
                connection = server_side(credentials).wrap_socket(connection, server_side=True)
            with connection, connection.makefile("rb") as octets:
                for _ in range(2):
                    count = b""
                    while (sign := octets.read(1)) not in (b" ", b""):
                        count += sign
                    if not count:
                        return
                    received.add(octets.read(int(count)))

    socketserver.ThreadingTCPServer.allow_reuse_address = True
    server = socketserver.ThreadingTCPServer(("localhost", 0), Handler)
    with serving(server) as port:
        yield port, received


@contextlib.contextmanager
def mail_server(credentials, *, implicit=False, offers_tls=True):  # noqa: C901 (a server in one piece)
    received = Received()

    class Handler(socketserver.StreamRequestHandler):
        def say(self, text):
            self.wfile.write(text.encode() + b"\r\n")

        def handle(self):
            if implicit:
                self.upgrade()
            self.say("220 ready")
            while line := self.rfile.readline().decode().strip():
                word = line.split()[0].upper()
                if word == "EHLO":
                    self.say("250-localhost")
                    if offers_tls:
                        self.say("250-STARTTLS")
                    self.say("250 AUTH PLAIN")
                elif word == "STARTTLS":
                    self.say("220 go")
                    self.upgrade()
                elif word == "AUTH":
                    received.add(("auth", line))
                    self.say("235 yes")
                elif word == "DATA":
                    self.say("354 go")
                    lines = []
                    while (text := self.rfile.readline().decode().rstrip("\r\n")) != ".":
                        lines.append(text)
                    received.add(("mail", "\n".join(lines)))
                    self.say("250 taken")
                elif word == "QUIT":
                    self.say("221 bye")
                    return
                else:
                    self.say("250 fine")

        def finish(self):
            super().finish()
            self.request.close()

        def upgrade(self):
            self.rfile.close()
            self.wfile.close()
            self.request = server_side(credentials).wrap_socket(self.request, server_side=True)
            self.rfile, self.wfile = self.request.makefile("rb"), self.request.makefile("wb", buffering=0)

    server = socketserver.ThreadingTCPServer(("localhost", 0), Handler)
    with serving(server) as port:
        yield port, received
