# SPDX-License-Identifier: Apache-2.0
"""Products and bytes of attention that no kernel can do without."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Work:
    """A batch of requests of one length, bf16, as one KV head of a layer sees it.

    rows: rows of each request that are computed, its last ones.
    context: tokens of a request.
    reach: tokens that a row looks at, itself included, at most.
    group: query heads of the KV head.
    dim: elements of a head.
    """

    bs: int
    rows: int
    context: int
    reach: int
    group: int
    dim: int

    @property
    def flops(self) -> int:
        """Of both products, over the pairs of a row and a token in its reach."""
        # The first rows of a context see less than their reach.
        short = max(0, min(self.reach - (self.context - self.rows), self.rows))
        pairs = self.rows * self.reach - short * (short - 1) // 2
        return 4 * self.dim * self.group * self.bs * pairs

    @property
    def kv_tokens(self) -> int:
        """Tokens that at least one row looks at."""
        return self.bs * min(self.context, self.rows - 1 + self.reach)

    @property
    def kv_bytes(self) -> int:
        """Of the keys and values of those."""
        return self.kv_tokens * 4 * self.dim

    def rate(self, phase: str, heads: int, microseconds: float) -> float:
        """What so many heads reach that take so long: TFLOP/s of an extend, TB/s of a decode."""
        return heads * (self.flops if phase == "extend" else self.kv_bytes) / microseconds / 1e6
