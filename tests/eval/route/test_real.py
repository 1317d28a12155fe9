# SPDX-License-Identifier: Apache-2.0
"""The benchmark of real servers, with servers that are none: they are killed and come back all the same."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from aiohttp import web

from eval.route.drive import make_texts
from eval.route.real import router_command, server_flags, survive
from eval.route.traffic import Traffic, arrivals
from tests.route.fakes import Fake, setting
from tests.serving.prompts import tokenizer

SMALL = Traffic(corpus=12, documents=3, document_tokens=20, text_tokens=5, answer_tokens=2, topics=2)


class Killed:
    """A fake that is killed and started from code that does not wait. tasks: what it does."""

    def __init__(self, fake: Fake) -> None:
        self._fake, self.url = fake, fake.url
        self.tasks: list[asyncio.Future[Any]] = []

    def kill(self) -> None:
        self.tasks.append(asyncio.ensure_future(self._fake.kill()))

    def start(self) -> None:
        self.tasks.append(asyncio.ensure_future(self._fake.start()))


async def slow(request: web.Request, body: bytes) -> web.StreamResponse:
    await asyncio.sleep(0.05)
    return web.json_response({})


def test_a_server_is_killed_while_it_has_requests_and_comes_back() -> None:
    requests, texts = list(arrivals(SMALL, 60.0, 180, 0)), make_texts(tokenizer(), SMALL)

    async def run() -> None:
        async with setting(2) as here:
            for fake in here.fakes:
                fake.answers["/generate"] = slow
            server = Killed(here.fakes[1])
            found = await survive(here.url, server, SMALL, texts, requests, away=0.5)
            await asyncio.gather(*server.tasks)
        assert found["requests"] == 180 and found["open_at_kill"] > 0
        assert found["failed"] == found["failed_not_in_flight"] == 0
        assert found["seconds_away"] >= 0.5 and found["sent_while_away"] > 10
        assert found["given_before_kill"] > 0 and found["given_after_return"] > 0

    asyncio.run(run())


def test_a_request_that_nobody_answers_counts_as_failed() -> None:
    requests, texts = list(arrivals(SMALL, 60.0, 60, 0)), make_texts(tokenizer(), SMALL)

    async def broken(request: web.Request, body: bytes) -> web.StreamResponse:
        await asyncio.sleep(0.05)
        return web.json_response({}, status=500)

    async def run() -> None:
        async with setting(2) as here:
            for fake in here.fakes:
                fake.answers["/generate"] = broken
            server = Killed(here.fakes[1])
            found = await survive(here.url, server, SMALL, texts, requests, away=0.1)
            await asyncio.gather(*server.tasks)
        assert found["failed"] == 60 > found["failed_not_in_flight"] > 0

    asyncio.run(run())


def test_each_router_has_its_command() -> None:
    servers = ["http://a:1", "http://b:2"]
    ours = router_command("documents", "python", servers, 5)
    assert ours[3:] == ["route", "--server=http://a:1", "--server=http://b:2", "--policy=documents", "--port=5"]
    theirs = router_command("cache_aware", "python", servers, 5)
    assert theirs[:7] == [
        "python",
        "-m",
        "sglang_router.launch_router",
        "--policy=cache_aware",
        "--worker-urls",
        *servers,
    ]
    assert "--port=5" in theirs


def test_servers_share_a_store_of_documents_that_are_shorter_than_its_default() -> None:
    """The default asks for paths of 256 tokens only."""
    plain, shared = server_flags(1000), server_flags(1000, 64)
    assert set(plain) < set(shared) and not any("hicache" in flag for flag in plain)
    extra = next(flag for flag in shared if flag.startswith("--hicache-storage-backend-extra-config="))
    assert json.loads(extra.partition("=")[2]) == {"prefetch_threshold": 32}
