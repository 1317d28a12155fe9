# SPDX-License-Identifier: Apache-2.0
"""What lifetimes do to a server's own tree with a host tier: hits in all, hits on the host, and what was evicted for want of room."""

from __future__ import annotations

from typing import Any

from eval.retention.traces import Request

_BLOCK = 8  # tokens of a block here; traces have 512
_HOST = 4  # host slots for each on the device


def with_and_without(requests: list[Request], share: float) -> dict[str, Any]:
    """Percent of a trace's tokens that were `found`, and of those `loaded` from the host; tokens that turned cold by lifetime (`cooled`)
    and that were `demoted` for want of room: without lifetimes and with them.

    share: of the trace's distinct tokens that the device holds.
    """
    from eval.retention.real_tree import RealTree
    from redknot_sglang.radix.listeners import Move

    class Figures:
        def __init__(self) -> None:
            self.tokens = dict.fromkeys(Move, 0)

        def kv_moved(self, move: Move, global_tokens: int, local_tokens: int) -> None:
            self.tokens[move] += global_tokens

        def loads_done(self, seconds: float) -> None:
            """Nothing depends on it."""

    prompts = [[name * _BLOCK + i for name in request.hash_ids for i in range(_BLOCK)] for request in requests]
    distinct = len({name for request in requests for name in request.hash_ids}) * _BLOCK
    longest, total = max(map(len, prompts)) + 1, sum(map(len, prompts))
    # A load needs its own room beside that of the request.
    room = max(2 * longest, int(distinct * share))
    found: dict[str, Any] = {}
    for name in ("without", "with"):
        tree = RealTree("redknot", (room, room), longest, host=(_HOST * room, _HOST * room))
        figures = Figures()
        tree.tree.tier_listeners = (figures,)
        assert tree.tree.cooling is not None
        if name == "without":
            tree.tree.cooling.watermark = 1, 1
        # The last token of a prompt is always computed, so one more is asked behind it.
        hits = sum(tree.access([*prompt, -1]) for prompt in prompts)
        found[name] = {
            "found": round(100 * hits / total, 2),
            "loaded": round(100 * tree.loaded / total, 2),
            "cooled": figures.tokens[Move.COOLED],
            "demoted": figures.tokens[Move.DEMOTED],
        }
    return found
