# SPDX-License-Identifier: Apache-2.0
"""What the prefix caches of all schedulers hold, for `/redknot/inspect`, with texts if the server's flags allow it."""

from __future__ import annotations

from typing import Any

from redknot_sglang import __version__
from redknot_sglang.config import RedKnotConfig
from redknot_sglang.serve.schedulers import ask
from redknot_sglang.serve.segment_calls import INSPECT


async def inspected(manager: Any, config: RedKnotConfig) -> dict[str, Any]:
    """JSON types: `version`, `texts` (whether tenants and texts are shown), and `ranks`, of each data-parallel rank its number, `status` and
    `cache`. A piece has `text` where texts are shown and the server has a tokenizer.

    manager: SGLang's tokenizer manager.
    config: the server's settings.
    """
    ranks = await ask(manager, INSPECT, {})
    tokenizer = manager.tokenizer
    if config.inspect_texts and tokenizer is not None:
        for rank in ranks:
            for piece in (rank["cache"] or {"pieces": ()})["pieces"]:
                piece["text"] = tokenizer.decode(piece["tokens"])
    return {"version": __version__, "texts": config.inspect_texts, "ranks": ranks}
