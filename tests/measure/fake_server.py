# SPDX-License-Identifier: Apache-2.0
"""An OpenAI-compatible server that answers from a function, for tests of the client's side."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass(frozen=True)
class Reply:
    """What to stream: pieces of text, `delay` seconds before the first, and the counts of the usage.

    json: what to answer in their place.
    """

    pieces: tuple[str, ...] = ()
    prompt_tokens: int = 10
    cached_tokens: int | None = None
    delay: float = 0.0
    status: int = 200
    json: Any = None


class FakeServer:
    """Address of the server, the bodies it got, how many requests were open at once at most, and how often it was to empty its cache."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.bodies: list[dict[str, Any]] = []
        self.peak = 0
        self.flushes = 0


@contextmanager
def fake_server(answer: Callable[[dict[str, Any]], Reply]) -> Iterator[FakeServer]:
    """Serve /v1/models, /v1/completions and /v1/chat/completions with what `answer` says to each body.

    A GET of another path is answered with what `answer` says to {"GET": path}.
    """
    lock, state = threading.Lock(), {"open": 0}
    server = FakeServer("")

    class Handler(QuietHandler):
        def do_GET(self) -> None:
            if self.path != "/v1/models":
                reply = answer({"GET": self.path})
                self.send_text(reply.status, "application/json", json.dumps(reply.json))
                return
            self.send_text(200, "application/json", json.dumps({"object": "list", "data": [{"id": "fake"}]}))

        def do_POST(self) -> None:
            body = self.body()
            if self.path.startswith("/flush_cache"):
                server.flushes += 1
                self.send_text(200, "text/plain", "Cache flushed.")
                return
            with lock:
                server.bodies.append(body)
                state["open"] += 1
                server.peak = max(server.peak, state["open"])
            reply = answer(body)
            time.sleep(reply.delay)
            with lock:
                state["open"] -= 1
            if reply.json is not None:
                self.send_text(reply.status, "application/json", json.dumps(reply.json))
                return
            if reply.status != 200:
                self.send_text(reply.status, "application/json", json.dumps({"message": "refused by the test"}))
                return
            chat = self.path.endswith("chat/completions")
            chunks = [_chunk(chat, piece) for piece in reply.pieces] + [_usage(reply)]
            lines = [f"data: {json.dumps(chunk)}\n\n" for chunk in chunks]
            self.send_text(200, "text/event-stream", "".join([*lines, "data: [DONE]\n\n"]))

    with serving(Handler) as server.url:
        yield server


class QuietHandler(BaseHTTPRequestHandler):
    """Base of a fake server's handler."""

    def body(self) -> Any:
        """JSON of the request's body."""
        return json.loads(self.rfile.read(int(self.headers["Content-Length"])))

    def send_text(self, status: int, kind: str, text: str) -> None:
        """A whole answer."""
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(text.encode())))
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, format: str, *args: object) -> None:
        """Keep the test's output clean."""


@contextmanager
def serving(handler: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    """Serve with `handler` in another thread; yields the address."""
    httpd = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=httpd.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{httpd.server_port}"
    finally:
        httpd.shutdown()
        thread.join()
        httpd.server_close()


def _chunk(chat: bool, piece: str) -> dict[str, Any]:
    choice = {"delta": {"content": piece}} if chat else {"text": piece}
    return {"id": "1", "object": "chunk", "created": 0, "model": "fake", "choices": [{"index": 0, **choice}]}


def _usage(reply: Reply) -> dict[str, Any]:
    counts: dict[str, Any] = {
        "prompt_tokens": reply.prompt_tokens,
        "completion_tokens": len(reply.pieces),
        "total_tokens": reply.prompt_tokens + len(reply.pieces),
    }
    if reply.cached_tokens is not None:
        counts["prompt_tokens_details"] = {"cached_tokens": reply.cached_tokens}
    return {"id": "1", "object": "chunk", "created": 0, "model": "fake", "choices": [], "usage": counts}
