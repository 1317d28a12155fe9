# SPDX-License-Identifier: Apache-2.0
"""The buffers of one head class over all layers, as relocation needs them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True)
class KVLayers:
    """K and V of one head class, layer by layer. A layer may have no head of the class.

    k: one contiguous [slots, heads, D] for each layer.
    v: the same shapes.
    """

    k: Sequence[Tensor]
    v: Sequence[Tensor]

    @cached_property
    def addresses(self) -> Tensor:
        """Of each layer that has any heads: the addresses of K and V and the number of heads; int64 [3, layers] on the
        buffers' device.
        """
        used = [(k.data_ptr(), v.data_ptr(), k.shape[1]) for k, v in zip(self.k, self.v, strict=True) if k.shape[1]]
        return torch.tensor(used, dtype=torch.int64).reshape(-1, 3).t().contiguous().to(self.k[0].device)

    @cached_property
    def most_heads(self) -> int:
        """Heads of the layer that has most."""
        return max(k.shape[1] for k in self.k)
