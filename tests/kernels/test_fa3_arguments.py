# SPDX-License-Identifier: Apache-2.0
"""Into how many parts path "fa3" has keys cut inside a prefill graph."""

from __future__ import annotations

import pytest
import torch

from redknot_sglang.kernels import fa3_arguments
from redknot_sglang.kernels.batch import ClassSpec
from redknot_sglang.kernels.fa3_arguments import splits_for


@pytest.mark.parametrize(
    ("rows", "group", "heads", "parts"),
    [
        (16, 6, 2, 32),  # a tile: as many parts as the library can
        (320, 4, 1, 18),  # 10 tiles on 132 processors
        (320, 6, 2, 6),
        (576, 6, 2, 3),
        (1088, 6, 2, 1),  # 102 tiles: parts would cost more than they save
        (2176, 4, 1, 1),
        (64, 4, 8, 11),
        (8192, 4, 8, 1),
    ],
)
def test_a_few_more_parts_than_processors_and_none_where_tiles_are_many(
    rows: int, group: int, heads: int, parts: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fa3_arguments, "processors_of", lambda device: 132)
    spec = ClassSpec(group, 128, (heads,), (), 128, 4, torch.bfloat16, torch.device("cpu"))
    assert splits_for(rows, heads, spec) == parts
