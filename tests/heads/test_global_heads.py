# SPDX-License-Identifier: Apache-2.0
"""The notation for global heads."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from redknot_sglang.errors import HeadMapError
from redknot_sglang.heads.global_heads import parse_global_heads


@pytest.mark.parametrize(
    ("text", "pairs"),
    [
        ("0:1", {(0, 1)}),
        ("0:1, 2:3", {(0, 1), (2, 3)}),
        ("0:1,0:1", {(0, 1)}),
        ("1:*", {(1, 0), (1, 1), (1, 2), (1, 3)}),
        ("*:2", {(0, 2), (1, 2), (2, 2)}),
        ("1-2:0-1", {(1, 0), (1, 1), (2, 0), (2, 1)}),
        ("2:3-3", {(2, 3)}),
    ],
)
def test_notation(text: str, pairs: set[tuple[int, int]]) -> None:
    assert parse_global_heads(text, num_layers=3, num_kv_heads=4) == pairs


@given(st.sets(st.tuples(st.integers(0, 39), st.integers(0, 7)), min_size=1))
def test_single_pairs(pairs: set[tuple[int, int]]) -> None:
    text = ",".join(f"{layer}:{head}" for layer, head in pairs)
    assert parse_global_heads(text, num_layers=40, num_kv_heads=8) == pairs


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "item 1 '': expected LAYER:HEAD, as in 0:1, 3:* or 5:0-2"),
        ("0:1,", "item 2 '': expected LAYER:HEAD"),
        ("0:1,2", "item 2 '2': expected LAYER:HEAD"),
        ("3:0", "item 1 '3:0': no layer 3, the model has layers 0 to 2"),
        ("0:4", "item 1 '0:4': no KV head 4, the model has KV heads 0 to 3"),
        ("0:2-9", "item 1 '0:2-9': no KV head 9"),
        ("0:2-1", "item 1 '0:2-1': KV head range 2-1 runs backwards"),
        ("0:x", "item 1 '0:x': KV head 'x' is neither a number nor a range such as 0-2 nor *"),
        ("-1:0", "item 1 '-1:0': layer '-1' is neither a number"),
        ("0:1:2", "item 1 '0:1:2': KV head '1:2' is neither a number"),
        ("0:1-", "item 1 '0:1-': KV head '1-' is neither a number"),
    ],
)
def test_wrong_notation(text: str, message: str) -> None:
    with pytest.raises(HeadMapError) as caught:
        parse_global_heads(text, num_layers=3, num_kv_heads=4)
    assert str(caught.value).startswith(f"global heads, {message}")
