# SPDX-License-Identifier: Apache-2.0
"""Cases of the kernel of document sums, and its check against torch in float64."""

from __future__ import annotations

from itertools import pairwise

import torch

from redknot_sglang.kernels.triton_document_sums import launch_document_sums

# Head dimension, rows of the question, tokens of the documents, dtype of the keys.
SHAPES = [
    (128, 30, (1000, 17, 4, 1, 64, 129), torch.bfloat16),
    (64, 1, (5,), torch.float32),
    (80, 33, (70, 64, 3), torch.float16),
    (8, 16, (2, 66), torch.float32),
]
SKIPPED = 4
# KV heads of each query head's layer, and its place among them.
PLACES = [(3, 2), (1, 0), (2, 1)]


def check(head_dim: int, rows: int, sizes: tuple[int, ...], dtype: torch.dtype, device: str) -> None:
    """Sums of scattered keys as float64 has them; a document alone has the very bits that it has among others."""
    torch.manual_seed(rows)
    total = sum(sizes)
    layers = [torch.randn(total + 50, width, head_dim).to(dtype).to(device) for width, _ in PLACES]
    table = [(keys.data_ptr(), place, width) for keys, (width, place) in zip(layers, PLACES, strict=True)]
    addresses = torch.tensor(table, dtype=torch.int64).t().contiguous().to(device)
    q = torch.randn(rows, len(PLACES), head_dim, device=device)
    slots = torch.randperm(total + 50)[:total].to(device)
    starts = torch.tensor([0, *sizes]).cumsum(0)

    def sums(first: int, end: int, bounds: torch.Tensor) -> torch.Tensor:
        return launch_document_sums(addresses, layers[0], q, slots[first:end], bounds.to(device), SKIPPED, 0.3)

    got = sums(0, total, starts)
    assert got.shape == (len(PLACES), rows, len(sizes))
    for number, (first, end) in enumerate(pairwise(starts.tolist())):
        counted = slots[first + min(SKIPPED, end - first - 1) : end]
        for head, (keys, (_, place)) in enumerate(zip(layers, PLACES, strict=True)):
            wanted = (q[:, head].double() @ keys[counted, place].double().T * 0.3).logsumexp(1)
            torch.testing.assert_close(got[head, :, number].double(), wanted, atol=2e-5, rtol=2e-5)
        alone = sums(first, end, torch.tensor([0, end - first]))
        assert torch.equal(alone[:, :, 0], got[:, :, number])
