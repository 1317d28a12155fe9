# SPDX-License-Identifier: Apache-2.0
"""HTTP routes under `/redknot`."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Any

from fastapi import APIRouter, FastAPI, Request
from fastapi.responses import HTMLResponse, JSONResponse
from fastapi.routing import APIRoute

from redknot_sglang import active
from redknot_sglang.config import RedKnotConfig
from redknot_sglang.errors import RedKnotError
from redknot_sglang.report.cache_page import render_cache
from redknot_sglang.seams.sglang import AuthLevel, auth_level
from redknot_sglang.serve import segments
from redknot_sglang.serve.inspect import inspected

router = APIRouter(prefix="/redknot")
# Of the page that shows the cache: its own styles, and no script, picture or address beside.
_NOTHING_ELSE = (
    "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


@router.get("/status")
async def status() -> dict[str, Any]:
    """The server's state, see `serve/status.py`; with data parallelism that of the first rank, and all under
    `data_parallel`.
    """
    states = await _manager().get_internal_state()
    ranks = [state["redknot"] for state in states]
    return ranks[0] if len(ranks) == 1 else {**ranks[0], "data_parallel": ranks}


@router.post("/segments")
async def preload_segments(request: Request) -> JSONResponse:
    """Compute segments ahead of time; the answer has `tokens` and `new` of each."""

    async def answer() -> Any:
        manager = _manager()
        return await segments.preload(manager, _config(manager), await _json(request), request)

    return await _or_400(answer())


# The next ones show and delete what all clients have preloaded or cached, so they need the admin key where the server has one.
@router.get("/segments")
@auth_level(AuthLevel.ADMIN_OPTIONAL)
async def list_segments() -> JSONResponse:
    """The segments that were preloaded, and how many tokens of each are still in the prefix cache."""
    return await _or_400(segments.listed(_manager()))


@router.delete("/segments")
@auth_level(AuthLevel.ADMIN_OPTIONAL)
async def forget_segments(request: Request) -> JSONResponse:
    """Delete the segments that `ids` in the body or `id` in the query name, or all; the answer has `freed_tokens` of each."""

    async def answer() -> Any:
        return await segments.forget(_manager(), await _identities(request))

    return await _or_400(answer())


@router.get("/inspect.json")
@auth_level(AuthLevel.ADMIN_OPTIONAL)
async def inspect_cache() -> JSONResponse:
    """What the prefix cache holds, see `serve/inspect.py`."""
    manager = _manager()
    return await _or_400(inspected(manager, _config(manager)))


@router.get("/inspect")
@auth_level(AuthLevel.ADMIN_OPTIONAL)
async def inspect_page() -> HTMLResponse:
    """The same as a page for people, which fetches nothing."""
    manager = _manager()
    page = render_cache(await inspected(manager, _config(manager)))
    return HTMLResponse(page, headers={"Content-Security-Policy": _NOTHING_ELSE, "Cache-Control": "no-store"})


def add_routes(app: FastAPI) -> None:
    """Add all routes to SGLang's application.

    They are added one by one, since SGLang looks for the auth level of an endpoint among the application's own routes and
    not in routers that it includes.

    app: SGLang's FastAPI application.
    """
    for route in router.routes:
        assert isinstance(route, APIRoute)
        app.add_api_route(route.path, route.endpoint, methods=sorted(route.methods or ()), tags=["redknot"])


async def _identities(request: Request) -> list[str] | None:
    named = request.query_params.getlist("id")
    if not await request.body():
        return named or None
    body = await _json(request)
    if named or not isinstance(body, dict) or set(body) != {"ids"}:
        raise RedKnotError(
            'name segments by {"ids": [...]} in the body or by ?id=... in the address, or all by neither'
        )
    if not isinstance(body["ids"], list) or not all(isinstance(identity, str) for identity in body["ids"]):
        raise RedKnotError("ids must be a list of ids as GET /redknot/segments shows them")
    return list(body["ids"])


async def _json(request: Request) -> Any:
    try:
        return await request.json()
    except ValueError as error:
        raise RedKnotError(f"the body is not JSON: {error}; send a JSON object") from error


async def _or_400(answer: Awaitable[Any]) -> JSONResponse:
    """The answer, or SGLang's form of an error for what cannot be served."""
    try:
        return JSONResponse(await answer)
    except ValueError as error:
        return JSONResponse({"error": {"message": str(error)}}, status_code=400)


def _manager() -> Any:
    from redknot_sglang.seams.sglang import get_global_state

    return get_global_state().tokenizer_manager


def _config(manager: Any) -> RedKnotConfig:
    config = active.config_of(manager.server_args)
    assert config is not None, "the routes are there only with --redknot"
    return config
