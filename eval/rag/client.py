# SPDX-License-Identifier: Apache-2.0
"""One streamed request of token ids to SGLang's own endpoint, timed."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from eval.rag.traffic import Prompt

# An event carries all tokens so far and the report; aiohttp's own limit of a line is 128 KiB.
_LINE_BYTES = 2**22


class RequestFailed(RuntimeError):
    """The server refused a request, or left out what is measured; the message says which."""


@dataclass(frozen=True)
class Answer:
    """An answer as the client saw it. Times are seconds of `time.perf_counter()`.

    ids: token ids of the answer, without the end marker.
    first_token: when the first event with a token came, None if none came.
    meta: the server's `meta_info`, empty if the request failed.
    error: what went wrong, None for a complete answer.
    """

    sent: float
    first_token: float | None
    finished: float
    ids: list[int] = field(default_factory=list)
    meta: dict[str, Any] = field(default_factory=dict)
    error: str | None = None


def make_body(prompt: Prompt, policy: str | None, most_tokens: int, ignore_end: bool) -> dict[str, Any]:
    """Body of a greedy `/generate`; policy: RedKnot's repair policy, None for stock SGLang.

    Both sides get the same body but for `custom_params`.
    """
    sampling: dict[str, Any] = {"temperature": 0, "max_new_tokens": most_tokens, "ignore_eos": ignore_end}
    if policy is not None:
        sampling["custom_params"] = {
            "redknot_mode": "segmented",
            "redknot_segments": prompt.offsets,
            "redknot_repair": policy,
        }
    return {"input_ids": prompt.ids, "sampling_params": sampling, "stream": True}


class Client:
    """A server's native endpoint. Use as an async context manager."""

    def __init__(self, url: str, timeout: float) -> None:
        """url: without /v1. timeout: seconds of a request."""
        self.url = url.rstrip("/")
        self._timeout = timeout

    async def __aenter__(self) -> Client:
        # Without a limit: in open loop as many requests are under way as have arrived.
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0),
            timeout=aiohttp.ClientTimeout(total=self._timeout),
            read_bufsize=_LINE_BYTES,
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._session.close()

    async def ask(self, body: dict[str, Any]) -> Answer:
        """Send a body of `make_body` and stream the answer; what goes wrong is in `Answer.error`, never raised."""
        data = json.dumps(body).encode()
        sent = time.perf_counter()
        first: float | None = None
        event: dict[str, Any] = {}
        error: str | None = None
        try:
            async for event in self._events(data):
                if first is None and event["output_ids"]:
                    first = time.perf_counter()
            finished = time.perf_counter()
            ids = _complete(event)
        except RequestFailed as problem:
            finished, ids, error = time.perf_counter(), [], str(problem)
        except (aiohttp.ClientError, asyncio.TimeoutError, ValueError, KeyError) as problem:
            finished, ids, error = time.perf_counter(), [], f"{type(problem).__name__}: {problem}"
        meta = event.get("meta_info", {}) if error is None else {}
        return Answer(sent, first, finished, ids, meta, error)

    async def _events(self, data: bytes) -> AsyncIterator[dict[str, Any]]:
        headers = {"Content-Type": "application/json"}
        async with self._session.post(self.url + "/generate", data=data, headers=headers) as response:
            if response.status != 200:
                raise RequestFailed(f"HTTP {response.status}: {(await response.text())[:500]}")
            async for line in response.content:
                text = line.strip().removeprefix(b"data:").strip()
                if not text or text == b"[DONE]":
                    continue
                event = json.loads(text)
                if "error" in event:
                    raise RequestFailed(str(event["error"]))
                yield event


def _complete(event: dict[str, Any]) -> list[int]:
    """Token ids of an answer from its last event, without the end marker that stopped it. Raises RequestFailed."""
    reason = event.get("meta_info", {}).get("finish_reason")
    if reason is None:
        raise RequestFailed("the stream ended before the answer did; see the server's log")
    if reason["type"] == "abort":
        raise RequestFailed(f"the server gave the request up: {reason.get('message')}")
    ids = list(event["output_ids"])
    if len(ids) != event["meta_info"]["completion_tokens"]:
        raise RequestFailed(
            "the last event has not all tokens; start the server without --incremental-streaming-output"
        )
    return ids[:-1] if ids and reason["type"] == "stop" and ids[-1] == reason.get("matched") else ids
