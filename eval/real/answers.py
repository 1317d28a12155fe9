# SPDX-License-Identifier: Apache-2.0
"""What a model says under a head map, greedily, and how far its distribution is from dense attention's.

Offline, in transformers, with the attention of `redknot profile`. One pass over a prompt with dense attention's answer behind it
gives the divergence at that answer and the KV of the prompt, from which many prompts then go on together, a token at a time.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn.attention import sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from redknot_sglang.heads import HeadMap
from redknot_sglang.profile.attention import KERNELS, grouped
from redknot_sglang.profile.data import Example
from redknot_sglang.profile.model import ProfiledModel
from redknot_sglang.profile.objective import OwnBehaviour
from redknot_sglang.profile.study import under_map

Cache = tuple[Tensor, Tensor]
"""K and V of a layer for some prompts, each [B, H, T, D], T rows being room for the longest with its answer."""


@dataclass(frozen=True)
class Said:
    """What was said to one prompt.

    answer: token ids, with the one that ends the turn if it came to that.
    divergence: mean KL(dense || map) in nats at the tokens of dense attention's answer; 0 for dense attention itself.
    """

    answer: tuple[int, ...]
    divergence: float


class Speaker:
    """Asks one model the same prompts under one map after the other."""

    def __init__(
        self, model: ProfiledModel, prompts: Sequence[tuple[int, ...]], tokens: int, ends: Collection[int], batch: int
    ) -> None:
        """prompts: token ids. tokens: of an answer at most. ends: tokens that end an answer. batch: prompts at a time."""
        self._model, self._prompts, self._tokens, self._ends, self._batch = model, prompts, tokens, set(ends), batch
        self._objective = OwnBehaviour()
        every = HeadMap.from_global_heads(
            model.layers, model.kv_heads, [(i, h) for i in range(model.layers) for h in range(model.kv_heads)], 1, 0
        )
        self._wanted = [Example(prompt, len(prompt)) for prompt in prompts]
        self.dense = self.under(every)
        self._wanted = [
            Example((*prompt, *said.answer), len(prompt)) for prompt, said in zip(prompts, self.dense, strict=True)
        ]

    def under(self, head_map: HeadMap) -> list[Said]:
        """What the model says under a map, for each prompt."""
        said: list[Said] = []
        for begin in range(0, len(self._prompts), self._batch):
            said += self._some(head_map, self._wanted[begin : begin + self._batch])
        return said

    def _some(self, head_map: HeadMap, wanted: Sequence[Example]) -> list[Said]:
        model, room = self._model, max(example.first for example in wanted) + self._tokens
        local = [(layer, head) for layer in range(model.layers) for head in head_map.local_heads(layer)]
        attend = under_map(local, head_map.window, head_map.sink)
        shape = (len(wanted), model.kv_heads, room, model.head_dim)
        # Zeros: what no row sees still goes through a product with the weight 0.
        empty = partial(torch.zeros, shape, dtype=model.dtype, device=model.device)
        caches = [(empty(), empty()) for _ in range(model.layers)]
        first, nats = [], []
        for number, example in enumerate(wanted):
            x, tables = model.embed(example.ids)
            for layer in range(model.layers):
                k, v = model.run_layer(layer, x, tables, attend)
                for cache, new in zip(caches[layer], (k, v), strict=True):
                    cache[number, :, : example.first] = new[:, : example.first]
            first.append(int(model.logits(x[example.first - 1 : example.first]).argmax()))
            has_answer = len(example.ids) > example.first
            nats.append(self._objective.loss(model, x, example)[0] if has_answer else 0.0)
        answers = self._go_on(head_map, [example.first for example in wanted], first, caches)
        return [Said(tuple(answer), value) for answer, value in zip(answers, nats, strict=True)]

    def _go_on(
        self, head_map: HeadMap, lengths: Sequence[int], first: Sequence[int], caches: Sequence[Cache]
    ) -> list[list[int]]:
        """The answers that begin with the tokens `first`, one for each prompt of that many tokens."""
        model, answers = self._model, [[token] for token in first]
        room = caches[0][0].shape[2]
        x = model.parts.embed(torch.tensor(first, device=model.device))
        cos, sin = model.tables(x, torch.arange(room, device=model.device))
        rows = torch.tensor(lengths, device=model.device)
        for _ in range(self._tokens - 1):
            if all(answer[-1] in self._ends for answer in answers):
                break
            masks = _masks(rows, room, head_map.window, head_map.sink)
            for layer in range(model.layers):
                is_global = torch.tensor(head_map.is_global[layer], device=model.device)
                mask = torch.where(is_global[None, :, None, None], masks[0][:, None, None], masks[1][:, None, None])
                x = _one_row_each(model, layer, x, (cos[rows], sin[rows]), rows, caches[layer], mask)
            said = model.logits(x).argmax(-1)
            for answer, token in zip(answers, said.tolist(), strict=True):
                if answer[-1] not in self._ends:
                    answer.append(token)
            x, rows = model.parts.embed(said), rows + 1
        return answers


def _masks(rows: Tensor, room: int, window: int, sink: int) -> tuple[Tensor, Tensor]:
    """bool [B, T] each: what a global and what a local head sees from a row of each prompt at `rows`, int64 [B]."""
    at, row = torch.arange(room, device=rows.device), rows[:, None]
    seen = at <= row
    return seen, seen & ((at > row - window) | (at < sink))


def _one_row_each(
    model: ProfiledModel,
    layer: int,
    x: Tensor,
    tables: tuple[Tensor, Tensor],
    rows: Tensor,
    cache: Cache,
    mask: Tensor,
) -> Tensor:
    """One row of each prompt, [B, d], through a layer. mask: bool [B, H, 1, T]. Rows of a layer meet in attention only."""
    numbers = torch.arange(len(rows), device=rows.device)

    def attend(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        for kept, new in zip(cache, (k, v), strict=True):
            kept[numbers, :, rows] = new.transpose(0, 1)
        queries = grouped(q, len(k)).permute(2, 0, 1, 3)  # [B, H, Q / H, D]: the group's heads as rows
        seen = mask.expand(-1, -1, queries.shape[2], -1).contiguous()
        with sdpa_kernel(KERNELS):
            out = scaled_dot_product_attention(queries, cache[0], cache[1], attn_mask=seen, scale=scale)
        return out.permute(1, 2, 0, 3).flatten(0, 1)

    return model.apply_layer(layer, x, tables, attend)
