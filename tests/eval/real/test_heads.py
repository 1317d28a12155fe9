# SPDX-License-Identifier: Apache-2.0
"""Retrieval heads found on some questions and looked at on others: what is counted, on shares made by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from eval.real.heads import chosen, ranks, table, told

# [1 layer, 3 query heads, 4 documents]: head 0 wants document 2, head 1 document 0, head 2 both of them alike.
WANTS = torch.tensor([[[0.1, 0.2, 0.6, 0.1], [0.7, 0.1, 0.1, 0.1], [0.4, 0.1, 0.4, 0.1]]])


def test_a_rank_is_that_of_the_best_document_that_tells() -> None:
    assert ranks(WANTS, (2,)).tolist() == [[0, 1, 0]]
    assert ranks(WANTS, (1, 3)).tolist() == [[1, 1, 2]]


def test_heads_together_want_by_the_mean_of_their_shares() -> None:
    assert chosen(WANTS, [(0, 0), (0, 1)]).tolist() == pytest.approx([0.4, 0.15, 0.35, 0.1])


def test_together_and_all_heads_are_counted_apart() -> None:
    wants: list[Tensor] = [WANTS, WANTS]
    found = told(wants, [(2,), (1,)], [(0, 0)])
    # By head 0 document 2 comes first and document 1 second; by all heads documents 0 and 2 come before document 1.
    assert found["together"] == {"1": 1, "2": 2, "4": 2}
    assert found["all_heads"] == {"1": 0, "2": 1, "4": 2}


def test_the_table_has_a_line_for_each_head_and_choice() -> None:
    held: dict[str, Any] = {
        "n": 4,
        "first": [3],
        "together": {"1": 3, "2": 4, "4": 4},
        "all_heads": dict.fromkeys("124", 1),
    }
    result = {
        "best": [[7, 8]], "global": [False], "calibration": {"name": "c.jsonl", "n": 2, "first": [2]}, "held_out": {"nq": held},
    }  # fmt: skip
    text = table(result)
    assert "7.8" in text and "100" in text and "75" in text
    assert text.count("nq") == 3 and "all heads" in text
