# SPDX-License-Identifier: Apache-2.0
"""The profile's attention on a GPU: fused kernels through expanded views, and the memory they take."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from redknot_sglang.profile.attention import full, grouped, mass_outside, rows_attend, windowed
from redknot_sglang.profile.data import random_data
from redknot_sglang.profile.methods import METHODS
from redknot_sglang.profile.model import ProfiledModel
from tests.profile.small_models import VOCABULARY, small_model, small_study

pytestmark = pytest.mark.gpu
HEADS, GROUP, DIM = 2, 4, 64
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 3e-2, torch.float16: 5e-3}


def tensors(rows: int, length: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator("cuda").manual_seed(rows + length)
    sizes = ((HEADS * GROUP, rows), (HEADS, length), (HEADS, length))
    q, k, v = (torch.randn(*size, DIM, generator=generator, device="cuda").to(dtype) for size in sizes)
    return q, k, v


def naive(q: Tensor, k: Tensor, v: Tensor, window: int | None, sink: int) -> Tensor:
    """float64 [Q, n, D] over all pairs of rows and keys."""
    q, k, v = q.double(), k.double().repeat_interleave(GROUP, 0), v.double().repeat_interleave(GROUP, 0)
    row = torch.arange(k.shape[1] - q.shape[1], k.shape[1], device=q.device)[:, None]
    at = torch.arange(k.shape[1], device=q.device)
    seen = at <= row
    if window is not None:
        seen = seen & ((at > row - window) | (at < sink))
    return (q @ k.transpose(1, 2) * DIM**-0.5).masked_fill(~seen, -torch.inf).softmax(-1) @ v


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(("rows", "length"), [(300, 300), (300, 1100), (1, 77), (257, 258), (65, 65), (129, 972)])
def test_kernels(rows: int, length: int, dtype: torch.dtype) -> None:
    q, k, v = tensors(rows, length, dtype)
    atol = TOLERANCE[dtype]
    torch.testing.assert_close(full(q, k, v, DIM**-0.5).double(), naive(q, k, v, None, 0), rtol=0, atol=atol)
    for window, sink in ((1, 0), (33, 4), (2000, 4)):
        found = windowed(q, k, v, DIM**-0.5, window, sink)
        torch.testing.assert_close(found.double(), naive(q, k, v, window, sink), rtol=0, atol=atol)
    at = torch.arange(length - rows, length, device="cuda")
    *near, far = rows_attend(q, k, v, at, DIM**-0.5, (33, 2000), 4)
    for output, size in zip((*near, far), (33, 2000, None), strict=True):
        torch.testing.assert_close(output.double(), naive(q, k, v, size, 4), rtol=0, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients(dtype: torch.dtype) -> None:
    """Gates differentiate through both kernels, over all rows at once."""
    found = []
    for window in (None, 33):
        q, k, v = (x.requires_grad_() for x in tensors(300, 300, dtype))
        out = full(q, k, v, DIM**-0.5) if window is None else windowed(q, k, v, DIM**-0.5, window, 4)
        out.float().square().sum().backward()
        again = [x.detach().double().requires_grad_() for x in (q, k, v)]
        naive(again[0], again[1], again[2], window, 4).square().sum().backward()
        for ours, theirs in zip((q, k, v), again, strict=True):
            assert ours.grad is not None and theirs.grad is not None
            error = (ours.grad.double() - theirs.grad).norm() / theirs.grad.norm()
            found.append(float(error))
    assert max(found) < (1e-4 if dtype == torch.float32 else 3e-2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_mask_and_no_repeated_keys(dtype: torch.dtype) -> None:
    """A mask of rows x keys would be 256 MiB in bytes, repeated keys and values 8 times k and v."""
    q, k, v = tensors(2048, 131072, dtype)
    size = sum(x.numel() * x.element_size() for x in (q, k, v))
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    full(q, k, v, DIM**-0.5)
    assert torch.cuda.max_memory_allocated() - before < size


def test_every_method_runs_and_agrees_with_the_cpu() -> None:
    data = random_data(VOCABULARY, (90,), 2, 0)
    fields = {"goal": 3, "gate_steps": 5}
    cpu = replace(small_study("qwen3", data.examples[0], 32, **fields), data=data)
    gpu = replace(cpu, model=ProfiledModel(copy.deepcopy(small_model("qwen3")).cuda(), 32))
    for name, method in METHODS.items():
        ours, theirs = (torch.tensor(method(study).harm[4]) for study in (gpu, cpu))
        if name != "greedy":  # an order, which rounding may change
            torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)


def test_mass_at_length() -> None:
    q, k, _ = tensors(16, 131072, torch.bfloat16)
    rows = torch.arange(131072 - 16, 131072, device="cuda")
    found = mass_outside(q, k, rows, DIM**-0.5, (128, 8192), 4)
    weights = (grouped(q, HEADS).double().flatten(1, 2) @ k.double().transpose(1, 2) * DIM**-0.5).unflatten(
        1, (GROUP, 16)
    )
    at = torch.arange(131072, device="cuda")
    weights = weights.masked_fill(at > rows[:, None], -torch.inf).softmax(-1).flatten(0, 1)
    for window, ours in zip((128, 8192), found, strict=True):
        outside = (at >= 4) & (at <= rows[:, None] - window)
        torch.testing.assert_close(ours, (weights * outside).sum(-1), rtol=0, atol=1e-5)
