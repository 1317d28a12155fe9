# SPDX-License-Identifier: Apache-2.0
"""What the router believes that a server holds: documents and beginnings of prompts that it sent there of late."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable

from redknot_sglang.route.parts import Part, Prompt

# Tokens that a server holds that does not say how many.
USUAL_CAPACITY = 1_000_000


class Memory:
    """Keys of parts, the least recently used of which are forgotten first, as the server's cache does it.

    It may be wrong: a part that is not there is computed again, and that is all.
    """

    def __init__(self, capacity: int = USUAL_CAPACITY) -> None:
        """capacity: tokens of all parts together."""
        self._tokens: OrderedDict[bytes, int] = OrderedDict()
        self.capacity = capacity
        self.tokens = 0

    def __contains__(self, key: bytes) -> bool:
        return key in self._tokens

    def __len__(self) -> int:
        return len(self._tokens)

    def use(self, parts: Iterable[Part]) -> None:
        """Parts of a request that was sent to the server, which holds them from now on."""
        for part in parts:
            self.tokens += part.tokens - self._tokens.pop(part.key, 0)
            self._tokens[part.key] = part.tokens
        self.trim(self.capacity)

    def trim(self, tokens: int) -> None:
        """Forget the oldest until no more than so many tokens are left."""
        while self.tokens > tokens and self._tokens:
            self.tokens -= self._tokens.popitem(last=False)[1]

    def forget(self) -> None:
        """Forget everything."""
        self._tokens.clear()
        self.tokens = 0

    def held(self, prompt: Prompt) -> int:
        """Tokens of a prompt that the server need not compute: its beginning as far as it is there, and the documents behind that."""
        end = 0
        for block in prompt.blocks:
            if block.key not in self._tokens:
                break
            end = block.end
        return end + sum(part.tokens for part in prompt.documents if part.start >= end and part.key in self._tokens)
