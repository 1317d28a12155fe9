# SPDX-License-Identifier: Apache-2.0
"""Decode path "torch": gathers the pages of several requests and calls scaled_dot_product_attention."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NoReturn

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from .batch import CLASSES, ClassSpec, DecodeBatch, HeadClass
from .class_heads import Target
from .extend_torch import needs_cpu
from .move_heads import put_heads
from .paths import check_rows
from .torch_blocks import additive

# Tokens gathered by one call. A larger gather leaves the cache and loses more than fewer calls win.
_GROUP_TOKENS = 4096


@dataclass(frozen=True)
class _Group:
    """Decoding requests of similar length.

    rows: their rows of q.
    slots: int64, ``width`` pages of each; shorter requests repeat their last one.
    width: pages of the longest.
    mask: additive, hides repeated pages; None if there are none.
    """

    rows: slice | Tensor
    slots: Tensor
    width: int
    mask: Tensor | None


class TorchDecode:
    """Decode by torch alone, in the queries' dtype; pools may have another dtype and scales. It has no CUDA graphs."""

    name: ClassVar[str] = "torch"

    def __init__(self, spec: ClassSpec) -> None:
        self._spec = spec
        self._planned: dict[HeadClass, list[_Group]] = {}
        self._rows = 0

    @staticmethod
    def why_not(spec: ClassSpec) -> str | None:
        """The reason why this path cannot serve ``spec``, or None."""
        return needs_cpu(spec)

    def plan_decode(self, batch: DecodeBatch) -> None:
        lens = batch.host_lens()
        self._rows = len(lens)
        self._planned = {c: _groups(batch, lens, c, self._spec) for c in CLASSES if self._spec.widths(c)}

    def run(
        self,
        head_class: HeadClass,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        scale: float,
        *,
        target: Target | None = None,
        k_scale: float = 1.0,
        v_scale: float = 1.0,
    ) -> Tensor:
        check_rows(q, self._rows)
        rows, n_q, dim = q.shape
        heads = k.shape[1]
        queries = q.reshape(rows, heads, n_q // heads, dim)
        out = torch.empty(queries.shape, dtype=q.dtype, device=q.device)
        for group in self._planned[head_class]:
            # Requests take the batch dimension; the query heads of a KV head are the rows of one call.
            keys, values = (
                x.index_select(0, group.slots).to(q.dtype).view(-1, group.width, heads, dim).transpose(1, 2)
                for x in (k, v)
            )
            result = scaled_dot_product_attention(
                queries[group.rows], keys, values, attn_mask=group.mask, scale=scale * k_scale
            )
            out[group.rows] = result if v_scale == 1.0 else result * v_scale
        result = out.view(rows, n_q, dim)
        if target is None:
            return result
        put_heads(result, target)
        return target.out

    def init_graph(self, max_bs: int, max_context: int) -> None:
        self._no_graphs()

    def plan_graph(self, batch: DecodeBatch) -> None:
        self._no_graphs()

    def _no_graphs(self) -> NoReturn:
        raise RuntimeError("the torch path has no CUDA graphs: turn them off, or choose another attention path")


def _groups(batch: DecodeBatch, lens: list[int], head_class: HeadClass, spec: ClassSpec) -> list[_Group]:
    """Cut the requests, longest first, into groups that pad to at most twice their pages and gather at most
    _GROUP_TOKENS.
    """
    device, local = spec.device, head_class == "local"
    kept = [min(n, spec.window + spec.sink) for n in lens] if local else lens
    groups: list[list[int]] = []
    for i in sorted(range(len(lens)), key=lambda i: -kept[i]):
        width = kept[groups[-1][0]] if groups else 0
        if groups and 2 * kept[i] >= width and (len(groups[-1]) + 1) * width <= _GROUP_TOKENS:
            groups[-1].append(i)
        else:
            groups.append([i])
    plan = []
    for group in groups:
        members = sorted(group)
        width = kept[group[0]]
        requests = batch.req_pool_indices[_rows(members, device)]
        own = torch.tensor([kept[i] for i in members], device=device)[:, None]
        skipped = torch.tensor([lens[i] - kept[i] for i in members], device=device)[:, None]
        # Padding repeats the last page, which is live: masked-out garbage times weight 0 could still be NaN.
        entry = torch.arange(width, device=device)[None, :].minimum(own - 1)
        position = entry + skipped * (entry >= spec.sink)
        slots = batch.req_to_token[requests[:, None], position].long().flatten()
        if local:
            slots = batch.full_to_local.index_select(0, slots).long()
        mask = None
        if any(kept[i] != width for i in members):
            hidden = torch.arange(width, device=device)[None, :] >= own
            mask = additive(hidden[:, None, None, :], spec.dtype, device)
        plan.append(_Group(_rows(members, device), slots, width, mask))
    return plan


def _rows(members: list[int], device: torch.device) -> slice | Tensor:
    if members[-1] - members[0] + 1 == len(members):
        return slice(members[0], members[-1] + 1)
    return torch.tensor(members, device=device)
