# SPDX-License-Identifier: Apache-2.0
"""HTTP routes under `/redknot`."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter

router = APIRouter(prefix="/redknot", tags=["redknot"])


@router.get("/status")
async def status() -> dict[str, Any]:
    """Versions, head map, and per class slots, used slots and bytes per slot; one entry per data-parallel rank."""
    from sglang.srt.entrypoints.http_server import get_global_state

    states = await get_global_state().tokenizer_manager.get_internal_state()
    ranks = [state["redknot"] for state in states]
    return ranks[0] if len(ranks) == 1 else {**ranks[0], "data_parallel": ranks}
