# SPDX-License-Identifier: Apache-2.0
"""How long an eviction takes in a server's own tree, under LRU and under redknot."""

from __future__ import annotations

import gc
import random
import time

_TOKENS = 6  # of a path
_ROUNDS = 50


def eviction_times(leaves: int) -> dict[str, list[float]]:
    """Milliseconds of processor time of single evictions that free one leaf, from a tree with so many leaves; half of them were used again.

    Python's garbage collector is off meanwhile: SGLang freezes what lives long, and would not walk over the tree either.

    Returns them by policy and head class.
    """
    from eval.retention.real_tree import RealTree

    found: dict[str, list[float]] = {}
    for policy in ("lru", "redknot"):
        for head_class, sizes in (("global", (1, 0)), ("local", (0, 1))):
            room = (leaves + 2) * _TOKENS
            tree, rng = RealTree(policy, (room, room), _TOKENS), random.Random(0)
            paths = [[rng.randrange(1 << 30) for _ in range(_TOKENS)] for _ in range(leaves)]
            for path in (*paths, *rng.sample(paths, leaves // 2)):
                tree.access(path)
            gc.collect()
            gc.disable()
            times = []
            for path in rng.sample(paths, _ROUNDS):
                begin = time.thread_time()
                tree.evict(*sizes)
                times.append((time.thread_time() - begin) * 1000)
                # Traffic goes on in between.
                tree.access(path)
            gc.enable()
            found[f"{policy}, {head_class}"] = [round(taken, 4) for taken in times]
    return found
