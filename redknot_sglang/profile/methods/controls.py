# SPDX-License-Identifier: Apache-2.0
"""Controls: a random ranking of the heads, and a method's ranking turned round.

A method whose maps are no better than those of a random ranking has found nothing.
"""

from __future__ import annotations

import random

from redknot_sglang.profile.record import Matrix


def random_harm(layers: int, kv_heads: int, seed: int) -> Matrix:
    """Harm [layers][KV heads], drawn uniformly from 0 to 1; the same for the same seed."""
    draw = random.Random(seed)
    return [[draw.random() for _ in range(kv_heads)] for _ in range(layers)]


def reversed_harm(harm: Matrix) -> Matrix:
    """The same harm with the opposite sign, [layers][KV heads]: the heads needed most come last."""
    return [[-value for value in row] for row in harm]
