# SPDX-License-Identifier: Apache-2.0
"""Which rows of segments a repair policy computes again; the policies' definitions are in `eval/segmented.py`."""

from __future__ import annotations

import random
from math import ceil
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from eval.train.model import Layer

if TYPE_CHECKING:
    from eval.segmented import Cached, Ids, SegmentedModel, Spans, State

# A row whose squared relative deviation or change is below this (1 %) is as good as repaired.
UNCHANGED = 1e-4
_NUMBERS = {"none": (0,), "boundary": (1,), "blend": (1,), "cacheblend": (1, 2), "random": (1,), "oracle": (1,)}


def repair_rows(
    model: SegmentedModel, policy: str, prompt: Ids, forced: Ids, spans: Spans, cached: Cached, seed: int
) -> list[int]:
    """Positions of the repair rows. Raises ValueError for an unknown policy."""
    name, *numbers = policy.split(":")
    if len(numbers) not in _NUMBERS.get(name, ()):
        raise ValueError(
            f"{policy!r} is none of: none, boundary:k, blend:r, cacheblend:r[:l], random:r, oracle:r, heads, dense"
        )
    if name in ("none", "boundary"):
        return [p for a, b in spans for p in range(a, min(b, a + int((numbers or ["0"])[0])))]
    share = float(numbers[0])
    parts = [range(a, min(b, len(prompt) - 1)) for a, b in spans if a < len(prompt) - 1]
    if name == "random":
        rng = random.Random(seed)
        return [row for part in parts for row in rng.sample(part, ceil(share * len(part)))]
    if name == "blend":
        changes = _probe(model, prompt + forced, spans, cached, parts)
    else:
        layers = numbers[1:] or [str(model.blend_layer)] if name == "cacheblend" else range(model.config.layers)
        changes = _deviations(model, model.dense(prompt, forced), cached, parts, list(map(int, layers)))
    rows = list[int]()
    for part, change in zip(parts, changes, strict=True):
        top, order = (x[: ceil(share * len(part))] for x in change.sort(descending=True, stable=True))
        rows += [part[i] for i in order[top > UNCHANGED].tolist()]
    return rows


def _probe(model: SegmentedModel, ids: Ids, spans: Spans, cached: Cached, parts: list[range]) -> list[Tensor]:
    """How much each row of `parts` changes, by what isolation left."""
    c, layer, ends = model.config, model.probe_layer, [0, *(end for _, end in spans)]
    between = tuple((a, b) for a, (b, _) in zip(ends, spans, strict=False) if a < b)
    group, shared, end = c.q_heads // c.kv_heads, model.heads[layer][0], parts[-1].stop if parts else 0
    queries = (shared[:, None] * group + torch.arange(group, device=model.device)).flatten()
    # Spans do not overlap, so where one has rows the other has zeros.
    here = [x[layer] + y[layer] for x, y in zip(cached, model.isolate(ids, between, "none"), strict=True)]
    k, v = (x[:end, shared].repeat_interleave(group, 1).transpose(0, 1) for x in here[:2])
    got = scaled_dot_product_attention(here[2][:end, queries].transpose(0, 1), k, v, is_causal=True).transpose(0, 1)
    first, second = (model.weights.layers[i] for i in (layer, model.blend_layer))
    assert isinstance(first, Layer) and isinstance(second, Layer)
    into = first.o.unflatten(1, (c.q_heads, c.head_dim))[:, queries].flatten(1)
    values = second.v.unflatten(0, (c.kv_heads, c.head_dim))[model.heads[model.blend_layer][0]].flatten(0, 1)
    carry = ((values * second.norm_in) @ into).float()
    alone = here[3][:end, queries]
    change, size = ((x.float().flatten(1) @ carry.T).square().sum(1) for x in (got - alone, alone))
    return [change[part.start : part.stop] / size[part.start : part.stop].mean() for part in parts]


def _deviations(
    model: SegmentedModel, true: State, cached: Cached, parts: list[range], layers: list[int]
) -> list[Tensor]:
    """How far K and V of each row of `parts` are from those of `true`, summed over global heads of `layers`."""
    found = []
    for part in parts:
        at = slice(part.start, part.stop)
        deviation = torch.zeros(len(part), device=model.device)
        for layer in layers:
            heads = model.config.global_in(layer)
            for kept, fresh in ((cached.k, true.k), (cached.v, true.v)) if heads else ():
                wanted = fresh[layer, at][:, heads].float()
                error = (kept[layer, at][:, heads].float() - wanted).square().sum((1, 2))
                # Relative, because K is larger than V and layers differ in scale: one of them would decide alone.
                deviation += error / wanted.square().sum((1, 2)).mean()
        found.append(deviation)
    return found
