# SPDX-License-Identifier: Apache-2.0
"""A server with SGLang's own endpoints that answers from a function, for tests of the client's side."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from tests.measure.fake_server import QuietHandler, serving


@dataclass(frozen=True)
class Reply:
    """What to stream for one request: token ids one by one, then the end.

    after_first: called when the first of them is out. cached: prompt tokens said to be cached, `on_host` of them in host memory. report:
    `meta_info.redknot` of the last event, None on a stock server.
    """

    ids: tuple[int, ...]
    reason: dict[str, Any] = field(default_factory=lambda: {"type": "length"})
    cached: int = 0
    report: dict[str, Any] | None = None
    after_first: Callable[[], object] = lambda: None
    status: int = 200
    on_host: int = 0


class FakeNative:
    """Address, bodies of /generate in order, flushes, and how many requests waited for `answer` at once at most."""

    def __init__(self) -> None:
        self.url = ""
        self.bodies: list[dict[str, Any]] = []
        self.flushes = 0
        self.peak = 0


STATUS = {
    "/server_info": {"max_total_num_tokens": 1000},
    "/redknot/status": {
        "head_map": {"window": 128},
        "classes": {"global": {"slots": 2000, "bytes_per_slot": 1}, "local": {"slots": 667, "bytes_per_slot": 3}},
    },
}


@contextmanager
def fake_native(answer: Callable[[dict[str, Any]], Reply]) -> Iterator[FakeNative]:
    """Serve /generate with what `answer` says to each body, /flush_cache and the two status pages."""
    lock, server = threading.Lock(), FakeNative()
    running = [0]

    class Handler(QuietHandler):
        def do_GET(self) -> None:
            self.send_text(200, "application/json", json.dumps(STATUS[self.path]))

        def do_POST(self) -> None:
            if self.path.startswith("/flush_cache"):
                server.flushes += 1
                self.send_text(200, "text/plain", "")
                return
            body = self.body()
            with lock:
                server.bodies.append(body)
                running[0] += 1
                server.peak = max(server.peak, running[0])
            reply = answer(body)
            with lock:
                # Before the end is out, at which a client may send the next one.
                running[0] -= 1
            if reply.status != 200:
                self.send_text(reply.status, "application/json", '{"error": {"message": "refused by the test"}}')
            else:
                self._stream(body, reply)

        def _stream(self, body: dict[str, Any], reply: Reply) -> None:
            self.send_response(200)
            self.end_headers()
            for count in range(1, len(reply.ids) + 1):
                last = count == len(reply.ids)
                meta: dict[str, Any] = {"prompt_tokens": len(body["input_ids"]), "completion_tokens": count}
                meta |= {"cached_tokens": reply.cached, "finish_reason": reply.reason if last else None}
                if reply.on_host:
                    meta["cached_tokens_details"] = {"device": reply.cached - reply.on_host, "host": reply.on_host}
                if last and reply.report is not None:
                    meta["redknot"] = reply.report
                event = {"output_ids": list(reply.ids[:count]), "meta_info": meta}
                self.wfile.write(f"data: {json.dumps(event)}\n\n".encode())
                self.wfile.flush()
                if count == 1:
                    reply.after_first()
            self.wfile.write(b"data: [DONE]\n\n")

    with serving(Handler) as server.url:
        yield server


def segmented_report(body: dict[str, Any], repaired: int = 2) -> dict[str, Any]:
    """`meta_info.redknot` of a request whose documents were all in the cache."""
    offsets = body["sampling_params"]["custom_params"]["redknot_segments"]
    inside = sum(end - start for start, end in zip(offsets[::2], offsets[1::2], strict=True))
    return {
        "mode": "segmented",
        "reused_tokens": inside - repaired,
        "relocated_tokens": inside - repaired,
        "repaired_tokens": repaired,
        "computed_tokens": len(body["input_ids"]) - inside + repaired,
    }
