# SPDX-License-Identifier: Apache-2.0
"""Which KV heads each tensor-parallel rank serves, so that all ranks hold about the same bytes.

A rank has the same number of KV heads in every layer. Left in the order of the checkpoint, the global heads, which keep
KV of all tokens, may all be on one rank, and this rank's memory then limits all ranks. *Dealing* puts the heads of each
layer into another order, so that over all layers every rank gets as many global heads as any other, or one more. A
model whose KV heads stand in another order, with their query heads, computes the same.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

from redknot_sglang.heads.head_map import HeadMap

# Of each layer, all its KV heads in the order in which ranks take them: the first rank the first ones, and so on.
Order = tuple[tuple[int, ...], ...]


def checkpoint_order(heads: HeadMap) -> Order:
    """The order in which the heads stand in the model's files. heads: the whole model's map."""
    return (tuple(range(heads.num_kv_heads)),) * heads.num_layers


def most_global(heads: HeadMap, ranks: int) -> int:
    """Global heads, over all layers, of the rank that has most of them.

    heads: the whole model's map, in the order in which ranks take its heads.
    ranks: tensor-parallel ranks. Raises HeadMapError if the heads cannot be spread over them.
    """
    return max(sum(map(sum, heads.shard(rank, ranks).is_global)) for rank in range(ranks))


def fewest_global(heads: HeadMap, ranks: int) -> int:
    """The same under the best order there is. Parameters as of `most_global`."""
    return -(-sum(map(sum, heads.is_global)) // min(ranks, heads.num_kv_heads))


def deal(heads: HeadMap, ranks: int, group: int) -> Order:
    """An order in which no rank has more than one global head more than another, over all layers.

    heads: the whole model's map, in the checkpoint's order.
    ranks: tensor-parallel ranks. Where they are more than the KV heads, several ranks have the same head of each layer.
    group: query heads for each KV head.
    The order depends on nothing but these, so it is the same on all ranks. Where the checkpoint's order is as good,
    it is that one. Of the global heads, those with retrieval heads are spread first, since the queries of these are
    kept, too. Raises HeadMapError if the heads cannot be spread over the ranks.
    """
    if most_global(heads, ranks) == fewest_global(heads, ranks):
        return checkpoint_order(heads)
    ranks = min(ranks, heads.num_kv_heads)
    wanted = Counter((layer, head // group) for layer, head in heads.retrieval)
    globals_of, retrieval_of = [0] * ranks, [0] * ranks
    width, order = heads.num_kv_heads // ranks, []
    for layer in range(heads.num_layers):
        quota = _quota(heads.num_global(layer), globals_of)
        chosen: list[list[int]] = [[] for _ in range(ranks)]
        for head in sorted(heads.global_heads(layer), key=lambda head: (-wanted[layer, head], head)):
            home = head // width
            free = [rank for rank in range(ranks) if len(chosen[rank]) < quota[rank]]
            queries = wanted[layer, head]
            rank = min(free, key=lambda rank: (retrieval_of[rank] if queries else 0, rank != home, rank))
            chosen[rank].append(head)
            retrieval_of[rank] += queries
        for rank, count in enumerate(quota):
            globals_of[rank] += count
        _fill(chosen, heads.local_heads(layer), width)
        order.append(tuple(head for some in chosen for head in sorted(some)))
    return tuple(order)


def reordered(heads: HeadMap, order: Order, group: int) -> HeadMap:
    """The map of the same model with its KV heads, and their query heads with them, in another order.

    heads: the whole model's map, in the checkpoint's order.
    group: query heads for each KV head, by which retrieval heads are numbered anew.
    """
    if order == checkpoint_order(heads):
        return heads
    places = [{head: place for place, head in enumerate(row)} for row in order]
    return replace(
        heads,
        is_global=tuple(tuple(row[head] for head in layer) for row, layer in zip(heads.is_global, order, strict=True)),
        retrieval=tuple(
            (layer, places[layer][head // group] * group + head % group) for layer, head in heads.retrieval
        ),
    )


def _quota(count: int, globals_of: list[int]) -> list[int]:
    """How many of a layer's `count` global heads each rank takes, given how many it has of the layers before: all as
    many, and those that have fewest one more. That is never more than a rank's share of the layer's heads.
    """
    each, more = divmod(count, len(globals_of))
    fewest = sorted(range(len(globals_of)), key=lambda rank: (globals_of[rank], rank))[:more]
    return [each + (rank in fewest) for rank in range(len(globals_of))]


def _fill(chosen: list[list[int]], local: tuple[int, ...], width: int) -> None:
    """Add a layer's local heads to what ranks have of it, until each has `width`; a head stays on its rank if there
    is room.
    """
    left = []
    for head in local:
        home = chosen[head // width]
        if len(home) < width:
            home.append(head)
        else:
            left.append(head)
    for some in chosen:
        while len(some) < width:
            some.append(left.pop(0))
