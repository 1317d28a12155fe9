# SPDX-License-Identifier: Apache-2.0
"""With how many blocks rows are copied to host memory and back."""

from __future__ import annotations

import pytest

from redknot_sglang.kernels.copy_rows import blocks_for


@pytest.mark.parametrize(("size", "blocks"), [(8, 16), (256, 16), (512, 8), (1792, 3), (2048, 2), (16384, 2)])
def test_short_rows_take_more_blocks(size: int, blocks: int) -> None:
    assert blocks_for(size, to_device=True) == blocks


@pytest.mark.parametrize("size", [8, 256, 16384])
def test_rows_on_their_way_to_the_host_leave_decoding_its_share_of_the_memory(size: int) -> None:
    assert blocks_for(size, to_device=False) == 2
