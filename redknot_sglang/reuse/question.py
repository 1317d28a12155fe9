# SPDX-License-Identifier: Apache-2.0
"""Which documents a question asks for, found from what the prefix cache holds of both.

*Retrieval heads* are query heads whose attention finds the document that holds the answer; the head map names them.
Each document has been computed behind the prompt's lead, by itself, and so has the question. The question's queries at
the retrieval heads are turned as if it stood behind the longest document, and attend to the keys of all documents, each
where it was computed. A document's score is its share of that attention: the mean over the question's rows and over the
heads. Documents do not see one another, so neither their order nor what the cache held changes the choice. Where scores
are equal the first document is chosen. `profile/retrieval.py` finds the heads by the very same figure.

Retrieval heads may lie on several tensor-parallel ranks. Each rank scores all documents by its own heads, and the host
sums that up over the ranks. Scores are whole numbers, whose sum is the same in any order, so that all ranks make the
same choice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.distributed import ProcessGroup

from redknot_sglang.kernels.host_copy import to_device
from redknot_sglang.kernels.relocate import Rotation, turned
from redknot_sglang.kernels.triton_document_sums import launch_document_sums
from redknot_sglang.reuse.probe import Piece

# First rows of a document that do not count: they draw attention whatever they say (StreamingLLM, arXiv 2309.17453).
SKIPPED = 4
# A share of all attention as a whole number: finer than float32 tells shares apart, and 2^20 heads fit into 64 bits.
_WHOLE = 1 << 40
# Logits in float32 that are held at once: 128 MiB.
_MAX_LOGITS = 1 << 25


@dataclass(frozen=True, eq=False)
class Asked:
    """The choice of documents, on its way from the device to the host.

    count: how many documents to choose.
    scores: int64 [documents], what `wants` returns on this rank.
    copied: the event after which `scores` is on the host; None if it is there already.
    ranks: process group of the tensor-parallel ranks, for tensors on the host; None for one rank.
    """

    count: int
    scores: Tensor
    copied: torch.cuda.Event | None
    ranks: ProcessGroup | None

    def chosen(self) -> list[int]:
        """Numbers of the chosen documents, ascending, the same on all ranks.

        Waits until the scores of all ranks are there. So every rank has to call this, once, and for requests in the
        same order.
        """
        if self.copied is not None:
            self.copied.synchronize()
        if self.ranks is not None and self.ranks.size() > 1:
            torch.distributed.all_reduce(self.scores, group=self.ranks)
        return sorted(self.scores.sort(descending=True, stable=True).indices[: self.count].tolist())


def ask(
    pool: Any,
    rotation: Rotation,
    mapping: Tensor,
    count: int,
    documents: Sequence[Piece],
    text: Piece,
    ranks: ProcessGroup | None = None,
) -> Asked:
    """Have the device score documents, of which `count` are to be chosen. Returns at once, with an answer to wait for.

    pool: a HeadClassPool with `asked`.
    rotation: how the model turns queries and keys.
    mapping: local slot of each global slot.
    documents: the segments as they were computed behind the lead, at least one.
    text: the question, computed behind the lead, too. Its queries at the retrieval heads have been kept.
    ranks: as in `Asked`.
    """
    scores, copied = wants(pool, rotation, mapping, documents, text), None
    if scores.is_cuda:
        scores = torch.empty(len(scores), dtype=scores.dtype, pin_memory=True).copy_(scores, non_blocking=True)
        copied = torch.cuda.Event()
        copied.record()
    return Asked(count, scores, copied, ranks)


def wants(pool: Any, rotation: Rotation, mapping: Tensor, documents: Sequence[Piece], text: Piece) -> Tensor:
    """Each document's share of the attention of the question's rows, summed over this rank's retrieval heads.

    Parameters as in `ask`. Returns int64 [documents], in units of 2^-40 of one head's attention.
    """
    if not pool.asked.heads:
        return torch.zeros(len(documents), dtype=torch.int64, device=text.slots.device)
    device, longest = text.slots.device, max(len(document.slots) for document in documents)
    here = torch.arange(text.origin, text.origin + len(text.slots), device=device)
    cos, sin = rotation.turn(here, here + longest)
    q = turned(pool.asked.rows[mapping[text.slots]], cos, sin, rotation.is_neox).float()
    sums = (sums_by_kernel if q.is_cuda else sums_by_torch)(pool, documents, q)
    shares = sums.softmax(-1).mean(1, dtype=torch.float64)
    return (shares * _WHOLE).round().long().sum(0)


def sums_by_kernel(pool: Any, documents: Sequence[Piece], q: Tensor) -> Tensor:
    """`sums_by_torch` by one kernel, which takes a third of the time: to launch the steps one by one is what takes it."""
    slots = [document.slots for document in documents]
    starts = to_device(np.cumsum([0, *map(len, slots)]), q.device, torch.int64)
    addresses = pool.asked.addresses(pool.global_kv)
    keys = pool.global_kv(pool.asked.heads[0][0])[0]
    return launch_document_sums(addresses, keys, q, torch.cat(slots), starts, SKIPPED, pool.asked.scale)


def sums_by_torch(pool: Any, documents: Sequence[Piece], q: Tensor) -> Tensor:
    """Log of each document's summed attention weights: float32 [heads, rows, documents].

    pool: as in `ask`.
    documents: as in `ask`.
    q: float32 [rows, heads, D].
    """
    sizes = np.array([len(document.slots) for document in documents])
    sums = torch.empty(q.shape[1], q.shape[0], len(documents), device=q.device)
    for members in _alike(sizes):
        some = [documents[number] for number in members]
        sums[:, :, to_device(members, q.device, torch.int64)] = _rectangle(pool, some, q)
    return sums


def _alike(sizes: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """Numbers of the documents in groups, in each of which the longest has less than twice the tokens of the shortest."""
    orders = np.frexp(sizes)[1]
    return [np.flatnonzero(orders == order) for order in np.unique(orders)]


def _rectangle(pool: Any, documents: Sequence[Piece], q: Tensor) -> Tensor:
    """`sums_by_torch` of documents of about the same length. They are rows of one rectangle: one product for each head, and
    sums in an order that never changes.
    """
    sizes = np.array([len(document.slots) for document in documents])
    at = np.arange(int(sizes.max()))
    first = np.minimum(SKIPPED, sizes - 1)
    counted = (at >= first[:, None]) & (at < sizes[:, None])
    places = np.minimum(at, sizes[:, None] - 1) + np.r_[0, sizes.cumsum()[:-1]][:, None]
    slots = torch.cat([document.slots for document in documents])[to_device(places.ravel(), q.device, torch.int64)]
    hidden = ~to_device(counted, q.device, torch.bool)
    step = max(1, _MAX_LOGITS // len(slots))
    found = []
    for number, (layer, place) in enumerate(pool.asked.heads):
        keys = pool.global_kv(layer)[0][slots, place].float()
        parts = []
        for rows in q[:, number].split(step):
            logits = (rows @ keys.T * pool.asked.scale).unflatten(1, hidden.shape)
            parts.append(logits.masked_fill(hidden, -torch.inf).logsumexp(2))
        found.append(torch.cat(parts))
    return torch.stack(found)
