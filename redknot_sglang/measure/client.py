# SPDX-License-Identifier: Apache-2.0
"""Ask an OpenAI-compatible server and time its answers; nothing here is specific to SGLang."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from openai import AsyncOpenAI, OpenAIError

from redknot_sglang.errors import CliError

Prompt = str | list[dict[str, str]]
"""Text for /v1/completions, or messages for /v1/chat/completions."""


@dataclass(frozen=True)
class Answer:
    """An answer as the client saw it. Times are seconds of `time.perf_counter()`.

    text: all of it.
    sent: when the request was sent.
    first_token: when the first text came, or the end if there was none.
    finished: when the end came.
    prompt_tokens: the server's count, or None if it reported none.
    cached_tokens: how many of them came from the cache, by the server's count; None if it reported none.
    error: what went wrong, or None for a complete answer.
    """

    text: str
    sent: float
    first_token: float
    finished: float
    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    error: str | None = None

    @property
    def ttft(self) -> float:
        """Seconds from sending the request to its first text."""
        return self.first_token - self.sent


OnAnswer = Callable[[Answer], object]
"""Called with every answer when it is complete."""


@dataclass(frozen=True)
class Request:
    """A request with greedy decoding.

    prompt: text or messages.
    max_tokens: tokens of the answer at most.
    extra: further fields of the body, such as options that only one kind of server knows.
    """

    prompt: Prompt
    max_tokens: int
    extra: Mapping[str, Any] = field(default_factory=dict)


def api_url(url: str) -> str:
    """The server's /v1 address from its address with or without /v1."""
    return url.rstrip("/").removesuffix("/v1") + "/v1"


class Client:
    """An OpenAI-compatible server. Use as an async context manager."""

    def __init__(self, url: str, *, model: str | None = None, api_key: str = "none", timeout: float = 600) -> None:
        """url: address, with or without /v1.

        model: name to ask for, or None for the first that the server lists.
        api_key: sent with every request.
        timeout: seconds to wait for an answer.
        """
        self.url = api_url(url)
        self._model = model
        # A request that fails is reported, not sent again: a retry would spoil its time and the cache counts.
        self._openai = AsyncOpenAI(base_url=self.url, api_key=api_key, timeout=timeout, max_retries=0)
        # These import their modules when first used, which must not count as the first request's time.
        self._completions, self._chat = self._openai.completions, self._openai.chat.completions

    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._openai.close()

    async def model(self) -> str:
        """Name of the model to ask for. Raises CliError if the server does not answer or lists none."""
        if self._model is None:
            try:
                listed = [m.id async for m in self._openai.models.list()]
            except OpenAIError as error:
                raise CliError(
                    f"no OpenAI-compatible server answers at {self.url}: {error}; start one, or give another address"
                ) from error
            if not listed:
                raise CliError(f"{self.url}/models lists no model; name one with --model")
            self._model = listed[0]
        return self._model

    async def ask(self, request: Request) -> Answer:
        """Send one request and stream its answer. Errors of the request are in `Answer.error` and not raised.

        Raises CliError if the model's name has to be asked for first and the server does not answer.
        """
        model = await self.model()
        sent = time.perf_counter()
        pieces: list[str] = []
        first: float | None = None
        usage: Any = None
        error: str | None = None
        try:
            async for text, reported in self._stream(model, request):
                usage = reported or usage
                if text and first is None:
                    first = time.perf_counter()
                pieces.append(text)
        except OpenAIError as problem:
            error = str(problem) or type(problem).__name__
        finished = time.perf_counter()
        details = getattr(usage, "prompt_tokens_details", None)
        return Answer(
            text="".join(pieces),
            sent=sent,
            first_token=finished if first is None else first,
            finished=finished,
            prompt_tokens=getattr(usage, "prompt_tokens", None),
            cached_tokens=getattr(details, "cached_tokens", None),
            error=error,
        )

    async def _stream(self, model: str, request: Request) -> Any:
        """Yield (new text, usage or None) as they arrive."""
        common: dict[str, Any] = {
            "model": model,
            "max_tokens": request.max_tokens,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
            "extra_body": dict(request.extra),
        }
        if isinstance(request.prompt, str):
            async for chunk in await self._completions.create(prompt=request.prompt, **common):
                yield "".join(choice.text or "" for choice in chunk.choices), chunk.usage
        else:
            # The client types messages more narrowly than the protocol does.
            messages: Any = request.prompt
            chunks: Any = await self._chat.create(messages=messages, **common)
            async for chunk in chunks:
                yield "".join(choice.delta.content or "" for choice in chunk.choices), chunk.usage


async def ask_all(
    client: Client,
    requests: Sequence[Request],
    concurrency: int,
    on_answer: OnAnswer = lambda answer: None,
) -> list[Answer]:
    """Send many requests.

    client: the server.
    requests: what to send.
    concurrency: requests in flight at most.
    on_answer: called with each answer when it is complete.
    Returns the answers in the order of the requests. Raises CliError if the server does not answer at all.
    """
    await client.model()
    gate = asyncio.Semaphore(concurrency)

    async def one(request: Request) -> Answer:
        async with gate:
            answer = await client.ask(request)
        on_answer(answer)
        return answer

    return list(await asyncio.gather(*map(one, requests)))


def cached_share(answers: Iterable[Answer]) -> float | None:
    """Share of prompt tokens that came from the cache, 0 to 1; None if the server reports no such counts.

    Servers leave a count of 0 out of an answer, so only if all answers lack it is it not reported.
    """
    complete = [a for a in answers if a.prompt_tokens is not None]
    if all(a.cached_tokens is None for a in complete):
        return None
    return sum(a.cached_tokens or 0 for a in complete) / sum(a.prompt_tokens or 0 for a in complete)
