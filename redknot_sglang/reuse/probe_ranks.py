# SPDX-License-Identifier: Apache-2.0
"""What tensor-parallel ranks tell each other for a probe: each has some of the probe layer's heads, and all must
choose the same rows.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

# Elements that each rank sends at once: all ranks' parts take 4 MiB a rank beside the sum, however long the documents
# are.
_AT_ONCE = 1 << 20


@dataclass(frozen=True, eq=False)
class ProbeRanks:
    """The ranks, seen from one of them. All of them must call its methods, in the same order.

    rank: number of this one, from 0.
    count: how many there are.
    device: their process group for tensors where the KV is; None for one rank.
    host: the same for tensors on the host.
    """

    rank: int = 0
    count: int = 1
    device: ProcessGroup | None = None
    host: ProcessGroup | None = None

    def sum(self, part: Tensor) -> Tensor:
        """The sum of what all ranks give, in the order of the ranks: so it is the same to the last bit on all of
        them, and whatever stands beside it in the tensor.

        part: of the same shape and dtype on all ranks, on the device; it is overwritten if it is contiguous.
        """
        if self.count == 1:
            return part
        total = part.contiguous()
        for mine in total.flatten().split(_AT_ONCE):
            parts = [torch.empty_like(mine) for _ in range(self.count)]
            torch.distributed.all_gather(parts, mine, group=self.device)
            mine.copy_(parts[0])
            for other in parts[1:]:
                mine += other
        return total

    def agreed(self, found: Tensor) -> Tensor:
        """What the first rank has found. found: on the host, of the same shape and dtype on all ranks; it may be
        overwritten.
        """
        if self.count > 1:
            assert self.host is not None, "several ranks need a process group for the host"
            torch.distributed.broadcast(found, torch.distributed.get_global_rank(self.host, 0), group=self.host)
        return found


ONE_RANK = ProbeRanks()
