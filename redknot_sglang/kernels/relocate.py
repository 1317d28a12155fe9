# SPDX-License-Identifier: Apache-2.0
"""Relocation: cached keys and values moved to other slots, keys turned to another position.

K'(p) = R(p) R(p0)^-1 K(p0) in float32 on the rotary dimensions, rounded once to the pool's dtype; V and the other
dimensions are copied (RoPE: arXiv 2104.09864, section 3.4; relocation: arXiv 2606.06256). R comes from the model's own
table, so that a moved key differs from one computed in place by rounding only, whatever scaling the table has. Where a
pool stores keys divided by a layer's scale, a turn leaves them divided by it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .kv_layers import KVLayers
from .stored import movable, stored
from .triton_relocate import launch_relocate, launch_turn


@dataclass(frozen=True)
class Rotation:
    """How a model rotates its keys.

    table: float [positions, rotary_dim], cos of the angles and then sin. A constant factor on it (YaRN's magnitude)
        has no effect.
    is_neox: whether dimension i turns with i + rotary_dim / 2; if not, it turns with its neighbour.
    """

    table: Tensor
    is_neox: bool

    def turn(self, origin: Tensor, position: Tensor) -> tuple[Tensor, Tensor]:
        """The turn from one position to another.

        origin: int64 [n], positions that keys were computed at.
        position: int64 [n], positions that they are wanted for.
        Returns cos and sin of the angles, float32 [n, rotary_dim / 2] each.
        """
        if self.table.is_cuda and origin.is_cuda:
            return launch_turn(self.table.contiguous(), origin, position)
        return self.turn_torch(origin, position)

    def turn_torch(self, origin: Tensor, position: Tensor) -> tuple[Tensor, Tensor]:
        """`turn` by torch alone, on any device."""
        here, there = (self.table.index_select(0, at.to(self.table.device)).float() for at in (origin, position))
        (cos0, sin0), (cos1, sin1) = here.chunk(2, -1), there.chunk(2, -1)
        cos, sin = cos1 * cos0 + sin1 * sin0, sin1 * cos0 - cos1 * sin0
        norm = torch.hypot(cos, sin)
        # A finite key that stays where it is keeps its value.
        same = (origin == position).to(cos.device)[:, None]
        return torch.where(same, 1.0, cos / norm), torch.where(same, 0.0, sin / norm)


def relocate(layers: KVLayers, source: Tensor, target: Tensor, cos: Tensor, sin: Tensor, is_neox: bool) -> None:
    """Move rows in every layer: V[target] = V[source], K[target] = turned K[source].

    layers: the buffers of one class.
    source: int64 [n], slots to read.
    target: int64 [n], slots to write, none of which is in ``source``.
    cos: float32 [n, rotary_dim / 2], of each row's turn.
    sin: the same shape.
    is_neox: as in Rotation.
    """
    if source.numel() == 0:
        return
    if source.is_cuda:
        launch_relocate(layers, source, target, cos, sin, is_neox)
    else:
        relocate_torch(layers, source, target, cos, sin, is_neox)


def relocate_torch(layers: KVLayers, source: Tensor, target: Tensor, cos: Tensor, sin: Tensor, is_neox: bool) -> None:
    """`relocate` by torch alone, layer by layer, on any device."""
    for k, v in zip(layers.k, layers.v, strict=True):
        if not k.shape[1]:
            continue
        values, keys = movable(v), turned(k.index_select(0, source), cos, sin, is_neox)
        values.index_copy_(0, target, values.index_select(0, source))
        movable(k).index_copy_(0, target, movable(keys))


def turned(keys: Tensor, cos: Tensor, sin: Tensor, is_neox: bool) -> Tensor:
    """Keys turned in their rotary dimensions.

    keys: [n, heads, D].
    cos: float32 [n, rotary_dim / 2], of each row's turn.
    sin: the same shape.
    is_neox: as in Rotation.
    Returns [n, heads, D] in the keys' dtype.
    """
    half = cos.shape[1]
    cos, sin = cos[:, None], sin[:, None]
    x, rest = keys[..., : 2 * half].float(), keys[..., 2 * half :]
    first, second = (x[..., :half], x[..., half:]) if is_neox else (x[..., ::2], x[..., 1::2])
    parts = first * cos - second * sin, second * cos + first * sin
    moved = stored(torch.cat(parts, -1) if is_neox else torch.stack(parts, -1).flatten(-2), keys.dtype)
    return torch.cat([moved, rest], -1) if rest.shape[-1] else moved
