"""A receiver of webhooks on 127.0.0.1 whose answers a test decides."""

from __future__ import annotations

import json
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Dict, Iterator, List, Tuple

Answer = Tuple[int, bytes]


@dataclass
class Receiver:
    """What it was sent, and what it answers: each in turn, the last again and again."""

    answers: List[Answer] = field(default_factory=lambda: [(200, b'{"errcode":0,"code":0}')])
    paths: List[str] = field(default_factory=list)
    bodies: List[Dict[str, Any]] = field(default_factory=list)
    port: int = 0
    hang: threading.Event = field(default_factory=threading.Event)
    """While this is cleared by a test, no answer is given."""

    def url(self, path: str = "/hook") -> str:
        return f"http://127.0.0.1:{self.port}{path}"


@contextmanager
def receiving() -> Iterator[Receiver]:
    """A server in a thread, ended with the block."""
    receiver = Receiver()
    receiver.hang.set()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            size = int(self.headers["Content-Length"])
            receiver.bodies.append(json.loads(self.rfile.read(size)))
            receiver.paths.append(self.path)
            receiver.hang.wait()
            turn = min(len(receiver.bodies), len(receiver.answers)) - 1
            status, body = receiver.answers[turn]
            self.send_response(status)
            if 300 <= status < 400:
                self.send_header("Location", body.decode())
                body = b""
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    receiver.port = server.server_port
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield receiver
    finally:
        receiver.hang.set()
        server.shutdown()
        thread.join()
        server.server_close()
