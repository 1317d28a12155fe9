# SPDX-License-Identifier: Apache-2.0
"""The router's HTTP application: which requests go to one server, which to all, and which the router answers itself."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

import aiohttp
from aiohttp import web

from redknot_sglang.route import segments
from redknot_sglang.route.choice import POLICIES, Board
from redknot_sglang.route.fleet import STATUS, Checks, Fleet, Server
from redknot_sglang.route.forward import NoAnswer, ask, error_answer, error_body, forward, load_json
from redknot_sglang.route.requests import read_request

# SGLang itself has no limit; a router that reads bodies before it chooses needs one. It is that of SGLang's router.
MOST_BODY = 512 << 20
# Bytes of a header, and of an address.
LONGEST_HEADER = 64 << 10
# Calls that concern every server, and those of them after which nothing is cached any more.
EMPTYING = ("/flush_cache", "/update_weights_from_disk", "/release_memory_occupation")
EVERYWHERE = (
    *EMPTYING,
    *("/abort_request", "/pause_generation", "/continue_generation", "/resume_memory_occupation"),
    *("/load_lora_adapter", "/unload_lora_adapter", "/start_profile", "/stop_profile"),
    *("/configure_logging", "/set_internal_state", "/freeze_gc"),
)


@dataclass(frozen=True)
class Options:
    """What a router is asked for.

    servers: addresses, each once, without a slash at the end.
    policy: a name of `POLICIES`.
    checks: how servers are looked after.
    most_body: bytes of a request's body at most.
    """

    servers: tuple[str, ...]
    policy: str = "documents"
    checks: Checks = field(default_factory=Checks)
    most_body: int = MOST_BODY


class Router:
    """Handlers of all requests."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self.fleet: Fleet
        self._session: aiohttp.ClientSession

    async def run(self, app: web.Application) -> AsyncIterator[None]:
        """Open what the handlers need, look at every server once, then watch them until the application ends."""
        # A connection for each request: one that is kept may close just as it is used, and then nobody can tell whether the
        # server is still there.
        connector = aiohttp.TCPConnector(limit=0, force_close=True)
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=10)
        async with (
            aiohttp.ClientSession(connector=connector, timeout=timeout, auto_decompress=False) as self._session,
            aiohttp.ClientSession(connector=aiohttp.TCPConnector(force_close=True)) as looks,
        ):
            board = Board(POLICIES[self._options.policy]())
            self.fleet = Fleet(self._options.servers, board, self._options.checks, looks)
            watching = asyncio.ensure_future(self.fleet.watch())
            yield
            watching.cancel()
            await asyncio.wait((watching,))

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Any request that has no handler of its own: pass it on."""
        body = await request.read()
        path = request.path
        if path in EVERYWHERE:
            return await self._everywhere(request, body)
        if path.startswith("/v1/responses/"):
            return await self._wherever(request, body)
        wanted = read_request(path, load_json(body) if body else None, self.fleet.facts)
        return await forward(request, body, wanted, self.fleet, self._session)

    async def health(self, request: web.Request) -> web.Response:
        """200 if any server is up."""
        return web.Response(status=200 if self.fleet.up else 503)

    async def status(self, request: web.Request) -> web.Response:
        """`router`: the policy and what it believes of each server; `servers`: the status of each one that is up."""

        async def one(server: Server) -> Any:
            try:
                status, content, _ = await ask(request, b"", server, self._session)
            except NoAnswer as error:
                return {"error": str(error)}
            return load_json(content) if status == 200 else {"error": f"{STATUS} answered {status}"}

        up = self.fleet.up
        answers = await asyncio.gather(*map(one, up))
        believed = {server.url: _believed(server) for server in self.fleet.servers}
        router = {"policy": self._options.policy, "servers": believed}
        statuses = {server.url: answer for server, answer in zip(up, answers, strict=True)}
        return web.json_response({"router": router, "servers": statuses})

    async def segments(self, request: web.Request) -> web.StreamResponse:
        """Calls of `/redknot/segments`."""
        body = await request.read()
        if request.method == "POST":
            return await segments.preload(request, body, self.fleet, self._session)
        if not self.fleet.up:
            return error_answer("no server is up: see /redknot/status of this router", 503)
        if request.method == "DELETE":
            return await segments.forget(request, body, self.fleet, self._session)
        return await segments.listed(request, self.fleet, self._session)

    async def _everywhere(self, request: web.Request, body: bytes) -> web.StreamResponse:
        """Send a call to all servers. The answer is the first that is an error, else the first."""
        if request.path in EMPTYING:
            for server in self.fleet.servers:
                server.member.memory.forget()
        return await self._first(request, body, lambda status: status >= 400)

    async def _wherever(self, request: web.Request, body: bytes) -> web.StreamResponse:
        """Send a call about something that one server has to all. The answer is the first that is no error, else the first."""
        return await self._first(request, body, lambda status: status < 400)

    async def _first(self, request: web.Request, body: bytes, better: Callable[[int], bool]) -> web.StreamResponse:
        """Send a call to all servers. The answer is the first with a status that is better, else the first."""

        async def one(server: Server) -> tuple[int, bytes, str]:
            try:
                return await ask(request, body, server, self._session)
            except NoAnswer as error:
                return 502, error_body(f"{server.url} went: {error}"), "application/json"

        answers = await asyncio.gather(*map(one, self.fleet.up))
        if not answers:
            return error_answer("no server is up: see /redknot/status of this router", 503)
        status, content, kind = next((answer for answer in answers if better(answer[0])), answers[0])
        return web.Response(status=status, body=content, content_type=kind)


def _believed(server: Server) -> dict[str, Any]:
    member = server.member
    return {
        "up": server.up,
        "error": server.error,
        "since": server.since,
        "requests": member.requests,
        "open": member.open,
        "outstanding_tokens": member.outstanding,
        "recent_tokens": round(member.recent),
        "held_tokens": member.memory.tokens,
        "capacity_tokens": member.memory.capacity,
    }


@web.middleware
async def _errors(request: web.Request, handler: Any) -> web.StreamResponse:
    try:
        answer: web.StreamResponse = await handler(request)
        return answer
    except web.HTTPRequestEntityTooLarge as error:
        return error_answer(f"{error.text}; --max-body of this router sets the limit", 413)


def runner_of(options: Options) -> tuple[web.AppRunner, Router]:
    """The router, to be set up and given an address, and its handlers.

    A client that hangs up cancels its handler, and so ends what was begun for it. Bodies stay packed if they come packed, and
    headers may be as long as with SGLang.
    """
    router = Router(options)
    app = web.Application(client_max_size=options.most_body, middlewares=[_errors])
    app.cleanup_ctx.append(router.run)
    app.router.add_get("/health", router.health)
    app.router.add_get("/health_generate", router.health)
    app.router.add_get(STATUS, router.status)
    for method in ("GET", "POST", "DELETE"):
        app.router.add_route(method, "/redknot/segments", router.segments)
    app.router.add_route("*", "/{path:.*}", router.handle)
    settings: dict[str, Any] = {
        "auto_decompress": False,
        "max_line_size": LONGEST_HEADER,
        "max_field_size": LONGEST_HEADER,
    }
    return web.AppRunner(app, handler_cancellation=True, access_log=None, shutdown_timeout=5, **settings), router


async def serve(options: Options, host: str, port: int) -> None:
    """Run the router until SIGINT or SIGTERM. Raises OSError if it cannot listen there."""
    runner, _ = runner_of(options)
    ended = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, ended.set)
    await runner.setup()
    try:
        await web.TCPSite(runner, host, port).start()
        print(f"router of {len(options.servers)} servers at http://{host}:{port}", flush=True)
        await ended.wait()
    finally:
        await runner.cleanup()
