# SPDX-License-Identifier: Apache-2.0
"""The choice of rows against a loop over rows, what is read out of a model's layers, and who keeps probes."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from redknot_sglang.config import RedKnotConfig
from redknot_sglang.heads import HeadMap
from redknot_sglang.kernels.relocate import Rotation
from redknot_sglang.plan.policies import parse_repair
from redknot_sglang.pool.probe import ProbeBuffers, probe_width
from redknot_sglang.reuse.model_facts import ModelFacts, ProbeLayer, readout_of
from redknot_sglang.reuse.probe import Piece, choose_rows

# A lead, two adjacent segments, text, a segment.
SPANS = [(0, 3), (3, 23), (23, 24), (24, 30), (30, 61)]
SEGMENTS = [(3, 23), (23, 24), (30, 61)]
HALF, WIDTH, HEADS = 4, 4, 2


def make_map(layers: str) -> HeadMap:
    rows = tuple(tuple(mark == "G" for mark in row) for row in layers.split())
    return HeadMap(len(rows), len(rows[0]), rows, window=8, sink=1)


def rotation(positions: int, is_neox: bool) -> Rotation:
    angle = torch.arange(positions, dtype=torch.float64)[:, None] * 0.3 ** torch.arange(HALF, dtype=torch.float64)
    return Rotation(torch.cat([angle.cos(), angle.sin()], 1).float(), is_neox)


def turned(key: Tensor, steps: int, is_neox: bool) -> Tensor:
    """Rows [heads, D] of one position, turned by complex numbers."""
    angles = steps * 0.3 ** torch.arange(HALF).float()
    first, second = (key[:, :HALF], key[:, HALF:]) if is_neox else (key[:, ::2], key[:, 1::2])
    z = torch.complex(first, second) * torch.polar(torch.ones(HALF), angles)
    return torch.cat([z.real, z.imag], 1) if is_neox else torch.stack([z.real, z.imag], -1).flatten(1)


@pytest.mark.parametrize("is_neox", [True, False])
@pytest.mark.parametrize(("share", "origin", "first"), [(0.1, 0, 0), (0.34, 5, 0), (1.0, 0, 0), (0.2, 3, 2)])
def test_rows_that_change_most(share: float, origin: int, first: int, is_neox: bool) -> None:
    torch.manual_seed(1)
    slots, k, v = torch.randperm(150)[:61] + 1, torch.randn(160, HEADS, 8), torch.randn(160, HEADS, 8)
    mapping = torch.zeros(160, dtype=torch.int64)
    mapping[slots] = torch.randperm(61) + 1
    probes = ProbeBuffers(61, WIDTH, make_map("LL GG LG"), 8, torch.float32, "cpu")
    probes.asked.normal_()
    probes.got.normal_()
    layer = ProbeLayer(make_map("LL GG LG"), 8, 0.4, torch.randn(WIDTH * 8, 8))
    facts = ModelFacts(rotation(99, is_neox), probe=layer)
    pool = SimpleNamespace(probes=probes, global_kv=lambda layer: (k, v))
    pieces = [Piece((a, b), origin if (a, b) in SEGMENTS else 0, slots[a:b]) for a, b in SPANS]
    shift = {p: piece.span[0] - piece.origin for piece in pieces for p in range(*piece.span)}

    change, size = {}, {}
    keys = torch.stack([turned(k[slots[p]], shift[p], is_neox) for p in range(61)])
    for p in range(61):
        own = mapping[slots[p]]
        query = turned(probes.asked[own], shift[p], is_neox)
        got = torch.zeros(WIDTH, 8)
        for head in range(WIDTH):
            weights = (keys[: p + 1, head // 2] @ query[head] * 0.4).softmax(0)
            got[head] = weights @ v[slots[: p + 1], head // 2]
        if p % 4 == 0:
            # A row that gets in context what it got in isolation.
            probes.got[own] = got
        alone = probes.got[own]
        change[p] = float(((got - alone).flatten() @ layer.readout).square().sum())
        size[p] = float((alone.flatten() @ layer.readout).square().sum())

    chosen = choose_rows(pool, facts, mapping, parse_repair(f"blend:{share}").count, pieces, SEGMENTS[first:]).rows()
    assert list(chosen) == SEGMENTS[first:]
    for start, end in SEGMENTS[first:]:
        mean = sum(size[p] for p in range(start, end)) / (end - start)
        most = sorted(range(start, end), key=lambda p: -change[p])[: math.ceil(share * (end - start))]
        rows = chosen[start, end].tolist()
        assert rows == sorted(p for p in most if change[p] / mean > 1e-4)
        assert all(p % 4 for p in rows), "a row that nothing changed needs no repair"


class _Linear(nn.Module):
    """As SGLang's: the output comes with a bias that was not added, here none."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.weight, self.bias = torch.randn(shape[1], shape[0]), torch.randn(shape[1])

    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        return x @ self.weight.T + self.bias, None


def test_values_of_the_next_global_heads_are_linear_in_the_change() -> None:
    torch.manual_seed(2)
    heads, group, dim, width = make_map("LLL LGG LLL GLG"), 2, 4, 12
    kinds = [("o_proj", 6 * dim, width), ("qkv_proj", width, (6 + 3 + 3) * dim)]
    layers = [
        SimpleNamespace(
            self_attn=SimpleNamespace(
                num_heads=6, attn=SimpleNamespace(scaling=0.25), **{name: _Linear(*shape) for name, *shape in kinds}
            ),
            input_layernorm=SimpleNamespace(weight=torch.randn(width)),
        )
        for _ in range(4)
    ]
    found = readout_of(SimpleNamespace(model=SimpleNamespace(layers=layers)), heads, dim)
    change = torch.randn(5, 4, dim)
    output = torch.zeros(5, 6, dim)
    output[:, [2, 3, 4, 5]] = change
    added = output.flatten(1) @ layers[1].self_attn.o_proj.weight.T * layers[3].input_layernorm.weight
    values = (added @ layers[3].self_attn.qkv_proj.weight.T)[:, 9 * dim :].view(5, 3, dim)
    assert torch.allclose(change.flatten(1) @ found, values[:, [0, 2]].flatten(1), atol=1e-4)
    assert group * heads.num_global(1) == 4
    model = SimpleNamespace(model=SimpleNamespace(layers=layers))
    facts = ModelFacts(rotation(9, True), probe=ProbeLayer.of(model, heads, dim))
    before = facts.probe
    assert before is not None and before.scale == 0.25 and torch.equal(before.readout, found)
    # New weights are followed, by the same object.
    layers[1].self_attn.o_proj.weight *= 2
    facts.follow_weights(model)
    assert facts.probe is not None and torch.allclose(facts.probe.readout, 2 * before.readout, atol=1e-4)
    unprobed = ModelFacts(rotation(9, True))
    unprobed.follow_weights(model)
    assert unprobed.probe is None


@pytest.mark.parametrize(
    ("layers", "options", "width"),
    [
        ("LL LG GL GG", {}, 3),
        ("LL GG LL LG", {}, 6),
        ("LL GG LL LL", {}, 0),
        ("GG GG", {}, 0),
        ("GG GG", {"mode": "segmented"}, 6),
        ("GG GG", {"segment_length": 300}, 6),
    ],
)
def test_who_keeps_probes(layers: str, options: dict, width: int) -> None:
    assert probe_width(RedKnotConfig(Path("map"), **options), make_map(layers), 3) == width
