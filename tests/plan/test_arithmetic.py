# SPDX-License-Identifier: Apache-2.0
"""Operations counted from shapes, against a loop over rows, heads and matrices."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from redknot_sglang.heads import HeadMap
from redknot_sglang.plan.arithmetic import Arithmetic

CONFIG = SimpleNamespace(
    num_attention_heads=6, num_key_value_heads=2, hidden_size=20, intermediate_size=30, num_hidden_layers=3
)
MAP = HeadMap(3, 2, ((True, False), (False, False), (True, True)), window=5, sink=2)


def by_hand(positions: list[int], heads: HeadMap, windowed: bool) -> int:
    total = 0
    for p in positions:
        for layer in range(3):
            matrices = [(20, 6 * 4), (20, 2 * 4), (20, 2 * 4), (6 * 4, 20), (20, 30), (20, 30), (30, 20)]
            total += sum(2 * rows * columns for rows, columns in matrices) * heads.num_kv_heads // 2
            for kv_head in range(heads.num_kv_heads):
                keys = p + 1 if heads.is_global[layer][kv_head] or not windowed else min(p + 1, 5 + 2)
                total += 3 * keys * 2 * (4 + 4)
    return total


@pytest.mark.parametrize("heads", [MAP, MAP.shard(0, 2), MAP.shard(1, 2)])
def test_rows_are_projections_mlp_and_the_keys_they_see(heads: HeadMap) -> None:
    arithmetic = Arithmetic.of(CONFIG, heads, 4, 3)
    rows = [0, 1, 6, 7, 40]
    assert arithmetic.computed(np.array(rows)) == by_hand(rows, heads, windowed=True)
    assert arithmetic.dense(50) == by_hand(list(range(50)), heads, windowed=False)
    assert arithmetic.probed(np.array(rows)) == 3 * 2 * (4 + 4) * sum(p + 1 for p in rows)
    assert arithmetic.computed(np.array([], dtype=np.int64)) == 0
