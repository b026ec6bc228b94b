"""A small server of scores that answers as its path says, right or wrong, and keeps what it was asked."""

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ssl import SSLContext
from typing import Any


class ScoreServer:
    """Its ``url``, and the bodies and headers that it got."""

    def __init__(self, tls: SSLContext | None = None) -> None:
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        if tls is not None:
            self.server.socket = tls.wrap_socket(self.server.socket, server_side=True)
        self.url = f"{'http' if tls is None else 'https'}://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()


@contextmanager
def serving(tls: SSLContext | None = None) -> Iterator[ScoreServer]:
    server = ScoreServer(tls)
    yield server
    server.server.shutdown()
    server.server.server_close()


def _handler(seen: ScoreServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            seen.bodies.append(body)
            seen.headers.append(dict(self.headers))
            scores = {"scores": [len(text) if text else None for text in body["completions"]]}
            match self.path.split("/")[1:]:
                case ["busy", times] if len(seen.bodies) <= int(times):
                    self.answer(503, b"")
                case ["code", code]:
                    self.answer(int(code), b"{}", Location=f"{seen.url}/scores")
                case ["text"]:
                    self.answer(200, b"<html>")
                case ["other"]:
                    self.answer(200, b'{"score": 1}')
                case ["large"]:
                    self.answer(200, b" " * 2**25)
                case ["slow"]:
                    time.sleep(2)
                case ["drip"]:
                    self.drip()
                case ["cut"]:
                    self.answer(200, b"{", claimed=100)
                case _:
                    self.answer(200, json.dumps(scores).encode())

        do_GET = do_POST

        def answer(self, code: int, body: bytes, claimed: int | None = None, **headers: str) -> None:
            self.send_response(code)
            for name, value in ({"Content-Length": str(claimed or len(body))} | headers).items():
                self.send_header(name, value)
            self.end_headers()
            with suppress(ConnectionError):  # it had read enough
                self.wfile.write(body)

        def drip(self) -> None:
            self.send_response(200)
            self.end_headers()
            with suppress(ConnectionError):
                for _ in range(30):
                    self.wfile.write(b" ")
                    time.sleep(0.1)

        def log_message(self, *_: Any) -> None:
            pass

    return Handler
