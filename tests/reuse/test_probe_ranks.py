# SPDX-License-Identifier: Apache-2.0
"""Probes of several ranks: shards of a model in threads choose what one rank chooses, and processes tell each other."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from threading import Barrier
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from redknot_sglang.heads import HeadMap
from redknot_sglang.kernels.relocate import Rotation
from redknot_sglang.plan.policies import parse_repair
from redknot_sglang.pool.probe import ProbeBuffers
from redknot_sglang.pool.ranks import Ranks
from redknot_sglang.reuse.model_facts import ModelFacts, ProbeLayer, readout_of
from redknot_sglang.reuse.probe import Piece, choose_rows
from redknot_sglang.reuse.probe_ranks import ONE_RANK, ProbeRanks

KV_HEADS, GROUP, DIM, WIDTH, TOKENS = 4, 2, 8, 24, 61
QUERIES = KV_HEADS * GROUP
SPANS = [(0, 3), (3, 23), (23, 24), (24, 30), (30, TOKENS)]
SEGMENTS = [(3, 23), (23, 24), (30, TOKENS)]
# The probe layer is layer 1. In the second map one of two ranks has none of its global heads, and of four ranks two.
MAPS = [
    HeadMap.from_global_heads(4, KV_HEADS, ((1, 0), (1, 3), (3, 1), (3, 2), (3, 3)), 8, 1),
    HeadMap.from_global_heads(4, KV_HEADS, ((1, 2), (1, 3), (3, 0)), 8, 1),
]


class Shared:
    """What ranks in threads of one process give each other."""

    def __init__(self, count: int) -> None:
        self.barrier, self.parts = Barrier(count, timeout=20), [torch.empty(0)] * count

    def gathered(self, rank: int, part: Tensor) -> list[Tensor]:
        self.parts[rank] = part
        self.barrier.wait()
        found = list(self.parts)
        self.barrier.wait()
        return found


@dataclass(frozen=True, eq=False)
class ThreadRanks(ProbeRanks):
    """One of some ranks in threads."""

    shared: Shared = field(kw_only=True)

    def sum(self, part: Tensor) -> Tensor:
        return torch.stack(self.shared.gathered(self.rank, part.clone())).sum(0)

    def agreed(self, found: Tensor) -> Tensor:
        return self.shared.gathered(self.rank, found)[0]


def on_ranks(count: int, work: Callable[[ProbeRanks], Any]) -> list[Any]:
    """What `work` returns on each rank."""
    shared = Shared(count)
    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(lambda rank: work(ThreadRanks(rank, count, shared=shared)), range(count)))


class Projection:
    """One rank's part of a linear layer, as SGLang's: the output comes with a bias that was not added, here none."""

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        self.weight, self.bias = weight, bias

    def __call__(self, x: Tensor, skip_all_reduce: bool = False) -> tuple[Tensor, None]:
        out = x @ self.weight.T
        return (out if self.bias is None else out + self.bias), None


class Model:
    """A model's projections and what its pool holds, whole; `of` gives the share of a rank."""

    def __init__(self) -> None:
        torch.manual_seed(5)
        self.o = [torch.randn(WIDTH, QUERIES * DIM) for _ in range(4)]
        self.qkv = [[torch.randn(n * DIM, WIDTH + 1) for n in (QUERIES, KV_HEADS, KV_HEADS)] for _ in range(4)]
        self.norms = [torch.randn(WIDTH) for _ in range(4)]
        self.slots, self.mapping = torch.randperm(150)[:TOKENS] + 1, torch.zeros(160, dtype=torch.int64)
        self.mapping[self.slots] = torch.randperm(TOKENS) + 1
        self.asked, self.got = (torch.randn(TOKENS + 1, QUERIES, DIM) for _ in range(2))
        self.k, self.v = (torch.randn(160, KV_HEADS, DIM) for _ in range(2))

    def of(self, ranks: ProbeRanks) -> Any:
        width, kept = QUERIES // ranks.count, max(1, KV_HEADS // ranks.count)
        query = slice(ranks.rank * width * DIM, (ranks.rank + 1) * width * DIM)
        first = ranks.rank * KV_HEADS // ranks.count
        key = slice(first * DIM, (first + kept) * DIM)
        layers = []
        for o, parts, norm in zip(self.o, self.qkv, self.norms, strict=True):
            joined = torch.cat([rows[place] for rows, place in zip(parts, (query, key, key), strict=True)])
            attention = SimpleNamespace(
                num_heads=width,
                attn=SimpleNamespace(scaling=0.4),
                o_proj=Projection(o[:, query]),
                qkv_proj=Projection(joined[:, :-1], joined[:, -1]),
            )
            layers.append(SimpleNamespace(self_attn=attention, input_layernorm=SimpleNamespace(weight=norm)))
        return SimpleNamespace(model=SimpleNamespace(layers=layers))

    def pool(self, heads: HeadMap, ranks: ProbeRanks) -> Any:
        """A pool with this rank's global heads of the probe layer."""
        spread = Ranks(heads, GROUP, ranks.count)
        share, width = spread.share(ranks.rank), spread.own_probe_width(ranks.rank, GROUP * heads.num_global(1))
        probes = ProbeBuffers(TOKENS, width, heads, DIM, torch.float32, "cpu")
        kv = [ranks.rank * KV_HEADS // ranks.count + head for head in share.global_heads(1)]
        own = range(ranks.rank * QUERIES // ranks.count, (ranks.rank + 1) * QUERIES // ranks.count)
        queries = [query for query in own if query // GROUP in kv]
        assert len(queries) == width
        probes.asked[:], probes.got[:] = self.asked[:, queries], self.got[:, queries]
        return SimpleNamespace(probes=probes, global_kv=lambda layer: (self.k[:, kv], self.v[:, kv]))


@pytest.mark.parametrize("heads", MAPS)
@pytest.mark.parametrize("count", [2, 4, 8])
def test_ranks_choose_the_rows_that_one_rank_chooses(count: int, heads: HeadMap) -> None:
    """Eight ranks over four KV heads: copies of a head count once."""
    model = Model()
    angle = torch.arange(99)[:, None] * 0.3 ** torch.arange(DIM // 2)
    rotation = Rotation(torch.cat([angle.cos(), angle.sin()], 1).float(), True)
    pieces = [Piece((a, b), 3 if (a, b) in SEGMENTS else 0, model.slots[a:b]) for a, b in SPANS]

    def rows(ranks: ProbeRanks, share: float) -> dict[tuple[int, int], list[int]]:
        facts = ModelFacts(rotation, probe=ProbeLayer.of(model.of(ranks), heads, DIM, ranks))
        count = parse_repair(f"blend:{share}").count
        choice = choose_rows(model.pool(heads, ranks), facts, model.mapping, count, pieces, SEGMENTS)
        return {segment: found.tolist() for segment, found in choice.rows().items()}

    for share in (0.1, 0.34, 1.0):
        expected = rows(ONE_RANK, share)
        assert sum(map(len, expected.values())) > 4
        assert on_ranks(count, partial(rows, share=share)) == [expected] * count


@pytest.mark.parametrize("heads", MAPS)
@pytest.mark.parametrize("count", [2, 4, 8])
def test_readouts_of_the_ranks_are_rows_of_the_whole_one(count: int, heads: HeadMap) -> None:
    model = Model()
    whole = readout_of(model.of(ONE_RANK), heads, DIM)
    parts = on_ranks(count, lambda ranks: readout_of(model.of(ranks), heads, DIM, ranks))
    assert [len(part) for part in parts] == [
        DIM * Ranks(heads, GROUP, count).own_probe_width(rank, GROUP * heads.num_global(1)) for rank in range(count)
    ]
    torch.testing.assert_close(torch.cat(parts), whole, rtol=1e-4, atol=1e-4)


def test_the_first_rank_decides() -> None:
    """Parts that were summed in another order may differ in the last bit, and ranks that chose other rows would stop
    each other.
    """
    from redknot_sglang.reuse.probe import Choice

    def rows(ranks: ProbeRanks) -> list[int]:
        found = torch.tensor([4 + ranks.rank, -1, 3])
        return Choice([(0, 9)], [3], found, None, ranks).rows()[0, 9].tolist()

    assert on_ranks(3, rows) == [[3, 4]] * 3


def _in_a_process(rank: int, count: int, folder: str) -> None:
    torch.distributed.init_process_group("gloo", f"file://{folder}/meet", rank=rank, world_size=count)
    group = torch.distributed.new_group(list(range(count)))
    ranks = ProbeRanks(rank, count, group, group)
    # More than is sent at once, and not contiguous.
    torch.manual_seed(rank)
    part = torch.randn(3, 700_000).T
    np.save(f"{folder}/sum{rank}.npy", ranks.sum(part).numpy())
    np.save(f"{folder}/agreed{rank}.npy", ranks.agreed(torch.tensor([rank + 5, 2])).numpy())
    torch.distributed.destroy_process_group()


def test_processes_sum_up_in_one_order_and_agree(tmp_path: Path) -> None:
    count = 3
    torch.multiprocessing.spawn(_in_a_process, (count, str(tmp_path)), nprocs=count)
    expected = torch.zeros(0)
    for rank in range(count):
        torch.manual_seed(rank)
        part = torch.randn(3, 700_000).T
        expected = part if rank == 0 else expected + part
    for rank in range(count):
        assert np.array_equal(np.load(tmp_path / f"sum{rank}.npy"), expected.numpy())
        assert np.load(tmp_path / f"agreed{rank}.npy").tolist() == [5, 2]
