# SPDX-License-Identifier: Apache-2.0
"""With how many blocks rows are copied to host memory and back."""

from __future__ import annotations

import pytest

from redknot_sglang.kernels.copy_rows import blocks_for


@pytest.mark.parametrize(("size", "blocks"), [(8, 16), (256, 16), (512, 8), (1792, 3), (2048, 2), (16384, 2)])
def test_short_rows_take_more_blocks(size: int, blocks: int) -> None:
    assert blocks_for(size) == blocks
