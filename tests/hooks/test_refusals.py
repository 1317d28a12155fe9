# SPDX-License-Identifier: Apache-2.0
"""What is refused that a server on a CPU cannot be asked for."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from redknot_sglang.errors import RedKnotError
from redknot_sglang.hooks.v0_5_17.refusals import ARGUMENTS, refuse_unsupported


@pytest.mark.parametrize("dtype", ["mxfp8", "nvfp4", "fp4_mx_block16"])
def test_kv_with_scales_of_blocks(dtype: str) -> None:
    with pytest.raises(
        RedKnotError,
        match=f"--kv-cache-dtype {dtype} cannot be used with --redknot yet: KV with a scale for each block",
    ):
        refuse_unsupported(SimpleNamespace(kv_cache_dtype=dtype), None, ARGUMENTS)
