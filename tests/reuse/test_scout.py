# SPDX-License-Identifier: Apache-2.0
"""The choice of rows against a loop over rows, and the layer that is looked at."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch

from redknot_sglang.heads import HeadMap
from redknot_sglang.kernels.relocate import Rotation
from redknot_sglang.reuse.repair import Blend
from redknot_sglang.reuse.scout import Scouted, choose_rows, end_early, scout_layer

SEGMENTS = [(3, 23), (23, 24), (30, 61)]


def rotation(positions: int, half: int, is_neox: bool) -> Rotation:
    angle = torch.arange(positions, dtype=torch.float64)[:, None] * 0.3 ** torch.arange(half, dtype=torch.float64)
    return Rotation(torch.cat([angle.cos(), angle.sin()], 1).float(), is_neox)


def turned(key: torch.Tensor, angles: torch.Tensor, is_neox: bool) -> torch.Tensor:
    """One key by complex numbers; angles [D / 2]."""
    half = len(angles)
    first, second = (key[:, :half], key[:, half:]) if is_neox else (key[:, ::2], key[:, 1::2])
    z = torch.complex(first, second) * torch.polar(torch.ones(half), angles)
    return torch.cat([z.real, z.imag], 1) if is_neox else torch.stack([z.real, z.imag], -1).flatten(1)


@pytest.mark.parametrize("is_neox", [True, False])
@pytest.mark.parametrize(("share", "origin"), [(0.1, 0), (0.34, 5), (1.0, 0)])
def test_rows_that_deviate_most(share: float, origin: int, is_neox: bool) -> None:
    torch.manual_seed(1)
    slots, half = torch.randperm(150), 4
    k, v = torch.randn(160, 2, 2 * half), torch.randn(160, 2, 2 * half)
    scout, originals, at = slots[:61], [], 61
    angles = 0.3 ** torch.arange(half).float()
    deviation = {}
    for start, end in SEGMENTS:
        own = slots[at : at + end - start]
        at += end - start
        originals.append(own)
        for i, row in enumerate(range(start, end)):
            noise = 0.0 if row % 3 == 0 else 0.01 * ((row * 37) % 50)
            k[own[i]] = turned(k[scout[row]], (origin + i - row) * angles, is_neox) + noise * torch.randn(2, 2 * half)
            v[own[i]] = v[scout[row]] + noise * torch.randn(2, 2 * half)
            back = turned(k[own[i]], (row - origin - i) * angles, is_neox)
            deviation[row] = [(back - k[scout[row]]).square().sum(), (v[own[i]] - v[scout[row]]).square().sum()]
    pool = SimpleNamespace(scout_layer=2, rotation=rotation(99, half, is_neox), global_kv=lambda layer: (k, v))
    found = choose_rows(pool, Blend(share), SEGMENTS, originals, scout, origin)
    for start, end in SEGMENTS:
        rows = range(start, end)
        size = [x[scout[start:end]].square().sum((1, 2)).mean() for x in (k, v)]
        total = {row: float(sum(d / s for d, s in zip(deviation[row], size, strict=True))) for row in rows}
        wanted = sorted(rows, key=lambda row: -total[row])[: math.ceil(share * len(rows))]
        chosen = [row for a, b in found[start, end] for row in range(a, b)]
        assert chosen == sorted(row for row in wanted if total[row] > 1e-4)
        assert all(row % 3 for row in chosen), "a row that nothing changed needs no repair"


@pytest.mark.parametrize(
    ("layers", "layer"), [("LL LG GL GG", 2), ("GG GG", 1), ("LG LL", None), ("LL LL GL LL LG", 4)]
)
def test_the_second_layer_with_global_heads(layers: str, layer: int | None) -> None:
    rows = tuple(tuple(mark == "G" for mark in row) for row in layers.split())
    assert scout_layer(HeadMap(len(rows), 2, rows, window=8, sink=1)) == layer


def test_a_forward_that_is_left_early_gives_zeros() -> None:
    class Layers(torch.nn.Module):
        def forward(self, input_ids: torch.Tensor, early: bool) -> torch.Tensor:
            if early:
                raise Scouted
            return torch.ones(len(input_ids), 6)

    weight = torch.ones(1, dtype=torch.bfloat16)
    layers = Layers()
    end_early(SimpleNamespace(model=layers, config=SimpleNamespace(hidden_size=6), parameters=lambda: iter([weight])))
    ids = torch.arange(5)
    assert torch.equal(layers(ids, True), torch.zeros(5, 6, dtype=torch.bfloat16))
    assert torch.equal(layers(ids, False), torch.ones(5, 6))
