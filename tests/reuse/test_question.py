# SPDX-License-Identifier: Apache-2.0
"""Which documents a question wants, against a loop over rows and keys with complex numbers."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from redknot_sglang.heads import HeadMap
from redknot_sglang.pool.asked import AskedQueries
from redknot_sglang.pool.ranks import Ranks
from redknot_sglang.reuse import question
from redknot_sglang.reuse.probe import Piece
from redknot_sglang.reuse.question import SKIPPED, Asked, ask, wants
from tests.reuse.test_probe import rotation, turned

GROUP, DIM, SLOTS = 2, 8, 200
# Layers of three KV heads; retrieval heads of global ones, two of them in one layer.
MAP = HeadMap(3, 3, ((False, True, True), (False,) * 3, (True, False, True)), 8, 1, retrieval=((2, 5), (0, 2), (0, 5)))
ORIGIN, SCALE = 4, 0.4
# Tokens of the documents: long ones, one as short as what does not count, and a single token.
SIZES = (23, 9, SKIPPED, 1, 23)


def make(seed: int, device: str = "cpu") -> tuple[Any, Tensor, list[Piece], Piece]:
    """A pool with keys and queries, the mapping to local slots, documents, and a text of seven rows."""
    (pool,), mapping, documents, text = on_ranks(seed, MAP, 1, device)
    return pool, mapping, documents, text


def on_ranks(
    seed: int, heads: HeadMap, ranks: int, device: str = "cpu"
) -> tuple[list[Any], Tensor, list[Piece], Piece]:
    """The same, a pool for each rank; whatever their number, together they hold the same keys and queries."""
    torch.manual_seed(seed)
    kv_heads = heads.num_kv_heads
    keys = torch.randn(3, SLOTS + 1, kv_heads, DIM).to(device)
    queries = torch.randn(3, 7, kv_heads * GROUP, DIM).to(device)
    mapping = torch.cat([torch.zeros(1, dtype=torch.int64), torch.randperm(SLOTS) + 1]).to(device)
    free = (torch.randperm(SLOTS) + 1).to(device).split([*SIZES, 7, SLOTS - sum(SIZES) - 7])
    documents = [Piece((0, size), ORIGIN, slots) for size, slots in zip(SIZES, free, strict=False)]
    text = Piece((0, 7), ORIGIN, free[len(SIZES)])
    spread, pools = Ranks(heads, GROUP, ranks), []
    for rank in range(ranks):
        share, group = spread.share(rank), spread.group_of_rank
        asked = AskedQueries(SLOTS, share, group, DIM, torch.float32, device)
        first = rank * kv_heads // ranks
        of_rank = [keys[layer][:, [first + head for head in share.global_heads(layer)]] for layer in range(3)]
        pools.append(SimpleNamespace(asked=asked, global_kv=lambda layer, of_rank=of_rank: (of_rank[layer], None)))
        for layer in range(3):
            mine = queries[layer, :, rank * kv_heads * GROUP // ranks :][:, : share.num_kv_heads * group].unflatten(
                1, (-1, group)
            )
            stored = mine[:, list(share.global_heads(layer))].flatten(1, 2)
            asked.store(layer, mapping[text.slots], stored, SCALE)
    return pools, mapping, documents, text


def by_hand(pool: Any, mapping: Tensor, documents: list[Piece], text: Piece, is_neox: bool) -> Tensor:
    """A document's share of the attention of each row, mean over rows and heads."""
    shares = torch.zeros(len(MAP.retrieval), len(text.slots), len(documents))
    for number, (layer, head) in enumerate(MAP.retrieval):
        place = MAP.global_heads(layer).index(head // GROUP)
        for row, slot in enumerate(text.slots):
            # The text stands behind the longest document.
            q = turned(pool.asked.rows[mapping[slot]], max(SIZES), is_neox)[number]
            sums = []
            for document in documents:
                counted = document.slots[min(SKIPPED, len(document.slots) - 1) :]
                sums.append((pool.global_kv(layer)[0][counted, place] @ q * SCALE).exp().sum())
            shares[number, row] = torch.stack(sums) / sum(sums)
    return shares.mean((0, 1))


@pytest.mark.parametrize("is_neox", [True, False])
@pytest.mark.parametrize("limit", [1 << 25, 100])
def test_shares_of_attention(is_neox: bool, limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same however many rows are held at once."""
    monkeypatch.setattr(question, "_MAX_LOGITS", limit)
    pool, mapping, documents, text = make(1)
    got = wants(pool, rotation(99, is_neox), mapping, documents, text) / 2**40 / len(MAP.retrieval)
    assert torch.allclose(got.float(), by_hand(pool, mapping, documents, text, is_neox), atol=1e-5)
    assert float(got.sum()) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("count", [1, 2, 4])
def test_the_most_wanted_are_chosen_whatever_their_order(count: int) -> None:
    pool, mapping, documents, text = make(2)
    scores = by_hand(pool, mapping, documents, text, True)
    wanted = set(scores.argsort(descending=True)[:count].tolist())
    chosen = ask(pool, rotation(99, True), mapping, count, documents, text).chosen()
    assert set(chosen) == wanted and chosen == sorted(chosen)
    turned_round = ask(pool, rotation(99, True), mapping, count, documents[::-1], text).chosen()
    assert {len(documents) - 1 - number for number in turned_round} == wanted


def test_one_long_document_does_not_make_all_others_as_long() -> None:
    """What is held at once grows with the tokens there are, not with their number times the longest."""
    sizes = np.array([1, 2, 3, 4, 7, 8, 9, 30000, 15, 16, 31])
    groups = question._alike(sizes)
    assert sorted(number for group in groups for number in group.tolist()) == list(range(len(sizes)))
    assert all(sizes[group].max() < 2 * sizes[group].min() for group in groups)


class Group:
    """Stands for the process group of the ranks. of_others: what they add to a rank's scores."""

    def __init__(self, ranks: int, of_others: Tensor) -> None:
        self.size, self.of_others = lambda: ranks, of_others


@pytest.mark.parametrize("ranks", [2, 3, 4, 6])
@pytest.mark.parametrize("retrieval", [((2, 5), (0, 2), (0, 5), (2, 1)), ((2, 5),), ((0, 4), (0, 5))])
def test_ranks_choose_what_one_rank_chooses(
    ranks: int, retrieval: tuple[tuple[int, int], ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever ranks the retrieval heads are on, and though six ranks have two copies of each KV head: to the last bit."""
    heads = replace(MAP, retrieval=retrieval)
    if ranks in (2, 4):
        # Four KV heads, which two ranks can share out evenly.
        heads = replace(heads, num_kv_heads=4, is_global=tuple((*row, True) for row in MAP.is_global))
    (pool,), mapping, documents, text = on_ranks(3, heads, 1)
    pools = on_ranks(3, heads, ranks)[0]
    assert sum(len(each.asked.heads) for each in pools) == len(retrieval)
    given = rotation(99, True), mapping
    scores = [wants(each, *given, documents, text) for each in pools]
    whole = wants(pool, *given, documents, text)
    assert torch.equal(sum(scores, torch.zeros_like(whole)), whole)
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda found, group: found.add_(group.of_others))
    alone = ask(pool, *given, 2, documents, text).chosen()
    for each, own in zip(pools, scores, strict=True):
        group: Any = Group(ranks, whole - own)
        assert ask(each, *given, 2, documents, text, group).chosen() == alone


def test_where_scores_are_equal_the_first_document_is_chosen() -> None:
    scores = torch.tensor([3, 7, 5, 7, 5, 7])
    assert [Asked(count, scores, None, None).chosen() for count in (1, 2, 4)] == [[1], [1, 3], [1, 2, 3, 5]]
