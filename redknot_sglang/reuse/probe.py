# SPDX-License-Identifier: Apache-2.0
"""Probes: estimate from the prefix cache which rows of a segment (document) its context changes most. The model does
not run.

The *probe layer* is the first layer with global heads, which see the whole context. Below it all heads are local, so a
row's queries, keys and values there hardly depend on what stands before its segment. What isolated prefills (each
computes one segment alone) left of this layer is therefore nearly what it would be in this prompt, but for positions. A
probe

1. turns these queries and keys to their positions in the prompt,
2. lets each row attend once over everything before it, by the layer's global heads,
3. compares what the row gets with what it got in isolation.

The difference is weighed by how much of it shows in the values of the next layer with global heads, to first order:
through the output projection, the norm's weight and the value projection. All this costs the attention of a few heads
of one layer.

The probe layer's heads may lie on several tensor-parallel ranks. What shows of a change in the next layer's values is
a sum over heads, so each rank computes its own part, and the parts are summed before they are squared.
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
from redknot_sglang.reuse.probe_ranks import ONE_RANK, ProbeRanks

# A row whose squared relative change is below this (1 %) is as good as repaired.
UNCHANGED = 1e-4


@dataclass(frozen=True)
class Piece:
    """A part of the prompt as it was computed in isolation.

    span: its positions in the prompt.
    origin: the position at which it was computed: 0, or the length of the lead.
    slots: its global slots, int64 [tokens].
    """

    span: Span
    origin: int
    slots: Tensor


@dataclass(frozen=True, eq=False)
class Choice:
    """The rows to repair of some segments, on their way from the device to the host.

    segments: spans of the prompt.
    counts: of each segment, how many entries of `found` are its own.
    found: int64 [sum of counts], positions in the prompt; -1 where no further row needs repair.
    copied: the event after which `found` is on the host; None if it is there already.
    ranks: the tensor-parallel ranks, which all take the first one's choice.
    """

    segments: Sequence[Span]
    counts: Sequence[int]
    found: Tensor
    copied: torch.cuda.Event | None
    ranks: ProbeRanks = ONE_RANK

    def rows(self) -> dict[Span, Positions]:
        """Of each segment, the positions to repair, ascending: int64. Waits for the device if it has to, and for the
        first rank.

        So every rank has to call this, once, and for requests in the same order.
        """
        if self.copied is not None:
            self.copied.synchronize()
        found = [chosen.numpy() for chosen in self.ranks.agreed(self.found).split(list(self.counts))]
        return {segment: np.sort(chosen[chosen >= 0]) for segment, chosen in zip(self.segments, found, strict=True)}


def choose_rows(
    pool: Any,
    facts: ModelFacts,
    mapping: Tensor,
    count: Callable[[int], int],
    pieces: Sequence[Piece],
    segments: Sequence[Span],
) -> Choice:
    """Have the device choose which rows of some segments are repaired. Returns at once, with an answer to wait for.

    Tensor-parallel ranks sum up what each finds by its own heads, so all of them have to call this.

    pool: a HeadClassPool that keeps rows for probes.
    facts: what segmented mode has to know of its model.
    mapping: local slot of each global slot, int64.
    count: the most rows to repair of a segment, by the number of its rows.
    pieces: the whole prompt up to the end of the last segment, in order.
    segments: spans of the pieces whose rows are to be chosen.
    """
    probes, rotation, layer, device = pool.probes, facts.rotation, facts.probe, pieces[0].slots.device
    assert rotation is not None and layer is not None, "nothing can be chosen without probes"
    origins = [np.arange(piece.origin, piece.origin + len(piece.slots)) for piece in pieces]
    here = to_device(np.concatenate(origins), device, torch.int64)
    slots = torch.cat([piece.slots for piece in pieces])
    there = torch.arange(len(slots), device=device)
    cos, sin = rotation.turn(here, there)
    first = segments[0][0]
    shown = torch.zeros(2, len(slots) - first, layer.readout.shape[1], device=device)
    # A rank may have none of the probe layer's global heads.
    if probes.width:
        k, v = (buffer[slots] for buffer in pool.global_kv(probes.layer))
        local = mapping[slots[first:]]
        asked = turned(probes.asked[local], cos[first:], sin[first:], rotation.is_neox)
        got = causal_attention(asked, turned(k, cos, sin, rotation.is_neox), v, layer.scale)
        alone = probes.got[local].float()
        for x, part in zip((got.float() - alone, alone), shown, strict=True):
            torch.mm(x.flatten(1), layer.readout, out=part)
    change, size = layer.ranks.sum(shown).square().sum(2)
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
    return Choice(segments, counts, found, copied, layer.ranks)
