# SPDX-License-Identifier: Apache-2.0
"""Rankings that know nothing, or the opposite: what a method must beat before its evidence means anything."""

from __future__ import annotations

import random

from redknot_sglang.profile.record import Matrix


def random_harm(layers: int, kv_heads: int, seed: int) -> Matrix:
    """Harm drawn uniformly, the same for the same seed."""
    draw = random.Random(seed)
    return [[draw.random() for _ in range(kv_heads)] for _ in range(layers)]


def reversed_harm(harm: Matrix) -> Matrix:
    """The ranking turned round: what was needed most is needed least."""
    return [[-value for value in row] for row in harm]
