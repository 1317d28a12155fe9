# SPDX-License-Identifier: Apache-2.0
"""Results that were measured side by side, joined."""

from __future__ import annotations

from typing import Any

import pytest

from eval.merge_repair import merge


def part(first: int, hits: dict[str, str], dtype: str = "float32") -> dict[str, Any]:
    cells = [
        {"task": "lookup", "length": 64, "policy": policy, "n": len(h), "computed_share": 0.1 * first, "hits": h}
        for policy, h in hits.items()
    ]
    n = len(next(iter(hits.values())))
    options = {"first": first, "n": n, "json": f"{first}.json", "dtype": dtype}
    return {"options": options, "complete": True, "offsets": {"crossdoc/64": [first] * n}, "cells": cells}


def test_cells_are_joined_in_order() -> None:
    whole = merge([part(0, {"dense": "111", "none": "100"}), part(3, {"dense": "1", "none": "0"})])
    dense, none = whole["cells"]
    assert (dense["hits"], dense["right"], dense["n"]) == ("1111", 4, 4)
    assert (none["hits"], none["right"], none["n"]) == ("1000", 1, 4)
    assert none["low"] < 0.25 < none["high"]
    assert none["computed_share"] == pytest.approx(0.3 / 4)
    assert whole["offsets"] == {"crossdoc/64": [0, 0, 0, 3]}
    assert whole["options"]["parts"] == [[0, 3], [3, 1]]


def test_parts_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="different options"):
        merge([part(0, {"dense": "1"}), part(1, {"dense": "1"}, "bfloat16")])
    with pytest.raises(ValueError, match="different orders"):
        merge([part(0, {"dense": "1", "none": "1"}), part(1, {"none": "1", "dense": "1"})])
