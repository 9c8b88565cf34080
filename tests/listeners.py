"""Servers on loopback that take messages: HTTP with any answers, and a small SMTP."""

import contextlib
import json
import socketserver
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Taken(list):
    """What a server was sent, and the answers that it gives next."""

    def __init__(self):
        super().__init__()
        self.answers, self.port = [], 0


@contextlib.contextmanager
def serving(server, taken):
    server.daemon_threads = True
    taken.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield taken
    finally:
        server.shutdown()
        server.server_close()
        thread.join(5)


def hook():
    """A running webhook: the bodies it took, its port, and the statuses it answers with next."""
    taken = Taken()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            status = taken.answers.pop(0) if taken.answers else 200
            if status == 200:
                taken.append(body)
            self.send_response(status)
            if status == 302:
                self.send_header("Location", "/elsewhere")
            self.end_headers()

        do_GET = do_POST

        def log_message(self, *told):
            pass

    return serving(ThreadingHTTPServer(("127.0.0.1", 0), Handler), taken)


def mailbox():
    """A running SMTP server without encryption: the mails it took, as text; answers to RCPT."""
    taken = Taken()

    class Handler(socketserver.StreamRequestHandler):
        def say(self, text):
            self.wfile.write(f"{text}\r\n".encode())

        def handle(self):
            self.say("220 loopback")
            while line := self.rfile.readline():
                word = line.decode().split()[0].upper() if line.strip() else ""
                if word == "DATA":
                    self.say("354 go on")
                    content = []
                    while (one := self.rfile.readline()) not in (b".\r\n", b""):
                        content.append(one.decode())
                    taken.append("".join(content))
                    self.say("250 taken")
                elif word == "EHLO":
                    self.wfile.write(b"250-loopback\r\n250 AUTH PLAIN LOGIN\r\n")
                elif word == "AUTH":
                    taken.append(line.decode())
                    self.say("235 well")
                elif word == "QUIT":
                    return self.say("221 bye")
                else:
                    refused = word == "RCPT" and taken.answers
                    self.say(f"{taken.answers.pop(0)} no" if refused else "250 well")

    class Server(socketserver.ThreadingTCPServer):
        allow_reuse_address = True

    return serving(Server(("127.0.0.1", 0), Handler), taken)
