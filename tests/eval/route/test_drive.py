# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Awaitable, Callable

import pytest
from aiohttp import web

from eval.route.drive import drive, make_texts
from eval.route.traffic import Traffic, arrivals
from redknot_sglang.config import DEFAULT_SEPARATOR
from redknot_sglang.errors import CliError
from tests.route.fakes import Fake, setting
from tests.serving.prompts import tokenizer

SMALL = Traffic(corpus=12, documents=3, document_tokens=20, text_tokens=5, answer_tokens=2, topics=2)


def counting(fake: Fake, rows: Counter[str]) -> None:
    """Make a server that counts what it computes: a document's words once, and all other words."""
    held: set[str] = set()

    async def generate(request: web.Request, body: bytes) -> web.StreamResponse:
        _, *documents, question = json.loads(body)["text"].split(DEFAULT_SEPARATOR)
        for document in documents:
            rows["relocated"] += len(document.split())
            rows["isolated"] += 0 if document in held else len(document.split())
            held.add(document)
        rows["computed"] += len(question.split())
        return web.json_response({})

    async def metrics(request: web.Request, body: bytes) -> web.StreamResponse:
        lines = [f'redknot:segment_rows_total{{kind="{kind}",model="m"}} {float(rows[kind])}' for kind in rows]
        return web.Response(text="\n".join(["# HELP redknot:segment_rows_total x", *lines]))

    async def flush(request: web.Request, body: bytes) -> web.StreamResponse:
        held.clear()
        return web.Response(text="flushed")

    answers: dict[str, Callable[[web.Request, bytes], Awaitable[web.StreamResponse]]]
    answers = {"/generate": generate, "/metrics": metrics, "/flush_cache": flush}
    fake.answers.update(answers)


def test_what_servers_compute_is_counted_behind_the_warm_part() -> None:
    requests, texts = list(arrivals(SMALL, 200.0, 60, 0)), make_texts(tokenizer(), SMALL)

    async def run() -> None:
        async with setting(2) as here:
            rows = [Counter[str]() for _ in here.fakes]
            for fake, count in zip(here.fakes, rows, strict=True):
                counting(fake, count)
            servers = [fake.url for fake in here.fakes]
            cold = await drive(here.url, servers, SMALL, texts, requests, 0)
            assert cold["requests"] == 60 and cold["failed"] == 0
            anew = sum(count["isolated"] for count in rows)
            assert cold["share_anew"] == pytest.approx(anew / (60 * 60), abs=1e-4)
            assert sum(cold["work"]) == anew + 60 * 5
            assert 1 <= cold["max_over_mean"] <= 2
            warm = await drive(here.url, servers, SMALL, texts, requests, 50)
            assert warm["requests"] == 10 and warm["share_anew"] < cold["share_anew"]

    asyncio.run(run())


def test_documents_are_as_long_as_they_should_be() -> None:
    texts = make_texts(tokenizer(), Traffic(document_tokens=64))
    lengths = [len(tokenizer().encode(text, add_special_tokens=False)) for text in texts.documents]
    assert len(texts.documents) == 256 and 60 <= min(lengths) <= max(lengths) <= 80


def test_servers_that_do_not_count_are_refused() -> None:
    texts = make_texts(tokenizer(), SMALL)

    async def run() -> None:
        async with setting(1) as here:
            with pytest.raises(CliError, match="--enable-metrics"):
                await drive(here.url, [here.fakes[0].url], SMALL, texts, list(arrivals(SMALL, 200.0, 4, 0)), 1)

    asyncio.run(run())
