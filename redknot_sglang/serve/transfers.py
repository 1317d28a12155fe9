# SPDX-License-Identifier: Apache-2.0
"""What a prefill server has sent to decode servers, for the status and the metrics."""

from __future__ import annotations

from typing import Any

from redknot_sglang.pool.sizing import ClassBytes
from redknot_sglang.serve.metrics import TransferMetrics


class TransferFigures:
    """Counts since the server began.

    cost: bytes of a slot of each head class, on all ranks together.
    metrics: to keep up, None without.
    """

    def __init__(self, cost: ClassBytes, metrics: TransferMetrics | None = None) -> None:
        self._cost, self._metrics = cost, metrics
        self._tokens = {"global": 0, "local": 0}

    def sent(self, global_tokens: int, local_tokens: int) -> None:
        """KV of so many tokens of each class has been handed to the transfer; it may still fail."""
        for head_class, tokens in (("global", global_tokens), ("local", local_tokens)):
            self._tokens[head_class] += tokens
            if self._metrics is not None and tokens:
                self._metrics.count(head_class, tokens, tokens * self._bytes(head_class))

    def status(self) -> dict[str, Any]:
        """As JSON types: `sent_tokens` and `sent_bytes` by head class, and `stock_bytes`, of the same tokens with all heads global."""
        return {
            "sent_tokens": dict(self._tokens),
            "sent_bytes": {name: tokens * self._bytes(name) for name, tokens in self._tokens.items()},
            "stock_bytes": self._tokens["global"] * self._cost.stock,
        }

    def _bytes(self, head_class: str) -> int:
        # What probes keep beside local slots is of no use to an answer and stays.
        return self._cost.global_slot if head_class == "global" else self._cost.local_slot
