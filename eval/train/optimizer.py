# SPDX-License-Identifier: Apache-2.0
"""Muon for the matrices of the layers, AdamW for embedding and norms.

Muon: momentum whose update is replaced by its nearest orthogonal matrix, found by a Newton-Schulz iteration
with the quintic coefficients of Keller Jordan's "Muon: an optimizer for hidden layers in neural networks"
(2024).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from eval.train.model import MATRIX_NAMES, EmbeddedModel

_QUINTIC = (3.4445, -4.7750, 2.0315)


def orthogonalize(g: Tensor) -> Tensor:
    """Approximately U V^T of g = U S V^T, for a stack of matrices [n, rows, cols], in bfloat16."""
    a, b, c = _QUINTIC
    x = g.bfloat16()
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT if tall else x
    for _ in range(5):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x.mT if tall else x).float()


class Optimizer:
    """One step of both; `rate` scales both learning rates (warm-up and decay)."""

    def __init__(self, model: EmbeddedModel, matrix_rate: float, other_rate: float, decay: float) -> None:
        self._matrix_rate, self._other_rate, self._decay = matrix_rate, other_rate, decay
        self._groups: dict[torch.Size, list[Tensor]] = {}
        for layer in model.layers:
            for name in MATRIX_NAMES:
                matrix = getattr(layer, name)
                self._groups.setdefault(matrix.shape, []).append(matrix)
        self._momentum = {
            shape: torch.zeros(len(group), *shape, device=group[0].device) for shape, group in self._groups.items()
        }
        matrices = {id(p) for group in self._groups.values() for p in group}
        self._all = list(model.parameters())
        others = [p for p in self._all if id(p) not in matrices]
        self._adam = torch.optim.AdamW(others, lr=other_rate, betas=(0.9, 0.95), weight_decay=0.0, fused=True)

    @torch.no_grad()
    def step(self, rate: float, momentum: float) -> None:
        """Apply the gradients (clipped to norm 1) and clear them."""
        nn.utils.clip_grad_norm_(self._all, 1.0)
        for shape, group in self._groups.items():
            gradient = torch.stack([p.grad for p in group if p.grad is not None])
            kept = self._momentum[shape]
            kept.lerp_(gradient, 1 - momentum)
            update = orthogonalize(gradient.lerp(kept, momentum))
            scale = self._matrix_rate * rate * max(1.0, shape[0] / shape[1]) ** 0.5
            torch._foreach_mul_(group, 1 - self._matrix_rate * rate * self._decay)
            torch._foreach_add_(group, list(update.unbind(0)), alpha=-scale)
        for settings in self._adam.param_groups:
            settings["lr"] = self._other_rate * rate
        self._adam.step()
        for p in self._all:
            p.grad = None
