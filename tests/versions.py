# SPDX-License-Identifier: Apache-2.0
"""Marks of tests that hold for some of the supported SGLang versions only."""

from __future__ import annotations

import pytest

from redknot_sglang.versions import sglang_version

# Whether the installed SGLang's classes are put into the shape of 0.5.17's (`redknot_sglang/seams/v0_5_23/adapted/`).
IS_ADAPTED = sglang_version() == "0.5.23"
needs_adapted = pytest.mark.skipif(
    not IS_ADAPTED, reason="of SGLang 0.5.23's classes (make test-sglang VERSION=0.5.23)"
)
before_adapted = pytest.mark.skipif(
    IS_ADAPTED, reason="of functions that SGLang 0.5.23 has not got, does not call, or gives other arguments"
)
# Where host memory behind the pools is served (`hooks/v0_5_18/refusals.py`).
needs_host_tier = pytest.mark.skipif(
    sglang_version() == "0.5.18",
    reason="SGLang 0.5.18 asks host pools in another way, so host memory is refused with it",
)
