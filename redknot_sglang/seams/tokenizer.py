# SPDX-License-Identifier: Apache-2.0
"""SGLang's tokenizer manager: `meta_info.redknot` as one object instead of one entry per token."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from redknot_sglang.radix.report_key import KEY
from redknot_sglang.seams import Seam, active


async def _one_report(original: Any, manager: Any, *args: Any, **kwargs: Any) -> AsyncIterator[Any]:
    async for response in original(manager, *args, **kwargs):
        if active.config_of(manager.server_args) is not None:
            for item in response if isinstance(response, list) else [response]:
                _collapse(item)
        yield response


def _collapse(item: Any) -> None:
    meta = item.get("meta_info") if isinstance(item, dict) else None
    values = meta.pop(KEY, None) if meta else None
    reports = [value for value in values or () if value is not None]
    if meta is not None and reports:
        meta[KEY] = reports[-1]


SEAMS = (
    Seam(
        "sglang.srt.managers.tokenizer_manager.TokenizerManager.generate_request",
        _one_report,
        "around",
        "meta_info.redknot on every answer",
    ),
)
