# SPDX-License-Identifier: Apache-2.0
"""Messages of our own from the process that has the tokenizer to the schedulers, and their answers."""

from __future__ import annotations

import asyncio
from typing import Any

from redknot_sglang.errors import RedKnotError


async def ask(manager: Any, method: str, body: dict[str, Any]) -> list[dict[str, Any]]:
    """Send a message to the schedulers. Returns the answers of all data-parallel ranks; raises the error of the first that
    refuses.
    """
    from redknot_sglang.seams.sglang import DumperControlReqInput

    # Shielded, since SGLang would take an answer that comes after a cancelled wait for the answer to the next message.
    outputs = await asyncio.shield(manager.dumper_control(DumperControlReqInput(method=method, body=body)))
    for output in outputs:
        if not output.success:
            raise RedKnotError(output.error)
    return sorted((answer for output in outputs for answer in output.response), key=lambda answer: answer["rank"])
