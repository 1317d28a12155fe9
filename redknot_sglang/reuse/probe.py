# SPDX-License-Identifier: Apache-2.0
"""Probes: which rows of a segment its context changes, found in the prefix cache, without running the model.

Below the first layer with global heads, the *probe layer*, all heads are local: there a row's queries, keys and values
hardly depend on what stands before its segment. So what the layer's global heads bring from elsewhere can be told from
what isolated prefills left: queries and keys are turned to their true positions, rows attend once over everything before
them, and what they get is compared with what they got in isolation. The difference is weighed by what the next layer with
global heads sees of it in its values, to first order: through the output projection, the norm's weight and the value
projection. Its cost is one layer's attention of a few heads.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from redknot_sglang.kernels.causal import causal_attention
from redknot_sglang.kernels.host_copy import to_device
from redknot_sglang.kernels.relocate import turned
from redknot_sglang.plan.spans import Positions, Span
from redknot_sglang.reuse.model_facts import ModelFacts

# A row whose squared relative change is below this (1 %) is as good as repaired.
UNCHANGED = 1e-4


@dataclass(frozen=True)
class Piece:
    """A span of the prompt as it was computed in isolation: from position `origin`, into global slots, int64 [tokens]."""

    span: Span
    origin: int
    slots: Tensor


@dataclass(frozen=True, eq=False)
class Choice:
    """The rows to repair of some segments, on their way to the host.

    found: int64 [sum of counts], on the host once `copied` has happened (None: it has); -1 where a row needs no repair.
    """

    segments: Sequence[Span]
    counts: Sequence[int]
    found: Tensor
    copied: torch.cuda.Event | None

    def rows(self) -> dict[Span, Positions]:
        """Of each segment, ascending. Waits until they are there."""
        if self.copied is not None:
            self.copied.synchronize()
        found = [chosen.numpy() for chosen in self.found.split(list(self.counts))]
        return {segment: np.sort(chosen[chosen >= 0]) for segment, chosen in zip(self.segments, found, strict=True)}


def choose_rows(
    pool: Any,
    facts: ModelFacts,
    mapping: Tensor,
    count: Callable[[int], int],
    pieces: Sequence[Piece],
    segments: Sequence[Span],
) -> Choice:
    """Queue the choice of the rows that a policy repairs of each of `segments`, `count(rows)` at most of one with `rows`.

    pool: a HeadClassPool with probes; facts: of its model; mapping: local slot of each global slot; pieces: all of the prompt before the last
    segment's end, in order; segments: among them.
    """
    probes, rotation, layer, device = pool.probes, facts.rotation, facts.probe, pieces[0].slots.device
    assert rotation is not None and layer is not None, "nothing can be chosen without probes"
    origins = [np.arange(piece.origin, piece.origin + len(piece.slots)) for piece in pieces]
    here = to_device(np.concatenate(origins), device, torch.int64)
    slots = torch.cat([piece.slots for piece in pieces])
    there = torch.arange(len(slots), device=device)
    cos, sin = rotation.turn(here, there)
    k, v = (buffer[slots] for buffer in pool.global_kv(probes.layer))
    first = segments[0][0]
    local = mapping[slots[first:]]
    asked = turned(probes.asked[local], cos[first:], sin[first:], rotation.is_neox)
    got = causal_attention(asked, turned(k, cos, sin, rotation.is_neox), v, layer.scale)
    alone = probes.got[local].float()
    change, size = ((x.flatten(1) @ layer.readout).square().sum(1) for x in (got.float() - alone, alone))
    rows, counts = [], [count(end - start) for start, end in segments]
    for (start, end), most in zip(segments, counts, strict=True):
        part = slice(start - first, end - first)
        top, order = (change[part] / size[part].mean()).sort(descending=True, stable=True)
        rows.append(torch.where(top[:most] > UNCHANGED, order[:most] + start, -1))
    found, copied = torch.cat(rows), None
    if found.is_cuda:
        found = torch.empty(len(found), dtype=found.dtype, pin_memory=True).copy_(found, non_blocking=True)
        copied = torch.cuda.Event()
        copied.record()
    return Choice(segments, counts, found, copied)
