# SPDX-License-Identifier: Apache-2.0
"""Retrieval heads: query heads whose attention from the question finds the document that holds the answer.

The server uses them under the policy `question` (`reuse/question.py`), and they are measured just as they are used
there. Each document is computed by itself behind the prompt's lead, and so is the question. The question's queries are
turned as if it stood behind the longest document, and attend to the keys of all documents. So the order of the
documents plays no part. Such heads were described by Wu et al. (arXiv 2404.15574), who find them by the tokens that
they copy.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from redknot_sglang.profile.attention import grouped
from redknot_sglang.profile.data import Example
from redknot_sglang.profile.model import Attend, ProfiledModel, Rows, dense
from redknot_sglang.profile.study import Study

# The first rows of anything draw attention whatever they say (StreamingLLM, arXiv 2309.17453), so they do not count.
SKIPPED = 4


def retrieval_heads(study: Study) -> dict[str, Any] | None:
    """The `retrieval` of a record (`record.py`); None if no example has a document that is known to hold the answer."""
    usable = [number for number, example in enumerate(study.data.examples) if _is_usable(example)]
    if not usable:
        return None
    found = study.each(
        "retrieval",
        lambda _, example: document_ranks(study, example) if _is_usable(example) else None,
        ["retrieval", SKIPPED, [study.data.examples[number].holders for number in usable]],
    )
    ranks = torch.tensor(
        [row for row in found if row is not None], dtype=torch.float64
    )  # [examples, layers, query heads]
    scores = (1 / (1 + ranks)).mean(0)
    order = scores.flatten().argsort(descending=True, stable=True).tolist()
    heads = [divmod(index, study.model.q_heads) for index in order]
    return {
        "examples": len(usable),
        "documents": sum(len(study.data.examples[number].segments) for number in usable) / len(usable),
        "score": scores.tolist(),
        "first": (ranks == 0).double().mean(0).tolist(),
        "order": [list(head) for head in heads],
    }


def document_ranks(study: Study, example: Example) -> list[list[int]]:
    """By [layer][query head], how many documents get more of the head's attention than the best one that holds an
    answer.
    """
    wants = document_wants(study.model, example)
    best = wants[..., list(example.holders)].amax(-1, keepdim=True)
    ranks: list[list[int]] = (wants > best).sum(-1).tolist()
    return ranks


def document_wants(model: ProfiledModel, example: Example, attend: Attend = dense) -> Tensor:
    """Each document's share of the attention of the question's rows: float32 [layers, query heads, documents].

    attend: the model's attention within lead and document, or lead and question.
    """
    segments = example.segments
    lead, end = segments[0][0], segments[-1][1]
    parts = [(0, lead), *segments, (end, example.first)]
    kept = torch.cat([torch.arange(a, b) for a, b in parts])
    stops = torch.tensor([b - a for a, b in parts]).cumsum(0).tolist()
    spans = list(zip([0, *stops[:-1]], stops, strict=True))
    places = torch.cat([torch.arange(lead), *(lead + torch.arange(b - a) for a, b in spans[1:])])
    longest = max(b - a for a, b in spans[1:-1])
    x, tables = model.embed([example.ids[i] for i in kept.tolist()], places.to(model.device))
    first, last = spans[-1]
    behind = places[first:last].to(model.device) + longest
    turned_tables = model.tables(x[first:last], behind)
    owner = torch.full((first,), -1, dtype=torch.long, device=model.device)
    for number, (a, b) in enumerate(spans[1:-1]):
        owner[min(a + SKIPPED, b - 1) : b] = number
    counted = owner >= 0
    wants = []
    for layer in range(model.layers):
        asked: list[Tensor] = []
        scale: list[float] = []
        k, _ = model.run_layer(layer, x, tables, _each_alone(spans, lead, attend, asked, scale))
        own = tables[0][first:last], tables[1][first:last]
        q = _turned(torch.cat(asked, 1), own, turned_tables)
        wants.append(_shares(q, k[:, :first][:, counted], owner[counted], len(segments), scale[0]))
    return torch.stack(wants)


def _each_alone(
    spans: Sequence[tuple[int, int]], lead: int, inside: Attend, asked: list[Tensor], scale: list[float]
) -> Attend:
    """Attention in which every part sees the lead and itself. Adds the last part's queries to `asked`, [Q, n, D] each.

    inside: the attention of a part behind the lead.
    """

    def attend(rows: Rows) -> Tensor:
        out = torch.empty_like(rows.q)
        begin, end = rows.begin, rows.begin + rows.q.shape[1]
        scale[:] = [rows.scale]
        for number, (a, b) in enumerate(spans):
            start, stop = max(a, begin), min(b, end)
            if start >= stop:
                continue
            q = rows.q[:, start - begin : stop - begin]
            seen = [slice(a, stop)] if number == 0 else [slice(0, lead), slice(a, stop)]
            k, v = (torch.cat([x[:, part] for part in seen], 1) for x in (rows.k, rows.v))
            alone = Rows(rows.layer, k.shape[1] - q.shape[1], q, k, v, rows.scale)
            out[:, start - begin : stop - begin] = inside(alone)
            if number == len(spans) - 1:
                asked.append(q)
        return out

    return attend


def _shares(q: Tensor, k: Tensor, owner: Tensor, documents: int, scale: float) -> Tensor:
    """float32 [Q, documents] of rotated queries [Q, R, D] and keys [H, T, D]; owner int64 [T]: a key's document."""
    scores = (grouped(q, len(k)).float() @ k[:, None].float().transpose(2, 3)).flatten(0, 1) * scale
    weights = (scores - scores.amax(-1, keepdim=True)).exp()
    sums = weights.new_zeros(*weights.shape[:2], documents).index_add_(-1, owner, weights)
    return (sums / sums.sum(-1, keepdim=True)).mean(1)


def _turned(q: Tensor, here: tuple[Tensor, Tensor], there: tuple[Tensor, Tensor]) -> Tensor:
    """Queries [Q, R, D], rotated by the tables `here` (cos and sin, [R, D]), as the tables `there` rotate them."""
    (c0, s0), (c1, s1) = ((cos.float(), sin.float()) for cos, sin in (here, there))
    size = c0.square() + s0.square()
    cos, sin = (c1 * c0 + s1 * s0) / size, (s1 * c0 - c1 * s0) / size
    x = q.float()
    left, right = x.chunk(2, -1)
    return x * cos + torch.cat([-right, left], -1) * sin


def _is_usable(example: Example) -> bool:
    """Whether it has an answer, text behind its documents, and documents with the answer as well as without."""
    there = bool(example.holders) and len(example.holders) < len(example.segments)
    return example.has_answer and there and example.segments[-1][1] < example.first
