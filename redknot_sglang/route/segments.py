# SPDX-License-Identifier: Apache-2.0
"""`/redknot/segments` of many servers: each document is computed on the server that comes first in its order."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import aiohttp
from aiohttp import web

from redknot_sglang.route.choice import MOST_LOAD, Member, order
from redknot_sglang.route.fleet import Fleet, Server
from redknot_sglang.route.forward import NoAnswer, ask, error_answer, forward, load_json
from redknot_sglang.route.parts import Part, Prompt, Wanted
from redknot_sglang.route.requests import read_segments


async def preload(
    request: web.Request, body: bytes, fleet: Fleet, session: aiohttp.ClientSession
) -> web.StreamResponse:
    """A POST: every segment goes to one server. The answer is that of one server with all of them."""
    given = load_json(body)
    parts = read_segments(given, fleet.facts)
    if not parts or not isinstance(given, Mapping) or not fleet.up:
        return await forward(request, body, Wanted(), fleet, session)
    members = [server.member for server in fleet.up]
    owners = share_out(parts, members)
    servers = [server for server in fleet.up if server.member in owners]
    chosen = [[at for at, owner in enumerate(owners) if owner is server.member] for server in servers]

    async def one(server: Server, places: list[int]) -> Any:
        # Each of them stands alone, as a prompt without anything else.
        wanted = Wanted(tuple(Prompt((parts[at],), (), parts[at].tokens) for at in places))
        ticket = fleet.board.give(wanted, server.member)
        segments = [given["segments"][at] for at in places]
        try:
            return await _json(request, server, session, {**given, "segments": segments})
        finally:
            ticket.done()

    answers = await asyncio.gather(*map(one, servers, chosen))
    merged: list[Any] = [None] * len(parts)
    for answer, places in zip(answers, chosen, strict=True):
        if isinstance(answer, web.Response):
            return answer
        for at, entry in zip(places, answer, strict=True):
            merged[at] = entry
    return web.json_response(merged)


def share_out(parts: Sequence[Part], members: Sequence[Member]) -> list[Member]:
    """The member that gets each part: one that holds it, else the first of its order that does not get much more than the others.

    Equal parts get the same one.
    """
    most = MOST_LOAD * sum(part.tokens for part in {part.key: part for part in parts}.values()) / len(members)
    given: Counter[str] = Counter()
    owners: dict[bytes, Member] = {}
    for part in parts:
        if part.key in owners:
            continue
        ordered = order(part.key, members)
        holding = [member for member in ordered if part.key in member.memory]
        free = [member for member in ordered if given[member.name] == 0 or given[member.name] + part.tokens <= most]
        owners[part.key] = (holding or free or ordered)[0]
        given[owners[part.key].name] += part.tokens
    return [owners[part.key] for part in parts]


async def listed(request: web.Request, fleet: Fleet, session: aiohttp.ClientSession) -> web.Response:
    """A GET: the lists of all servers, one behind the other, each entry with its `server`."""
    lists = await asyncio.gather(*(_json(request, server, session) for server in fleet.up))
    entries = []
    for server, answer in zip(fleet.up, lists, strict=True):
        if isinstance(answer, web.Response):
            return answer
        entries += [{**entry, "server": server.url} for entry in answer]
    return web.json_response(entries)


async def forget(request: web.Request, body: bytes, fleet: Fleet, session: aiohttp.ClientSession) -> web.Response:
    """A DELETE: every server deletes what it lists of the segments that are named, or all."""
    given = load_json(body)
    named = given.get("ids") if isinstance(given, Mapping) else request.query.getall("id", None)
    servers = fleet.up
    if body and not isinstance(named, list):
        return error_answer('name segments by {"ids": [...]}, by ?id=... in the address, or all by neither', 400)
    wanted: list[list[str] | None] = [None] * len(servers)
    if named is not None:
        lists = await asyncio.gather(*(_json(request, server, session, method="GET") for server in servers))
        refused = next((answer for answer in lists if isinstance(answer, web.Response)), None)
        if refused is not None:
            return refused
        ids = [{entry["id"] for entry in answer} for answer in lists]
        unknown = next((one for one in named if not any(one in there for there in ids)), None)
        if unknown is not None:
            return error_answer(f"no segment {unknown!r} is listed; GET /redknot/segments lists all there are", 400)
        wanted = [[one for one in named if one in there] for there in ids]
    freed: Counter[str] = Counter()
    calls = [(server, one) for server, one in zip(servers, wanted, strict=True) if one != []]
    answers = await asyncio.gather(
        *(_json(request, server, session, {"ids": one} if one else None) for server, one in calls)
    )
    for (server, one), answer in zip(calls, answers, strict=True):
        if isinstance(answer, web.Response):
            return answer
        if one is None:
            server.member.memory.forget()
        for entry in answer:
            freed[entry["id"]] += entry["freed_tokens"]
    return web.json_response([{"id": identity, "freed_tokens": tokens} for identity, tokens in freed.items()])


async def _json(
    request: web.Request, server: Server, session: aiohttp.ClientSession, body: Any = None, method: str | None = None
) -> Any:
    """What one server answers to a call: JSON, or, if it is an error, the answer as it is."""
    data = b"" if body is None else json.dumps(body).encode()
    try:
        status, content, kind = await ask(request, data, server, session, method, "/redknot/segments")
    except NoAnswer as error:
        return error_answer(f"{server.url} went: {error}; send the call again", 502)
    if status != 200:
        return web.Response(status=status, body=content, content_type=kind)
    return json.loads(content)
