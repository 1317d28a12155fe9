# SPDX-License-Identifier: Apache-2.0
"""Operations of a choice: rows of the question by the layers that they went through."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from redknot_sglang.heads import HeadMap
from redknot_sglang.plan.arithmetic import Arithmetic
from redknot_sglang.plan.plan import Plan
from redknot_sglang.plan.policies import parse_repair
from redknot_sglang.plan.request import RequestState
from redknot_sglang.plan.spans import Spans
from redknot_sglang.reuse.model_facts import ModelFacts
from redknot_sglang.reuse.selection import DocumentSelection

CONFIG = SimpleNamespace(
    num_attention_heads=6, num_key_value_heads=2, hidden_size=20, intermediate_size=30, num_hidden_layers=3
)
MAP = HeadMap(3, 2, ((True, False), (True, False), (True, True)), window=5, sink=2, retrieval=((0, 1), (1, 2)))
ALL, EARLY = (Arithmetic.of(CONFIG, MAP, 4, 0, layers=layers) for layers in (None, 2))
# A lead of 3 tokens, documents of 10 and 7, a question of 6 behind them.
PLAN, PROMPT = Plan(((3, 13), (13, 20)), parse_repair("question:1"), after_lead=True), 26
LOGITS = 6 * 17 * 2 * (2 * 4)


def operations(asking: RequestState | None) -> int:
    pool = SimpleNamespace(whole_map=MAP)
    tree: Any = SimpleNamespace(token_to_kv_pool_allocator=SimpleNamespace(get_kvcache=lambda: pool))
    facts = ModelFacts(arithmetic=ALL, asking_layers=2, asking=EARLY)
    return DocumentSelection(tree, facts, SimpleNamespace())._operations(PLAN, PROMPT, asking)  # type: ignore[arg-type]


@pytest.mark.parametrize("asking", [None, RequestState()], ids=["cached", "alone"])
def test_a_question_goes_up_to_the_deepest_retrieval_head(asking: RequestState | None) -> None:
    assert operations(asking) == EARLY.computed(np.arange(3, 9)) + LOGITS < ALL.computed(np.arange(3, 9))


@pytest.mark.parametrize(
    ("deep", "rows"),
    [
        # Its lead was not cached, and shared a forward with the first rows.
        ([(0, 5)], [3, 4]),
        ([(0, 4), (4, 9)], [3, 4, 5, 6, 7, 8]),
        ([(6, 8)], [6, 7]),
    ],
)
def test_rows_beside_other_requests_went_through_all_layers(deep: Spans, rows: list[int]) -> None:
    early = [row for row in range(3, 9) if row not in rows]
    expected = ALL.computed(np.array(rows)) + EARLY.computed(np.array(early, dtype=np.int64)) + LOGITS
    assert operations(RequestState(asks=True, deep=deep)) == expected
