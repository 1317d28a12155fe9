# SPDX-License-Identifier: Apache-2.0
"""Layers of two classes, and what parting their heads and putting them back must give."""

from __future__ import annotations

import torch

from redknot_sglang.kernels import move_heads
from redknot_sglang.kernels.class_heads import ClassHeads, Split, Target

GROUP = 3
# One letter for each KV head, as in a head map.
LAYERS = ("GGGG", "LLLL", "GLLL", "LGLL", "LGLG", "GGLL")


def make_split(layer: str, device: str) -> Split:
    """The heads of a layer."""
    classes = ([head for head, letter in enumerate(layer) if letter == own] for own in "GL")
    return Split.of(*(ClassHeads.of(heads, GROUP, torch.device(device)) for heads in classes))


def check_split(
    layer: str,
    rows: int,
    head_dim: int,
    pool_dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    scales: tuple[float, float] = (1.0, 1.0),
) -> None:
    """KV lands in the slots of its class, the rest of the pools stays, and queries come class by class."""
    seed = torch.Generator().manual_seed(rows)
    n, slots = len(layer), 2 * rows
    # As a projection gives them: views of one wider row.
    qkv = torch.randn(rows, (GROUP + 2) * n, head_dim, generator=seed)
    # Beyond the largest 8-bit float, once divided by a scale.
    qkv[:, :, 0] *= 900
    qkv = qkv.to(device)
    q, k, v = qkv[:, : GROUP * n], qkv[:, GROUP * n : (GROUP + 1) * n], qkv[:, (GROUP + 1) * n :]
    at = [(torch.randperm(slots, generator=seed)[:rows] + 1).to(device) for _ in layer[:2]]
    split = make_split(layer, device)
    classes = split.global_heads, split.local_heads
    shapes = [(slots + 1, len(heads.numbers), head_dim) for heads in classes]

    def pool(shape: tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.full(shape, 7.0, device=device).to(pool_dtype), torch.full(shape, 7.0, device=device).to(
            pool_dtype
        )

    pools = [pool(shape) for shape in shapes]
    for store in (False, True):
        keys, values = (k, v) if store else (None, None)
        parts = move_heads.split_heads(split, q, keys, values, at[0], at[1], pools[0], pools[1], scales)
        for heads, where, of_class, part in zip(classes, at, pools, parts, strict=True):
            assert torch.equal(part, q[:, heads.query])
            for rows_of_all, buffer, scale in zip((k, v), of_class, scales, strict=True):
                want = torch.full(buffer.shape, 7.0, device=device)
                if store:
                    # On the CPU: on GPUs torch multiplies by the inverse.
                    given = rows_of_all.cpu()[:, heads.kv.long().cpu()] / scale
                    if pool_dtype.itemsize == 1:
                        given = given.clamp(-torch.finfo(pool_dtype).max, torch.finfo(pool_dtype).max)
                    want[where] = given.to(pool_dtype).float().to(device)
                assert torch.equal(buffer.float(), want)


def check_put(rows: int, head_dim: int, device: str = "cpu") -> None:
    """A class's output lands in its heads, the others stay."""
    split = make_split("LGLG", device)
    for heads in (split.global_heads, split.local_heads):
        out = torch.full((rows, 4 * GROUP, head_dim), 7.0, device=device)
        part = torch.randn(rows, 2 * GROUP, head_dim, device=device)
        want = out.clone()
        want[:, heads.query] = part
        move_heads.put_heads(part, Target(out, heads))
        assert torch.equal(out, want)
