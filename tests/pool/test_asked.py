# SPDX-License-Identifier: Apache-2.0
"""Queries of retrieval heads: which are kept where, what they cost, and maps whose heads cannot be asked."""

from __future__ import annotations

import pytest
import torch

from redknot_sglang.errors import RedKnotError
from redknot_sglang.heads import HeadMap
from redknot_sglang.pool.asked import AskedQueries, check_retrieval
from redknot_sglang.pool.sizing import class_bytes

GROUP, DIM = 3, 4


def make_map(*retrieval: tuple[int, int]) -> HeadMap:
    """Two layers of four KV heads, of which 1 and 3 are global in the first and 2 in the second."""
    return HeadMap(2, 4, ((False, True, False, True), (False, False, True, False)), 8, 2, retrieval=retrieval)


def test_rows_of_the_right_heads_are_kept() -> None:
    asked = AskedQueries(9, make_map((0, 10), (1, 6), (0, 3)), GROUP, DIM, torch.float32, "cpu")
    # Query heads of KV heads 1 and 3 of the first layer, of KV head 2 of the second: 3 to 5 and 9 to 11, 6 to 8.
    first, second = torch.randn(2, 6, DIM), torch.randn(2, 3, DIM)
    slots = torch.tensor([7, 2])
    asked.store(0, slots, first, 0.5)
    asked.store(1, slots, second, 0.5)
    assert torch.equal(asked.rows[slots], torch.stack([first[:, 4], second[:, 0], first[:, 0]], 1))
    assert asked.scale == 0.5 and not asked.rows[[0, 1, 3, 4, 5, 6, 8, 9]].any()
    assert asked.heads == [(0, 1), (1, 0), (0, 0)]


def test_a_layer_without_retrieval_heads_keeps_nothing() -> None:
    asked = AskedQueries(9, make_map((0, 10)), GROUP, DIM, torch.float32, "cpu")
    asked.store(1, torch.tensor([3]), torch.ones(1, 3, DIM), 0.5)
    assert not asked.rows.any() and asked.scale == 0.0


def test_their_bytes_are_counted() -> None:
    plain, asked = class_bytes(make_map(), 64, 2), class_bytes(make_map((0, 10), (1, 6), (0, 3)), 64, 2)
    rows = AskedQueries(1, make_map((0, 10), (1, 6), (0, 3)), GROUP, 64, torch.bfloat16, "cpu").rows
    assert asked.probe - plain.probe == rows[0].numel() * rows.element_size()


@pytest.mark.parametrize(
    ("head", "message"),
    [
        ((1, 12), "retrieval head 1.12 does not exist: the model has 12 query heads in a layer; make the map again"),
        ((1, 3), "retrieval head 1.3 belongs to KV head 1, which is local .* make that head global"),
    ],
)
def test_heads_that_cannot_be_asked_are_refused(head: tuple[int, int], message: str) -> None:
    with pytest.raises(RedKnotError, match=message):
        check_retrieval(make_map((0, 10), head), GROUP)
