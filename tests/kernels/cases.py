# SPDX-License-Identifier: Apache-2.0
"""Random batches for the attention paths: pools with permuted slots, only visible pages alive."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from redknot_sglang.kernels.batch import ClassSpec, DecodeBatch, ExtendBatch, HeadClass, ScatteredBatch
from redknot_sglang.kernels.class_heads import ClassHeads, Target
from redknot_sglang.kernels.paths import AttentionPath
from redknot_sglang.kernels.reference import attend_paged

SCALE = 0.3


@dataclass
class Case:
    """A batch with its pools and queries. Slots that no row sees hold NaN, so that reading one shows."""

    spec: ClassSpec
    extend: ExtendBatch
    decode: DecodeBatch
    k: dict[HeadClass, Tensor]
    v: dict[HeadClass, Tensor]
    q: dict[HeadClass, Tensor]

    def run(self, path: AttentionPath, head_class: HeadClass, scales: tuple[float, float] = (1.0, 1.0)) -> Tensor:
        """One call over the path's latest plan; scales: of keys and of values."""
        pools = self.q[head_class], self.k[head_class], self.v[head_class]
        return path.run(head_class, *pools, SCALE, k_scale=scales[0], v_scale=scales[1])

    def run_to_targets(
        self,
        path: AttentionPath,
        head_class: HeadClass,
        rows: int | None = None,
        scales: tuple[float, float] = (1.0, 1.0),
    ) -> Tensor:
        """As `run`, but to the class's heads of a wider output: the whole of it, neighbours in it, every other head.

        Returns the last; raises AssertionError if they differ in the first `rows` rows (None: all), or if another head is
        written to.
        """
        q, n = self.q[head_class], self.k[head_class].shape[1]
        outs = []
        for numbers in (range(n), range(1, n + 1), range(0, 2 * n, 2)):
            heads = ClassHeads.of(list(numbers), self.spec.group, q.device)
            width = n if numbers == range(n) else 2 * n
            target = Target(torch.full((len(q), width * self.spec.group, q.shape[2]), 7.0).to(q), heads)
            kv = self.k[head_class], self.v[head_class]
            out = path.run(head_class, q, *kv, SCALE, target=target, k_scale=scales[0], v_scale=scales[1])
            assert out is target.out
            outs.append(target.out[:, heads.query].clone())
            others = [i for i in range(target.out.shape[1]) if i not in set(heads.query.tolist())]
            assert bool((target.out[:, others] == 7.0).all()), "another class's heads were written"
            assert torch.equal(outs[-1][:rows], outs[0][:rows])
        return outs[-1]

    def expected(
        self, batch: ExtendBatch | DecodeBatch, head_class: HeadClass, scales: tuple[float, float] = (1.0, 1.0)
    ) -> tuple[Tensor, Tensor]:
        """Output and log-sum-exp by the oracle, float32; scales: of keys and of values."""
        return self._by_oracle(batch, head_class, scales, torch.float32)

    def exact(
        self, batch: ExtendBatch | DecodeBatch, head_class: HeadClass, scales: tuple[float, float] = (1.0, 1.0)
    ) -> tuple[Tensor, Tensor]:
        """The same in float64, for bounds as tight as the oracle's own rounding."""
        return self._by_oracle(batch, head_class, scales, torch.float64)

    def _by_oracle(
        self, batch: ExtendBatch | DecodeBatch, head_class: HeadClass, scales: tuple[float, float], dtype: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        q, k, v = (of[head_class].to(dtype) for of in (self.q, self.k, self.v))
        return attend_paged(batch, head_class, q, k, v, self.spec.window, self.spec.sink, SCALE, *scales)

    def store_as(self, dtype: torch.dtype) -> None:
        """Round the pools to another dtype."""
        self.k, self.v = ({c: x.to(dtype) for c, x in pools.items()} for pools in (self.k, self.v))
        self.spec = stored_as(self.spec, dtype)


def stored_as(spec: ClassSpec, dtype: torch.dtype) -> ClassSpec:
    """The spec with both pools in this dtype."""
    return replace(spec, global_kv_dtype=dtype, local_kv_dtype=dtype)


def make_spec(
    *,
    group: int = 2,
    head_dim: int = 16,
    n_global: int = 1,
    n_local: int = 3,
    window: int = 16,
    sink: int = 4,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
) -> ClassSpec:
    """A spec with one width per class."""
    widths = (n_global,), (n_local,)
    return ClassSpec(group, head_dim, *widths, window, sink, dtype, torch.device(device))


def make_case(spec: ClassSpec, prefixes: Sequence[int], rows: Sequence[int], seed: int = 0) -> Case:
    """Requests with these prefixes and rows; as a decode batch, each one's last row alone counts."""
    device = spec.device
    generator = torch.Generator().manual_seed(seed)
    seqs = [prefix + n for prefix, n in zip(prefixes, rows, strict=True)]
    bs, total, longest = len(seqs), sum(seqs), max(seqs)
    req_to_token = torch.zeros(bs + 3, longest + 5, dtype=torch.int32)
    requests = torch.randperm(bs + 3, generator=generator)[:bs]
    global_slots = (1 + torch.randperm(total + 7, generator=generator))[:total]
    full_to_local = torch.zeros(total + 9, dtype=torch.int64)
    first = 0
    kept = []
    for request, prefix, n in zip(requests.tolist(), prefixes, seqs, strict=True):
        own = global_slots[first : first + n]
        req_to_token[request, :n] = own.int()
        position = torch.arange(n)
        kept.append(own[(position < spec.sink) | (position > prefix - spec.window)])
        first += n
    near = torch.cat(kept)
    full_to_local[near] = (1 + torch.randperm(len(near) + 7, generator=generator))[: len(near)]

    alive: dict[HeadClass, Tensor] = {"global": global_slots, "local": full_to_local[near]}
    pools: list[dict[HeadClass, Tensor]] = [{}, {}]
    queries: dict[HeadClass, Tensor] = {}
    for head_class, slots in alive.items():
        heads = spec.widths(head_class)[0]
        for pool in pools:
            values = torch.full((total + 9, heads, spec.head_dim), float("nan"))
            values[0] = 7.0  # the dummy slot takes the writes of padding: any value, but a number
            values[slots] = torch.randn(len(slots), heads, spec.head_dim, generator=generator)
            pool[head_class] = values.to(spec.dtype).to(device)
        # A slice of a wider tensor, as the projections leave it.
        wide = torch.randn(sum(rows), spec.group * heads + 2, spec.head_dim, generator=generator)
        queries[head_class] = wide.to(spec.dtype).to(device)[:, 1:-1]

    shared = req_to_token.to(device), requests.to(device), full_to_local.to(device)
    lens = torch.tensor(seqs, dtype=torch.int32, device=device)
    starts = torch.tensor(list(prefixes), dtype=torch.int32, device=device)
    extend = ExtendBatch(*shared, starts, lens, list(prefixes), list(seqs))
    decode = DecodeBatch(*shared, lens.long(), list(seqs))
    return Case(spec, extend, decode, pools[0], pools[1], queries)


def scatter(case: Case, rows: Sequence[Sequence[int]]) -> ScatteredBatch:
    """The case's extend batch with only these rows of each request, numbered from its prefix; its queries as well."""
    batch, starts = case.extend, case.extend.qo_indptr
    positions = [[prefix + row for row in own] for prefix, own in zip(batch.prefix_lens_cpu, rows, strict=True)]
    kept = torch.tensor([start + row for start, own in zip(starts, rows, strict=False) for row in own])
    case.q = {head_class: q[kept.to(q.device)] for head_class, q in case.q.items()}
    firsts, lasts = [own[0] for own in positions], [own[-1] + 1 for own in positions]
    device = batch.seq_lens.device
    flat = torch.tensor([at for own in positions for at in own], dtype=torch.int32, device=device)
    lens = [torch.tensor(values, dtype=torch.int32, device=device) for values in (firsts, lasts)]
    pages = batch.req_to_token, batch.req_pool_indices, batch.full_to_local
    return ScatteredBatch(*pages, lens[0], lens[1], firsts, lasts, flat, positions)
