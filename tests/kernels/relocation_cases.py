# SPDX-License-Identifier: Apache-2.0
"""Pools and moves for relocation tests, and what must come out."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from redknot_sglang.kernels.kv_layers import KVLayers
from redknot_sglang.kernels.relocate import Rotation
from redknot_sglang.kernels.stored import is_fp8, largest, stored

SLOTS = 64
WIDTHS = (2, 0, 1, 3)


@dataclass(frozen=True)
class Case:
    """Keys computed at `origin` in `source` slots, to be moved to `target` slots for `position`."""

    layers: KVLayers
    rotation: Rotation
    source: Tensor
    target: Tensor
    origin: Tensor
    position: Tensor


def plain_table(rotary_dim: int, positions: int = 4096, base: float = 1e4, magnitude: float = 1.0) -> Tensor:
    """cos and sin of RoPE's angles: float32 [positions, rotary_dim]."""
    frequency = base ** (-torch.arange(0, rotary_dim, 2, dtype=torch.float64) / rotary_dim)
    angle = torch.arange(positions, dtype=torch.float64)[:, None] * frequency
    return magnitude * torch.cat([angle.cos(), angle.sin()], -1).float()


def make_case(
    head_dim: int = 16,
    rotary_dim: int = 16,
    is_neox: bool = True,
    dtype: torch.dtype = torch.float32,
    magnitude: float = 1.0,
    rows: int = 13,
) -> Case:
    """Random KV in pools whose layers have different numbers of heads, and moves forwards, backwards and to itself."""
    seed = torch.Generator().manual_seed(rows)
    # Some keys of 8-bit floats turn into larger ones than there are.
    size = 250.0 if is_fp8(dtype) else 1.0
    pools = [[stored(size * torch.randn(SLOTS, n, head_dim, generator=seed), dtype) for n in WIDTHS] for _ in "kv"]
    slots = torch.randperm(SLOTS, generator=seed)
    origin = torch.randint(0, 4000, (rows,), generator=seed)
    position = torch.randint(0, 4000, (rows,), generator=seed)
    position[: rows // 4] = origin[: rows // 4]
    rotation = Rotation(plain_table(rotary_dim, magnitude=magnitude), is_neox)
    return Case(KVLayers(*pools), rotation, slots[:rows], slots[rows : 2 * rows], origin, position)


def expected(case: Case) -> list[tuple[Tensor, Tensor]]:
    """K (float64, before rounding, no larger than the dtype has it) and V of the moved rows in every layer, by complex multiplication."""
    half = case.rotation.table.shape[1] // 2
    table = case.rotation.table.double()
    phase = torch.complex(table[:, :half], table[:, half:])
    turn = phase[case.position] / phase[case.origin]
    out = []
    for k, v in zip(case.layers.k, case.layers.v, strict=True):
        keys = k.double()[case.source]
        x = keys[..., : 2 * half]
        first, second = (x[..., :half], x[..., half:]) if case.rotation.is_neox else (x[..., ::2], x[..., 1::2])
        moved = torch.complex(first.contiguous(), second.contiguous()) * turn[:, None]
        if case.rotation.is_neox:
            keys[..., :half], keys[..., half : 2 * half] = moved.real, moved.imag
        else:
            keys[..., 0 : 2 * half : 2], keys[..., 1 : 2 * half : 2] = moved.real, moved.imag
        bound = largest(k.dtype) or torch.inf
        out.append((keys.clamp(-bound, bound), v.float()[case.source]))
    return out


def check(case: Case, device: str = "cpu") -> None:
    """Relocate on `device` and compare; rows that are not targets must not change."""
    from redknot_sglang.kernels.relocate import relocate

    wanted = expected(case)
    layers = KVLayers([k.to(device).clone() for k in case.layers.k], [v.to(device).clone() for v in case.layers.v])
    rotation = Rotation(case.rotation.table.to(device), case.rotation.is_neox)
    cos, sin = rotation.turn(case.origin.to(device), case.position.to(device))
    source, target = case.source.to(device), case.target.to(device)
    relocate(layers, source, target, cos, sin, case.rotation.is_neox)
    stays = case.origin == case.position
    others = torch.ones(SLOTS, dtype=torch.bool)
    others[case.target] = False
    dtype = case.layers.k[0].dtype
    # One rounding to the pool's dtype, and float32 arithmetic before it.
    bound = torch.finfo(dtype).eps / 2 + 4e-6
    # The smallest steps of 8-bit floats are absolute.
    least = float(torch.finfo(dtype).smallest_normal) if is_fp8(dtype) else bound
    for layer, (keys, values) in enumerate(wanted):
        k, v = layers.k[layer].cpu().float(), layers.v[layer].cpu().float()
        before = case.layers.k[layer].float(), case.layers.v[layer].float()
        assert torch.equal(v[case.target], values)
        assert torch.equal(k[case.target][stays], before[0][case.source][stays])
        torch.testing.assert_close(k[case.target].double(), keys, rtol=bound, atol=least)
        assert torch.equal(k[others], before[0][others])
        assert torch.equal(v[others], before[1][others])


SHAPES = [
    (16, 16, True, torch.float32, 1.0),
    (16, 16, False, torch.float32, 1.0),
    (24, 8, True, torch.float32, 1.0),
    (24, 8, False, torch.bfloat16, 1.0),
    (24, 24, True, torch.bfloat16, 1.35),
    (64, 64, True, torch.float16, 1.0),
    (64, 64, True, torch.float8_e4m3fn, 1.0),
    (24, 8, False, torch.float8_e4m3fn, 1.0),
    (16, 16, True, torch.float8_e5m2, 1.0),
]
