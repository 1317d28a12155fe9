# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import asyncio
import json
from typing import Any

from aiohttp import web

from redknot_sglang.config import DEFAULT_SEPARATOR as SEP
from tests.route.fakes import Fake, Setting, setting

PATH = "/redknot/segments"
DOCUMENTS = [f"document {number} " * 20 for number in range(24)]


def serve_segments(fake: Fake) -> dict[str, dict[str, Any]]:
    """Give a server the calls of `/redknot/segments`. Returns what it lists."""
    listed: dict[str, dict[str, Any]] = {}

    async def answer(request: web.Request, body: bytes) -> web.StreamResponse:
        given = json.loads(body) if body else {}
        if request.method == "GET":
            return web.json_response(list(listed.values()))
        if request.method == "POST":
            if not all(isinstance(one, str) for one in given["segments"]):
                return web.json_response({"error": {"message": "segment 0 must be text"}}, status=400)
            entries = []
            for text in given["segments"]:
                entries.append({"tokens": len(text), "new": text not in listed})
                listed[text] = {"id": text, "resident_tokens": len(text)}
            return web.json_response(entries)
        ids = given.get("ids", list(listed))
        if any(one not in listed for one in ids):
            return web.json_response({"error": {"message": "not listed"}}, status=400)
        return web.json_response([{"id": one, "freed_tokens": listed.pop(one)["resident_tokens"]} for one in ids])

    fake.answers[PATH] = answer
    return listed


async def preload(here: Setting, segments: list[Any], **fields: Any) -> Any:
    status, answer = await here.ask(PATH, {"segments": segments, **fields})
    assert status == 200, answer
    return answer


def test_documents_are_spread_and_requests_find_them() -> None:
    async def run() -> None:
        async with setting(4) as here:
            listed = [serve_segments(fake) for fake in here.fakes]
            answer = await preload(here, [*DOCUMENTS, DOCUMENTS[0]], extra_key="t")
            assert [entry["tokens"] for entry in answer] == [len(text) for text in [*DOCUMENTS, DOCUMENTS[0]]]
            assert [entry["new"] for entry in answer] == [True] * 24 + [False]
            assert sorted(text for one in listed for text in one) == sorted(DOCUMENTS)
            assert max(map(len, listed)) <= 8
            assert all(seen.json["extra_key"] == "t" for fake in here.fakes for seen in fake.seen)
            again = await preload(here, DOCUMENTS, extra_key="t")
            assert not any(entry["new"] for entry in again)
            for fake, mine in zip(here.fakes, listed, strict=True):
                if mine:
                    assert await here.generate(SEP.join(["", next(iter(mine)), "?"]), extra_key="t") == fake.name
            assert all(server.member.open == 0 for server in here.router.fleet.servers)

    asyncio.run(run())


def test_lists_are_joined_and_deletions_go_where_segments_are() -> None:
    async def run() -> None:
        async with setting(3) as here:
            listed = [serve_segments(fake) for fake in here.fakes]
            await preload(here, DOCUMENTS)
            _, entries = await here.ask(PATH)
            assert sorted(entry["id"] for entry in entries) == sorted(DOCUMENTS)
            assert {entry["server"] for entry in entries} == {fake.url for fake in here.fakes}
            status, freed = await here.ask(PATH, {"ids": DOCUMENTS[:5]}, method="DELETE")
            assert status == 200 and sorted(one["id"] for one in freed) == sorted(DOCUMENTS[:5])
            assert sum(map(len, listed)) == 19
            status, error = await here.ask(PATH, {"ids": [DOCUMENTS[0]]}, method="DELETE")
            assert status == 400 and "is listed" in error["error"]["message"]
            assert (await here.ask(PATH, ["x"], method="DELETE"))[0] == 400
            status, freed = await here.ask(PATH, method="DELETE")
            assert status == 200 and len(freed) == 19 and not any(listed)
            assert not any(len(server.member.memory) for server in here.router.fleet.servers)

    asyncio.run(run())


def test_errors_are_those_of_the_servers() -> None:
    async def run() -> None:
        async with setting(2) as here:
            for fake in here.fakes:
                serve_segments(fake)
            assert await here.ask(PATH, {"segments": [[1, 2], "x"]}) == (
                400,
                {"error": {"message": "segment 0 must be text"}},
            )
            assert (await here.ask(PATH, {"segments": [None]}))[0] == 400
            for fake in here.fakes:
                await fake.kill()
            status, error = await here.ask(PATH, {"segments": ["x"]})
            assert status in (502, 503) and error["error"]["message"]

    asyncio.run(run())
