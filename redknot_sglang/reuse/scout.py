# SPDX-License-Identifier: Apache-2.0
"""Scout passes: a prompt's rows through the first layers in true context, to see which rows of segments it changes.

A scout pass is an ordinary prefill of the prompt that ends at the *scout layer* as soon as its K and V are written; its
KV lies in the tree under a namespace of its own, where later prompts with the same beginning find it. Compared with it
are the relocated K and V of the segments' global heads. The scout layer is the second layer that has global heads.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from redknot_sglang.heads import HeadMap
from redknot_sglang.kernels.relocate import turned
from redknot_sglang.radix.spans import Span, Spans, union
from redknot_sglang.reuse.repair import Blend

NEEDED_LAYERS = "a head map with global heads in at least two layers"
# A row whose squared relative deviation is below this (1 % of K and V) is as good as repaired.
UNCHANGED = 1e-4


class Scouted(Exception):
    """Leaves a scout pass's forward; caught by what `end_early` puts around the layers."""


def scout_layer(heads: HeadMap) -> int | None:
    """The second layer that has global heads, or None."""
    layers = [layer for layer in range(heads.num_layers) if heads.num_global(layer)]
    return layers[1] if len(layers) > 1 else None


def end_early(model: Any) -> None:
    """Let a loaded model's layers be left by `Scouted`; its answer, which nobody reads, is then that of zeros."""
    layers, width, dtype = model.model, model.config.hidden_size, next(model.parameters()).dtype
    forward = layers.forward

    def forward_until_scouted(input_ids: Tensor, *args: Any, **kwargs: Any) -> Any:
        try:
            return forward(input_ids, *args, **kwargs)
        except Scouted:
            return torch.zeros(input_ids.shape[0], width, dtype=dtype, device=input_ids.device)

    layers.forward = forward_until_scouted


def choose_rows(
    pool: Any, policy: Blend, segments: Sequence[Span], originals: Sequence[Tensor], scout: Tensor, origin: int
) -> dict[Span, Spans]:
    """The rows that a policy repairs of each segment.

    pool: a HeadClassPool; originals: global slots of each segment's own rows, int64 [tokens]; scout: those of the scout
    pass, int64 [at least the last segment's end]; origin: position at which segments were computed. Waits for the device.
    """
    layer, device = pool.scout_layer, scout.device
    k, v = pool.global_kv(layer)
    here = torch.cat([torch.arange(origin, origin + end - start) for start, end in segments]).to(device)
    there = torch.cat([torch.arange(start, end) for start, end in segments]).to(device)
    kept, true = torch.cat(list(originals)), scout[there]
    cos, sin = pool.rotation.turn(here, there)
    moved = turned(k[kept], cos, sin, pool.rotation.is_neox)
    errors, sizes = [], []
    for had, wanted in ((moved, k[true]), (v[kept], v[true])):
        errors.append((had.float() - wanted.float()).square().sum((1, 2)))
        sizes.append(wanted.float().square().sum((1, 2)))
    counts = [policy.count(end - start) for start, end in segments]
    rows, at = [], 0
    for (start, end), count in zip(segments, counts, strict=True):
        part = slice(at, at + end - start)
        # Relative, because K is larger than V: it would decide alone.
        deviation = sum(error[part] / size[part].mean() for error, size in zip(errors, sizes, strict=True))
        top, order = deviation.sort(descending=True, stable=True)
        rows.append(torch.where(top[:count] > UNCHANGED, order[:count] + start, -1))
        at += end - start
    found, ends = torch.cat(rows).tolist(), [0, *torch.tensor(counts).cumsum(0).tolist()]
    return {
        segment: union((row, row + 1) for row in found[a:b] if row >= 0)
        for segment, (a, b) in zip(segments, pairwise(ends), strict=True)
    }
