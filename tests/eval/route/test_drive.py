# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any
from zlib import crc32

import pytest
from aiohttp import web

from eval.route.drive import drive, make_texts
from eval.route.traffic import Traffic, arrivals
from redknot_sglang.config import DEFAULT_SEPARATOR
from redknot_sglang.errors import CliError
from tests.route.fakes import Fake, setting
from tests.serving.prompts import tokenizer

SMALL = Traffic(corpus=12, documents=3, document_tokens=20, text_tokens=5, answer_tokens=2, topics=2)


def counting(fake: Fake, rows: Counter[str], store: Path | None = None) -> None:
    """Make a server that counts what it computes: a document's words once, and all other words.

    store: folder that servers share, with a file for each document: one that is neither there nor held is computed, and is there from then on.
    """
    held: set[str] = set()
    used = Counter[str]()
    told: dict[str, Any] = {
        "state": "working",
        "pending": {"write": 0, "read": 0},
        "tokens": 0,
        "objects": {"read": 0},
        "lookups": {},
    }
    fake.status = {"tiers": {"store": None if store is None else told}}

    async def generate(request: web.Request, body: bytes) -> web.StreamResponse:
        _, *documents, question = json.loads(body)["text"].split(DEFAULT_SEPARATOR)
        for document in documents:
            rows["relocated"] += len(document.split())
            file = store and store / str(crc32(document.encode()))
            shared = document not in held and file is not None and file.exists()
            rows["isolated"] += 0 if document in held or shared else len(document.split())
            used["hit" if shared else "miss"] += document not in held
            told.update({"tokens": 20 * used["hit"], "objects": {"read": 2 * used["hit"]}, "lookups": dict(used)})
            held.add(document)
            if file is not None:
                file.touch()
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


def test_a_shared_store_is_emptied_first_and_what_came_from_it_is_told(tmp_path: Path) -> None:
    """Two servers, of which each document is computed on one."""
    requests, texts = list(arrivals(SMALL, 200.0, 60, 0)), make_texts(tokenizer(), SMALL)

    async def run() -> None:
        async with setting(2) as here:
            rows = [Counter[str]() for _ in here.fakes]
            for document in texts.documents:
                (tmp_path / str(crc32(document.encode()))).touch()
            for fake, count in zip(here.fakes, rows, strict=True):
                counting(fake, count, tmp_path)
            found = await drive(here.url, [fake.url for fake in here.fakes], SMALL, texts, requests, 0, tmp_path)
        asked = {document for request in requests for document in request.documents}
        assert sum(count["isolated"] for count in rows) == 20 * len(asked)
        assert found["share_anew"] == pytest.approx(20 * len(asked) / (60 * 60), abs=1e-4)
        hits = found["store"]["lookups_hit"]
        assert hits > 0 and found["store"]["lookups_miss"] == len(asked)
        assert (found["store"]["tokens"], found["store"]["objects_read"]) == (20 * hits, 2 * hits)

    asyncio.run(run())


def test_servers_without_a_store_are_refused_where_one_is_meant(tmp_path: Path) -> None:
    texts = make_texts(tokenizer(), SMALL)

    async def run() -> None:
        async with setting(1) as here:
            counting(here.fakes[0], Counter[str]())
            with pytest.raises(CliError, match="has no store that works"):
                await drive(
                    here.url, [here.fakes[0].url], SMALL, texts, list(arrivals(SMALL, 200.0, 4, 0)), 1, tmp_path
                )

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
