# SPDX-License-Identifier: Apache-2.0
"""Servers that answer what a test wants, and a router in front of them, all in one event loop."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import aiohttp
from aiohttp import web

from redknot_sglang.measure.launch import reserved_port
from redknot_sglang.route.app import Options, Router, runner_of
from redknot_sglang.route.fleet import Checks

QUICK = Checks(every=0.05, timeout=0.3)

Answer = Callable[[web.Request, bytes], Awaitable[web.StreamResponse]]


@dataclass
class Seen:
    """A request that a server got."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        """The body as JSON."""
        return json.loads(self.body)


@dataclass
class Fake:
    """A server. answers: by path, in place of its own name. healthy: what /health says; hangs: whether it answers at all."""

    name: str
    port: int
    answers: dict[str, Answer] = field(default_factory=dict)
    seen: list[Seen] = field(default_factory=list)
    aborted: int = 0
    healthy: bool = True
    hangs: bool = False
    status: Any = None
    _runner: web.AppRunner | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def start(self) -> None:
        """Listen."""
        app = web.Application(client_max_size=1 << 30)
        app.router.add_route("*", "/{path:.*}", self._handle)
        plain: dict[str, Any] = {"auto_decompress": False, "max_field_size": 1 << 20}
        self._runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.01, **plain)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self.port, reuse_address=True, reuse_port=True).start()

    async def kill(self) -> None:
        """Go at once, as a process that is killed: all connections break."""
        assert self._runner is not None and self._runner.server is not None
        for site in list(self._runner.sites):
            await site.stop()
        for connection in list(self._runner.server.connections):
            if connection.transport is not None:
                connection.transport.abort()
        await self._runner.cleanup()
        self._runner = None

    async def stop(self) -> None:
        """End, if it runs."""
        if self._runner is not None:
            await self._runner.cleanup()

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        if self.hangs:
            await asyncio.sleep(3600)
        if request.path == "/health":
            return web.Response(status=200 if self.healthy else 503)
        if request.path == "/redknot/status":
            return web.json_response(self.status, status=200 if self.status else 404)
        self.seen.append(Seen(request.method, request.raw_path, dict(request.headers), body))
        try:
            if request.path in self.answers:
                return await self.answers[request.path](request, body)
            return web.json_response({"server": self.name})
        except asyncio.CancelledError:
            self.aborted += 1
            raise


@dataclass
class Setting:
    """Servers, and a router in front of them."""

    fakes: list[Fake]
    url: str
    router: Router
    client: aiohttp.ClientSession

    async def ask(self, path: str, body: Any = None, method: str | None = None, **options: Any) -> tuple[int, Any]:
        """Status and JSON of an answer of the router."""
        data = None if body is None else json.dumps(body)
        method = method or ("GET" if body is None else "POST")
        async with self.client.request(method, self.url + path, data=data, **options) as answer:
            text = await answer.text()
            return answer.status, json.loads(text) if text else None

    async def generate(self, text: str, **body: Any) -> str:
        """The name of the server that answers a prompt."""
        status, answer = await self.ask("/generate", {"text": text, **body})
        assert status == 200, answer
        return str(answer["server"])


@asynccontextmanager
async def setting(count: int = 3, checks: Checks = QUICK, **options: Any) -> AsyncIterator[Setting]:
    """So many servers behind a router. options: of the router."""
    async with AsyncExitStack() as stack:
        fakes = [Fake(f"s{number}", stack.enter_context(reserved_port())) for number in range(count)]
        for fake in fakes:
            await fake.start()
            stack.push_async_callback(fake.stop)
        runner, router = runner_of(Options(tuple(fake.url for fake in fakes), checks=checks, **options))
        port = stack.enter_context(reserved_port())
        await runner.setup()
        stack.push_async_callback(runner.cleanup)
        await web.TCPSite(runner, "127.0.0.1", port, reuse_address=True, reuse_port=True).start()
        client = await stack.enter_async_context(aiohttp.ClientSession())
        yield Setting(fakes, f"http://127.0.0.1:{port}", router, client)


async def until(true: Callable[[], object], seconds: float = 10) -> None:
    """Wait until something is true. Raises AssertionError if it does not become true."""
    for _ in range(int(seconds / 0.01)):
        if true():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it did not become true")
