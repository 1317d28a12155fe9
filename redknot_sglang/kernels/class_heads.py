# SPDX-License-Identifier: Apache-2.0
"""A layer's heads parted by class, and a class's output put where its heads stand in the model's order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class ClassHeads:
    """The KV heads of one class in one layer, ``numbers`` ascending in the model's order.

    ``kv`` int32 [n] are the same numbers and ``query`` int64 [n * group] those of their query heads, on the device.
    """

    numbers: tuple[int, ...]
    group: int
    kv: Tensor
    query: Tensor

    @classmethod
    def of(cls, numbers: Sequence[int], group: int, device: torch.device) -> ClassHeads:
        """Heads of these numbers, each with ``group`` query heads."""
        query = [head * group + member for head in numbers for member in range(group)]
        kv = torch.tensor(numbers, dtype=torch.int32, device=device)
        return cls(tuple(numbers), group, kv, torch.tensor(query, dtype=torch.int64, device=device))

    @property
    def adjacent(self) -> bool:
        """Whether the heads are neighbours, so that a slice holds them."""
        return bool(self.numbers) and self.numbers[-1] - self.numbers[0] + 1 == len(self.numbers)

    @property
    def queries(self) -> slice:
        """Query heads of adjacent heads."""
        first = self.numbers[0] * self.group
        return slice(first, first + len(self.numbers) * self.group)


@dataclass(frozen=True)
class Target:
    """Where a class's output goes: to its own heads of ``out`` [N, Hq, D], which holds all heads of the layer."""

    out: Tensor
    heads: ClassHeads

    @property
    def view(self) -> Tensor | None:
        """The class's part of ``out``, [N, G * n, D] with the rows' stride of ``out``; None if it is no slice."""
        return self.out[:, self.heads.queries] if self.heads.adjacent else None

    @property
    def contiguous_view(self) -> Tensor | None:
        """``view`` if it is contiguous, that is if the class is the whole layer."""
        view = self.view
        return view if view is not None and view.is_contiguous() else None

    def put(self, part: Tensor) -> None:
        """Write the class's output, [N, G * n, D]."""
        if part.is_cuda:
            from .triton_heads import launch_put

            launch_put(part, self.out, self.heads)
        else:
            self.out.index_copy_(1, self.heads.query, part)


@dataclass(frozen=True)
class Split:
    """The heads of one layer by class.

    ``place`` int32 [Hkv] on the device: for a global head its index in its class, for a local one -1 minus that.
    """

    global_heads: ClassHeads
    local_heads: ClassHeads
    place: Tensor

    @classmethod
    def of(cls, global_heads: ClassHeads, local_heads: ClassHeads) -> Split:
        """From both classes, which together are all heads of the layer."""
        place = [0] * (len(global_heads.numbers) + len(local_heads.numbers))
        for index, head in enumerate(global_heads.numbers):
            place[head] = index
        for index, head in enumerate(local_heads.numbers):
            place[head] = -1 - index
        return cls(global_heads, local_heads, torch.tensor(place, dtype=torch.int32, device=global_heads.kv.device))


def split_heads(
    split: Split,
    q: Tensor,
    k: Tensor | None,
    v: Tensor | None,
    slots: Tensor,
    local_slots: Tensor,
    global_kv: tuple[Tensor, Tensor],
    local_kv: tuple[Tensor, Tensor],
) -> tuple[Tensor, Tensor]:
    """Store K and V of each class at its slots, and return q of each class, [N, G * n, D].

    q [N, Hq, D], k and v [N, Hkv, D] or None (nothing is stored), rows of any stride; slots, local_slots int64 [N];
    global_kv, local_kv: K and V [slots, n, D], contiguous, rounded to if they have another dtype. Where a class's heads
    are adjacent, its q is a view.
    """
    if q.is_cuda:
        from .triton_heads import launch_split

        return launch_split(split, q, k, v, slots, local_slots, global_kv, local_kv)
    parts = []
    for heads, at, pools in (
        (split.global_heads, slots, global_kv),
        (split.local_heads, local_slots, local_kv),
    ):
        if heads.numbers and k is not None and v is not None:
            for rows, pool in zip((k, v), pools, strict=True):
                pool[at] = rows.index_select(1, heads.kv).to(pool.dtype)
        parts.append(q[:, heads.queries] if heads.adjacent else q.index_select(1, heads.query))
    return parts[0], parts[1]
