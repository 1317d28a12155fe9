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


def by_hand(positions: list[int], ranks: int, windowed: bool, layers: int = 3) -> int:
    total = 0
    for p in positions:
        for layer in range(layers):
            matrices = [(20, 6 * 4), *[(20, 4)] * (2 * max(2, ranks)), (6 * 4, 20), (20, 30), (20, 30), (30, 20)]
            total += sum(2 * rows * columns for rows, columns in matrices)
            for kv_head in range(2):
                keys = p + 1 if MAP.is_global[layer][kv_head] or not windowed else min(p + 1, 5 + 2)
                total += 3 * keys * 2 * (4 + 4)
    return total


@pytest.mark.parametrize("ranks", [1, 2, 6])
def test_rows_are_projections_mlp_and_the_keys_they_see(ranks: int) -> None:
    """On all ranks together: of six each has one query head, and computes K and V for it."""
    arithmetic = Arithmetic.of(CONFIG, MAP, 4, 3, ranks)
    rows = [0, 1, 6, 7, 40]
    assert arithmetic.computed(np.array(rows)) == by_hand(rows, ranks, windowed=True)
    assert arithmetic.dense(50) == by_hand(list(range(50)), ranks, windowed=False)
    assert arithmetic.probed(np.array(rows)) == 3 * 2 * (4 + 4) * sum(p + 1 for p in rows)
    assert arithmetic.computed(np.array([], dtype=np.int64)) == 0


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_rows_that_go_through_the_first_layers_only(layers: int) -> None:
    arithmetic = Arithmetic.of(CONFIG, MAP, 4, 3, ranks=2, layers=layers)
    rows = [0, 1, 6, 7, 40]
    assert arithmetic.computed(np.array(rows)) == by_hand(rows, 2, windowed=True, layers=layers)


@pytest.mark.parametrize(
    ("model", "mlps"),
    [
        # 8 experts of which a row goes through 2, a router; layer 1 is dense.
        (
            {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 7, "mlp_only_layers": [1]},
            [20 * 8 + 2 * 3 * 20 * 7, 3 * 20 * 30, 20 * 8 + 2 * 3 * 20 * 7],
        ),
        # Every second layer has experts, and one of 5 for all rows, with a gate.
        (
            {"num_experts": 4, "num_experts_per_tok": 1, "moe_intermediate_size": 7, "decoder_sparse_step": 2}
            | {"shared_expert_intermediate_size": 5},
            [3 * 20 * 30, 20 * 4 + 3 * 20 * 7 + 3 * 20 * 5 + 20, 3 * 20 * 30],
        ),
        # Mixtral has no width of its own for experts.
        ({"num_local_experts": 4, "num_experts_per_tok": 2}, [20 * 4 + 2 * 3 * 20 * 30] * 3),
    ],
)
def test_a_row_goes_through_some_experts(model: dict[str, object], mlps: list[int]) -> None:
    config = SimpleNamespace(**vars(CONFIG) | model)
    attention = 3 * 20 * (6 * 4 * 2 + 2 * 2 * 4)
    assert Arithmetic.of(config, MAP, 4, 3).row == 2 * (attention + sum(mlps))
    assert Arithmetic.of(config, MAP, 4, 3, layers=2).row == 2 * (attention * 2 // 3 + sum(mlps[:2]))
