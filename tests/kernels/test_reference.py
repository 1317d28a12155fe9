# SPDX-License-Identifier: Apache-2.0
"""The oracle itself, against the definition written as loops."""

from __future__ import annotations

import math

import pytest
import torch

from redknot_sglang.kernels.reference import attend, attend_paged
from tests.kernels.cases import SCALE, make_case, make_spec


def by_definition(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    position: int,
    k_pos: list[int],
    near: bool,
    window: int,
    sink: int,
    scales: tuple[float, float],
) -> tuple[torch.Tensor, float]:
    """One row of one head: q [D], k, v [L, D]."""
    logits = {}
    for i, p in enumerate(k_pos):
        if p <= position and (not near or p > position - window or p < sink):
            logits[i] = float(q @ (k[i] * scales[0])) * SCALE
    total = sum(math.exp(x) for x in logits.values())
    out = sum((math.exp(x) / total * v[i] * scales[1] for i, x in logits.items()), torch.zeros(len(q)))
    return out, math.log(total)


@pytest.mark.parametrize("scales", [(1.0, 1.0), (0.5, 3.0)])
@pytest.mark.parametrize(("window", "sink"), [(1, 0), (4, 2), (50, 1)])
def test_attend_is_the_definition(window: int, sink: int, scales: tuple[float, float]) -> None:
    torch.manual_seed(0)
    is_global = torch.tensor([True, False])
    k_pos, q_pos = list(range(12)), [3, 7, 11]
    q, k, v = torch.randn(3, 4, 8), torch.randn(12, 2, 8), torch.randn(12, 2, 8)
    out, lse = attend(q, k, v, torch.tensor(q_pos), torch.tensor(k_pos), is_global, window, sink, SCALE, *scales)
    for row, position in enumerate(q_pos):
        for head in range(4):
            kv = head // 2
            want, want_lse = by_definition(
                q[row, head], k[:, kv], v[:, kv], position, k_pos, kv == 1, window, sink, scales
            )
            torch.testing.assert_close(out[row, head], want, atol=1e-5, rtol=1e-5)
            assert float(lse[row, head]) == pytest.approx(want_lse, abs=1e-5)


def test_a_row_that_sees_nothing_gives_zero() -> None:
    q, k = torch.randn(1, 1, 4), torch.randn(2, 1, 4)
    out, lse = attend(q, k, k, torch.tensor([5]), torch.tensor([6, 7]), torch.tensor([True]), 1, 0, SCALE)
    assert torch.equal(out, torch.zeros(1, 1, 4)) and lse.item() == -math.inf


def test_paged_reads_live_slots_only_and_keeps_requests_apart() -> None:
    spec = make_spec(window=6, sink=2)
    case = make_case(spec, [0, 30], [9, 4])
    both, _ = case.expected(case.extend, "local")
    assert bool(both.isfinite().all())
    alone = case.extend
    for field in ("req_pool_indices", "prefix_lens", "seq_lens"):
        setattr(alone, field, getattr(alone, field)[1:])
    case.q["local"] = case.q["local"][9:]
    torch.testing.assert_close(case.expected(alone, "local")[0], both[9:])


def test_paged_decode_is_the_last_row_of_an_extend() -> None:
    spec = make_spec(window=6, sink=2)
    case = make_case(spec, [12, 30], [1, 1])
    for head_class in ("global", "local"):
        pools = case.q[head_class], case.k[head_class], case.v[head_class]
        extended = attend_paged(case.extend, head_class, *pools, 6, 2, SCALE)
        decoded = attend_paged(case.decode, head_class, *pools, 6, 2, SCALE)
        assert torch.equal(extended[0], decoded[0]) and torch.equal(extended[1], decoded[1])
