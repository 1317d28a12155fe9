# SPDX-License-Identifier: Apache-2.0
"""Which heads of a layer belong to which class, and where a class's output stands in the layer's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class ClassHeads:
    """The KV heads of one class in one layer.

    numbers: their numbers in the model's order, ascending.
    group: query heads of each KV head.
    kv: int32 [n] on the device, the same as ``numbers``.
    query: int64 [n * group] on the device, the numbers of their query heads.
    """

    numbers: tuple[int, ...]
    group: int
    kv: Tensor
    query: Tensor

    @classmethod
    def of(cls, numbers: Sequence[int], group: int, device: torch.device) -> ClassHeads:
        """The heads of these numbers, ascending, each with ``group`` query heads; tensors on ``device``."""
        query = [head * group + member for head in numbers for member in range(group)]
        kv = torch.tensor(numbers, dtype=torch.int32, device=device)
        return cls(tuple(numbers), group, kv, torch.tensor(query, dtype=torch.int64, device=device))

    @property
    def adjacent(self) -> bool:
        """Whether the heads are neighbours, so that a slice holds them; False if there are none."""
        return bool(self.numbers) and self.numbers[-1] - self.numbers[0] + 1 == len(self.numbers)

    @property
    def queries(self) -> slice:
        """The query heads as a slice of the layer's; right only if the heads are adjacent."""
        first = self.numbers[0] * self.group
        return slice(first, first + len(self.numbers) * self.group)


@dataclass(frozen=True)
class Target:
    """Where a class's output goes.

    out: [N, Hq, D], the output of all query heads of the layer.
    heads: the class, whose heads of ``out`` are written.
    """

    out: Tensor
    heads: ClassHeads

    @property
    def view(self) -> Tensor | None:
        """The class's part of ``out``, [N, G * n, D] with the rows' stride of ``out``; None if it is no slice."""
        return self.out[:, self.heads.queries] if self.heads.adjacent else None

    @property
    def contiguous_view(self) -> Tensor | None:
        """``view`` if it is contiguous, which it is where the class is the whole layer; else None."""
        view = self.view
        return view if view is not None and view.is_contiguous() else None


@dataclass(frozen=True)
class Split:
    """The heads of one layer by class.

    global_heads: the global class.
    local_heads: the local class.
    place: int32 [Hkv] on the device; for a global head its index in its class, for a local one -1 minus that.
    """

    global_heads: ClassHeads
    local_heads: ClassHeads
    place: Tensor

    @classmethod
    def of(cls, global_heads: ClassHeads, local_heads: ClassHeads) -> Split:
        """The split into these two classes, which together are all heads of the layer."""
        place = [0] * (len(global_heads.numbers) + len(local_heads.numbers))
        for index, head in enumerate(global_heads.numbers):
            place[head] = index
        for index, head in enumerate(local_heads.numbers):
            place[head] = -1 - index
        return cls(global_heads, local_heads, torch.tensor(place, dtype=torch.int32, device=global_heads.kv.device))
