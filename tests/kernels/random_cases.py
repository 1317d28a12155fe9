# SPDX-License-Identifier: Apache-2.0
"""Random batches of random shapes, for the torch paths."""

from __future__ import annotations

import torch
from hypothesis import strategies as st

from redknot_sglang.kernels.batch import CLASSES, DecodeBatch, ExtendBatch
from redknot_sglang.kernels.paths import AttentionPath
from tests.kernels.cases import Case, make_case, make_spec

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}
PREFIXES = st.one_of(st.integers(0, 8), st.integers(0, 700))
ROWS = st.one_of(st.integers(1, 6), st.integers(1, 600))
# Of keys and of values; half of the cases have none.
SCALES = st.one_of(st.just((1.0, 1.0)), st.tuples(st.floats(0.1, 3.0), st.floats(0.1, 3.0)))


@st.composite
def cases(draw: st.DrawFn, decode: bool) -> Case:
    """Up to five requests."""
    requests = draw(st.lists(st.tuples(PREFIXES, ROWS), min_size=1, max_size=5))
    spec = make_spec(
        group=draw(st.sampled_from([1, 2, 3, 8])),
        head_dim=draw(st.sampled_from([16, 24, 64])),
        n_global=draw(st.integers(1, 3)),
        n_local=draw(st.integers(1, 3)),
        window=draw(st.one_of(st.integers(1, 20), st.sampled_from([64, 128, 512]))),
        sink=draw(st.integers(0, 5)),
        dtype=draw(st.sampled_from(list(TOLERANCE))),
    )
    prefixes, rows = map(list, zip(*requests, strict=True))
    return make_case(spec, prefixes, [1] * len(rows) if decode else rows, draw(st.integers(0, 99)))


def check(
    case: Case, batch: ExtendBatch | DecodeBatch, path: AttentionPath, scales: tuple[float, float] = (1.0, 1.0)
) -> None:
    """Both classes of the latest plan against the oracle; scales: of keys and of values."""
    tolerance = TOLERANCE[case.spec.dtype]
    for head_class in CLASSES:
        out = case.run(path, head_class, scales)
        assert out.dtype == case.spec.dtype and out.shape == case.q[head_class].shape
        want, _ = case.exact(batch, head_class, scales)
        # The float32 oracle's own rounding is as large as a path's, and both together are above the bound.
        torch.testing.assert_close(out.double(), want, atol=tolerance * max(1.0, scales[1]), rtol=tolerance)
