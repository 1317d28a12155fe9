# SPDX-License-Identifier: Apache-2.0
"""The servers behind a router: which are up, and what they say of themselves."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import aiohttp

from redknot_sglang.route.choice import Board, Member
from redknot_sglang.route.facts import Facts, read_facts, slots_of

log = logging.getLogger(__name__)

HEALTH, STATUS, TOKENIZE = "/health", "/redknot/status", "/v1/tokenize"


@dataclass(frozen=True)
class Checks:
    """How servers are looked after.

    every: seconds between two looks at a server.
    timeout: seconds that it has to answer one.
    failures: looks in a row after which it is down. One that refuses connections is down at once.
    api_key: sent along, where servers want one; or None.
    """

    every: float = 5.0
    timeout: float = 30.0
    failures: int = 2
    api_key: str | None = None


@dataclass
class Server:
    """A server.

    member: what the choice knows of it; its name is the address, without a slash at the end.
    up: whether it gets requests.
    down: set while it is not up, for those who wait for an answer.
    failed: looks in a row that failed.
    error: why it is not up, or None.
    since: when it came or went, in seconds of `time.time()`.
    """

    member: Member
    up: bool = True
    down: asyncio.Event = field(default_factory=asyncio.Event)
    failed: int = 0
    error: str | None = None
    since: float = field(default_factory=time.time)

    @property
    def url(self) -> str:
        """Its address."""
        return self.member.name


class Fleet:
    """All servers of a router."""

    def __init__(self, urls: Sequence[str], board: Board, checks: Checks, session: aiohttp.ClientSession) -> None:
        """urls: addresses, each once. session: for looks at servers, closed by whoever made it."""
        self.servers = [Server(Member(url)) for url in urls]
        self.board = board
        self.facts = Facts()
        self._checks = checks
        self._session = session
        self._looking: set[asyncio.Future[None]] = set()

    @property
    def up(self) -> list[Server]:
        """The servers that get requests."""
        return [server for server in self.servers if server.up]

    async def watch(self) -> None:
        """Look at all servers again and again, until cancelled."""
        await asyncio.gather(*(self._watch(server) for server in self.servers))

    async def look(self, server: Server) -> None:
        """Look at a server once: is it up, how much does it hold, how does it read requests?"""
        try:
            async with self._get(server, HEALTH) as answer:
                await answer.read()
                if answer.status != 200:
                    self._failed(server, f"{HEALTH} answered {answer.status}")
                    return
        except aiohttp.ClientConnectorError as error:
            self.leave(server, str(error))
            return
        except (aiohttp.ClientError, asyncio.TimeoutError) as error:
            self._failed(server, f"{HEALTH}: {str(error) or type(error).__name__}")
            return
        server.failed = 0
        if not server.up:
            self._come(server)
        try:
            await self._learn(server)
        except (aiohttp.ClientError, asyncio.TimeoutError, ValueError) as error:
            log.debug("%s says nothing of itself: %s", server.url, error)

    def leave(self, server: Server, why: str) -> None:
        """A server is down: it gets no requests, those that wait for an answer go elsewhere, and what it held is forgotten."""
        server.error = why
        if server.up:
            log.warning("%s is down: %s", server.url, why)
            server.up, server.since = False, time.time()
            server.down.set()
        server.member.memory.forget()

    def doubt(self, server: Server, refused: bool, why: str) -> None:
        """A server did not answer a request. refused: whether it took no connection, so that there is nothing more to find out."""
        if refused:
            self.leave(server, why)
        elif server.up:
            looking = asyncio.ensure_future(self.look(server))
            self._looking.add(looking)
            looking.add_done_callback(self._looking.discard)

    def _come(self, server: Server) -> None:
        others = [other.member.recent for other in self.up]
        # As much as the others had: with none it would get everything until it has caught up.
        server.member.recent = sum(others) / len(others) if others else 0.0
        log.warning("%s is up", server.url)
        server.up, server.error, server.since = True, None, time.time()
        server.down.clear()

    def _failed(self, server: Server, why: str) -> None:
        server.failed += 1
        if server.failed >= self._checks.failures:
            self.leave(server, why)

    async def _watch(self, server: Server) -> None:
        while True:
            await self.look(server)
            await asyncio.sleep(self._checks.every)

    async def _learn(self, server: Server) -> None:
        async with self._get(server, STATUS) as answer:
            if answer.status != 200:
                return
            status = await answer.json()
        sizes = slots_of(status)
        if sizes is not None:
            memory = server.member.memory
            memory.capacity, cached = sizes
            # What was sent there and is still under way is not cached yet.
            memory.trim(min(memory.capacity, cached + server.member.outstanding))
        facts = read_facts(status, self.facts.separator_token)
        if facts.separator_token is None or facts.separator != self.facts.separator:
            facts = replace(facts, separator_token=await self._separator_token(server, facts.separator))
        self.facts = facts

    async def _separator_token(self, server: Server, separator: str) -> int | None:
        body = {"prompt": separator, "add_special_tokens": False}
        async with self._session.post(
            server.url + TOKENIZE, json=body, headers=self._headers(), timeout=self._timeout()
        ) as answer:
            tokens = (await answer.json()).get("tokens") if answer.status == 200 else None
        return tokens[0] if isinstance(tokens, list) and len(tokens) == 1 and isinstance(tokens[0], int) else None

    def _get(self, server: Server, path: str) -> aiohttp.client._RequestContextManager:
        return self._session.get(server.url + path, headers=self._headers(), timeout=self._timeout())

    def _headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self._checks.api_key}"} if self._checks.api_key else {}

    def _timeout(self) -> aiohttp.ClientTimeout:
        return aiohttp.ClientTimeout(total=self._checks.timeout)
