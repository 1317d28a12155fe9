# SPDX-License-Identifier: Apache-2.0
"""Auxiliary loss that shows a few heads where to look: the generator knows where every answer stands.

Without it, random text gives a small model no reason to build the pair of heads that a lookup needs; with it
(and with copying) lookups appear within the first million tokens. See eval/NOTES.md.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from eval.train.data import REFERENCE, RESOLVED, RETRIEVE
from eval.train.model import ModelConfig


@dataclass(frozen=True)
class Rule:
    """Query head `head` of `layer` is to look `back` tokens back, or along gold attention of the kinds."""

    layer: int
    head: int
    back: int = 0
    kinds: tuple[int, ...] = ()


def rules_for(c: ModelConfig) -> tuple[Rule, ...]:
    """Previous-token rules on two local heads of layer 0, retrieval on global heads of layers 1 to 3."""
    group = c.q_heads // c.kv_heads
    first, second, third = ([h * group for h in c.global_in(layer)] for layer in (1, 2, 3))
    back = [h * group for h in c.local_in(0)]
    return (
        Rule(0, back[0], back=1),
        Rule(0, back[1], back=2),
        Rule(1, first[0], kinds=(RETRIEVE,)),
        Rule(2, second[0], kinds=(RETRIEVE,)),
        Rule(1, first[-1], kinds=(REFERENCE,)),
        Rule(2, second[-1], kinds=(RESOLVED,)),
        Rule(3, third[-1], kinds=(RETRIEVE, RESOLVED)),
    )


class Supervisor:
    """Collects the loss of the rules over one forward pass; give `observe` to `make_attention`.

    gold: integer [B, R, 3] as in `data.Batch`. Scores are plainly causal whatever the batch's layout.
    """

    def __init__(self, c: ModelConfig, rules: tuple[Rule, ...], gold: Tensor, length: int) -> None:
        self._group = c.q_heads // c.kv_heads
        self._scale = c.head_dim**-0.5
        self._rules = rules
        self._gold = gold.long()
        self._columns = torch.arange(length, device=gold.device)
        # A fixed stride of rows is enough for the previous-token rules.
        self._every = torch.arange(8, length, max(1, length // 32), device=gold.device).expand(len(gold), -1)
        self.losses: list[Tensor] = []

    def observe(self, layer: int, q: Tensor, k: Tensor) -> None:
        """Add the losses of the rules for this layer, from rotated q [B, T, Hq, D] and k [B, T, Hkv, D]."""
        for rule in self._rules:
            if rule.layer != layer:
                continue
            if rule.back:
                row, target, valid = (
                    self._every,
                    self._every - rule.back,
                    torch.ones_like(self._every, dtype=torch.bool),
                )
            else:
                row, target = self._gold[..., 0], self._gold[..., 1]
                kind = self._gold[..., 2:]
                valid = torch.cat([kind == wanted for wanted in rule.kinds], -1).any(-1)
            asked = q[:, :, rule.head].gather(1, row[..., None].expand(-1, -1, q.shape[-1]))
            scores = (asked @ k[:, :, rule.head // self._group].transpose(1, 2)).float() * self._scale
            scores = scores.masked_fill(self._columns > row[..., None], float("-inf"))
            loss = F.cross_entropy(scores.transpose(1, 2), target, reduction="none")
            self.losses.append((loss * valid).sum() / valid.sum().clamp(min=1))

    def loss(self) -> Tensor:
        """Mean over the rules."""
        return torch.stack(self.losses).mean()
