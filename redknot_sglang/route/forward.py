# SPDX-License-Identifier: Apache-2.0
"""Passes one request on to a server, and its answer back, unchanged and as it comes."""

from __future__ import annotations

import asyncio
import json
import logging

import aiohttp
from aiohttp import web
from multidict import CIMultiDict, CIMultiDictProxy
from yarl import URL

from redknot_sglang.route.choice import Ticket
from redknot_sglang.route.fleet import Fleet, Server
from redknot_sglang.route.parts import Wanted

log = logging.getLogger(__name__)

# Headers about one connection, which the next one makes for itself.
OF_CONNECTION = (
    *("connection", "keep-alive", "proxy-authenticate", "proxy-authorization", "proxy-connection", "te", "trailer"),
    *("transfer-encoding", "upgrade", "host", "content-length", "expect"),
)
# Headers that the HTTP client would add where the request has none.
AUTOMATIC = ("User-Agent", "Accept", "Accept-Encoding", "Content-Type")
# A server that has not begun to answer when it goes is replaced by another one, once.
ATTEMPTS = 2
# Seconds that an answer which has begun may go on although its server is down, which may only be busy.
GRACE = 30.0


class NoAnswer(Exception):
    """A server went before it began to answer. refused: whether it took no connection at all."""

    def __init__(self, why: str, refused: bool = False) -> None:
        super().__init__(why)
        self.refused = refused


async def forward(
    request: web.Request, body: bytes, wanted: Wanted, fleet: Fleet, session: aiohttp.ClientSession
) -> web.StreamResponse:
    """Send a request to the server that is chosen for it, or, if that goes before it answers, to another one.

    body: of the request. wanted: what it wants computed. session: for requests to servers.
    Returns the answer, sent to its end; if no server is up or two went, an error 503 or 502.
    """
    tried: list[Server] = []
    why = "no server is up: see /redknot/status of this router"
    for _ in range(ATTEMPTS):
        up = fleet.up
        left = [server.member for server in up if server not in tried]
        if not left:
            break
        ticket = fleet.board.send(wanted, [server.member for server in up], left)
        server = next(server for server in up if server.member is ticket.member)
        tried.append(server)
        try:
            return await _pass(request, body, server, ticket, session)
        except NoAnswer as error:
            why = f"{server.url} went before it answered: {error}"
            fleet.doubt(server, error.refused, str(error))
        finally:
            ticket.done()
    return error_answer(why, 502 if tried else 503)


def error_answer(message: str, status: int) -> web.Response:
    """An error of the router's own, in SGLang's form."""
    return web.Response(body=error_body(message), status=status, content_type="application/json")


def error_body(message: str) -> bytes:
    """The body of `error_answer`."""
    return json.dumps({"error": {"message": message}}).encode()


async def ask(
    request: web.Request,
    body: bytes,
    server: Server,
    session: aiohttp.ClientSession,
    method: str | None = None,
    path: str | None = None,
) -> tuple[int, bytes, str]:
    """Send a request to one server, and wait for all of the answer.

    request: whose headers it has. body: what it has for a body.
    method, path: in place of the request's, or None.
    Returns status, body and content type. Raises NoAnswer.
    """
    try:
        async with _request(request, body, server, session, method, path) as answer:
            return answer.status, await answer.read(), answer.content_type
    except (aiohttp.ClientError, ConnectionError) as error:
        raise _no_answer(error) from error


def load_json(data: bytes) -> object:
    """JSON of a body, or None if it is none."""
    try:
        return json.loads(data)
    except ValueError:
        return None


def _request(
    request: web.Request,
    body: bytes,
    server: Server,
    session: aiohttp.ClientSession,
    method: str | None = None,
    path: str | None = None,
) -> aiohttp.client._RequestContextManager:
    # The address as it was written: percent signs and all.
    url = URL(server.url + (path or request.raw_path), encoded=True)
    return session.request(
        method or request.method,
        url,
        data=body or None,
        headers=_without_connection(request.headers),
        allow_redirects=False,
        skip_auto_headers=AUTOMATIC,
    )


async def _pass(
    request: web.Request, body: bytes, server: Server, ticket: Ticket, session: aiohttp.ClientSession
) -> web.StreamResponse:
    asking = asyncio.ensure_future(_begin(request, body, server, session))
    gone = asyncio.ensure_future(server.down.wait())
    answer: aiohttp.ClientResponse | None = None
    try:
        await asyncio.wait((asking, gone), return_when=asyncio.FIRST_COMPLETED)
        if not asking.done():
            raise NoAnswer(server.error or "it is down")
        answer = asking.result()
    finally:
        gone.cancel()
        if answer is None:
            # If the client has hung up, so does this: the server then aborts what it does.
            await _give_up(asking)
    closing = asyncio.ensure_future(_close_if_gone(server, answer))
    try:
        return await _stream(request, answer, ticket, server)
    finally:
        closing.cancel()
        # Before its end this aborts what the server does.
        answer.close()


async def _close_if_gone(server: Server, answer: aiohttp.ClientResponse) -> None:
    """Close an answer that has begun if its server stays down: a machine that is gone does not say so."""
    while True:
        await server.down.wait()
        await asyncio.sleep(GRACE)
        if server.down.is_set():
            answer.close()
            return


async def _begin(
    request: web.Request, body: bytes, server: Server, session: aiohttp.ClientSession
) -> aiohttp.ClientResponse:
    try:
        return await _request(request, body, server, session)
    except (aiohttp.ClientError, ConnectionError) as error:
        raise _no_answer(error) from error


def _no_answer(error: Exception) -> NoAnswer:
    return NoAnswer(str(error) or type(error).__name__, isinstance(error, aiohttp.ClientConnectorError))


async def _give_up(asking: asyncio.Future[aiohttp.ClientResponse]) -> None:
    """Make sure that nothing is left of a request whose answer nobody will read."""
    if not asking.done():
        asking.cancel()
        await asyncio.wait((asking,))
    if not asking.cancelled() and asking.exception() is None:
        asking.result().close()


async def _stream(
    request: web.Request, answer: aiohttp.ClientResponse, ticket: Ticket, server: Server
) -> web.StreamResponse:
    headers = _without_connection(answer.headers)
    if answer.content_length is not None:
        headers["Content-Length"] = str(answer.content_length)
    reply = web.StreamResponse(status=answer.status, reason=answer.reason, headers=headers)
    await reply.prepare(request)
    while True:
        try:
            piece = await answer.content.readany()
        except aiohttp.ClientError as error:
            # Part of the answer is with the client, so nobody else can give it. It must not look like its end.
            log.warning("%s went in the middle of an answer: %s", server.url, error)
            if request.transport is not None:
                request.transport.abort()
            return reply
        if not piece:
            break
        ticket.begun()
        await reply.write(piece)
    await reply.write_eof()
    return reply


def _without_connection(headers: CIMultiDictProxy[str]) -> CIMultiDict[str]:
    named = CIMultiDict(headers)
    dropped = {*OF_CONNECTION, *(name.strip().lower() for name in named.get("Connection", "").split(",") if name)}
    return CIMultiDict((name, value) for name, value in named.items() if name.lower() not in dropped)
