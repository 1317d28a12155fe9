# SPDX-License-Identifier: Apache-2.0
"""A server with SGLang's own endpoints that caches prompts by prefix and computes nothing."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from eval.gpu.ask import Reply, generate
from tests.measure.fake_server import QuietHandler, serving


class FakeRadix:
    """Address, bodies of /generate in order, flushes. keeps: whether prompts are cached."""

    def __init__(self, is_redknot: bool, keeps: bool, kv_tokens: int) -> None:
        self.url = ""
        self.is_redknot, self.keeps, self.kv_tokens = is_redknot, keeps, kv_tokens
        self.bodies: list[dict[str, Any]] = []
        self.flushes = 0
        self._seen: list[list[int]] = []
        self._lock = threading.Lock()

    def flush(self) -> None:
        """Forget all prompts."""
        self.flushes += 1
        self._seen.clear()

    def answer(self, ids: list[int], sampling: dict[str, Any]) -> dict[str, Any]:
        """Token ids and `meta_info` of one prompt."""
        with self._lock:
            cached = max((common(ids, seen) for seen in self._seen), default=0)
            if self.keeps:
                self._seen.append(ids)
        count = sampling["max_new_tokens"]
        reason = {"type": "length"}
        meta = {"prompt_tokens": len(ids), "completion_tokens": count, "cached_tokens": cached, "finish_reason": reason}
        if self.is_redknot:
            params = sampling.get("custom_params") or {}
            offsets = params.get("redknot_segments", [])
            inside = sum(offsets[1::2]) - sum(offsets[::2])
            counts = dict.fromkeys(("relocated_tokens", "repaired_tokens"), 0)
            counts |= {"reused_tokens": inside, "computed_tokens": len(ids) - inside}
            meta["redknot"] = {"mode": params.get("redknot_mode", "exact"), **counts}
        return {"output_ids": [7] * count, "meta_info": meta}


def by_the_token(url: str, prompts: Sequence[Sequence[int]], new_tokens: int) -> Reply:
    """In place of `generate`: a time that depends on nothing but the answer's length."""
    return Reply(0.01 * new_tokens, generate(url, prompts, new_tokens).metas)


def common(a: list[int], b: list[int]) -> int:
    """Tokens with which both begin; the last token of `a` is never cached."""
    length = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
    return min(length, len(a) - 1)


@contextmanager
def fake_radix(is_redknot: bool = False, keeps: bool = True, kv_tokens: int = 10**9) -> Iterator[FakeRadix]:
    """Serve /generate, streamed and not, of one prompt and of several; /flush_cache and /server_info."""
    server = FakeRadix(is_redknot, keeps, kv_tokens)

    class Handler(QuietHandler):
        def do_GET(self) -> None:
            self.send_text(200, "application/json", json.dumps({"max_total_num_tokens": server.kv_tokens}))

        def do_POST(self) -> None:
            if self.path.startswith("/flush_cache"):
                server.flush()
                self.send_text(200, "text/plain", "")
                return
            body = self.body()
            server.bodies.append(body)
            ids, sampling = body["input_ids"], body["sampling_params"]
            many = isinstance(ids[0], list)
            answers = [server.answer(one, sampling) for one in (ids if many else [ids])]
            if body.get("return_logprob"):
                for answer in answers:
                    answer["meta_info"]["output_token_logprobs"] = [[-1.0, 7, None]] * sampling["max_new_tokens"]
            if body.get("stream"):
                self.send_text(200, "text/event-stream", f"data: {json.dumps(answers[0])}\n\ndata: [DONE]\n\n")
            else:
                self.send_text(200, "application/json", json.dumps(answers if many else answers[0]))

    with serving(Handler) as server.url:
        yield server
