# SPDX-License-Identifier: Apache-2.0
"""The attention backend on the CPU, over forward batches like SGLang's, against the oracle on whole sequences."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sglang.srt.model_executor.forward_batch_info import ForwardMode
from torch import Tensor

from redknot_sglang import attention
from redknot_sglang.attention import RedKnotAttention
from redknot_sglang.heads import HeadMap
from redknot_sglang.kernels.batch import ExtendBatch, HeadClass, ScatteredBatch
from redknot_sglang.kernels.class_heads import Target
from redknot_sglang.kernels.extend_torch import TorchExtend
from redknot_sglang.kernels.reference import attend
from redknot_sglang.plan.gather import Runs
from redknot_sglang.pool.head_class_pool import HeadClassPool

# Heads of both classes in turn, local heads alone, global heads alone, and neighbours.
MAP = HeadMap(
    4,
    4,
    ((True, False, True, False), (False,) * 4, (True,) * 4, (True, True, False, False)),
    window=4,
    sink=2,
)
GROUP, DIM, SCALE, TOKENS = 2, 8, 0.4, 120
FP8 = torch.float8_e4m3fn
# Of keys and of values where KV is stored in 8 bits; powers of two, by which a division rounds nothing.
SCALES = (0.5, 4.0)


class RadixAttention(torch.nn.Module):
    """SGLang's attention layer, as far as scales of KV go: those of a checkpoint, or those of a file, which are numbers."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.layer_id = number
        of_checkpoint = number % 2 == 0
        self.k_scale, self.v_scale = (torch.tensor(scale) if of_checkpoint else scale for scale in SCALES)
        floats: tuple[float | None, float | None] = SCALES if of_checkpoint else (None, None)
        self.k_scale_float, self.v_scale_float = floats


class Server:
    """A backend with its pool, and what a model computed for two requests of 30 tokens: q, k and v of all positions."""

    def __init__(
        self,
        monkeypatch: pytest.MonkeyPatch,
        probe_width: int = 0,
        heads: HeadMap = MAP,
        stored_as: torch.dtype = torch.float32,
        draft: int = 0,
    ) -> None:
        monkeypatch.setattr(attention, "get_parallel", lambda: SimpleNamespace(attn_tp_size=1))
        generator = torch.Generator().manual_seed(0)
        self.pool = HeadClassPool(
            TOKENS, TOKENS, heads, DIM, stored_as, "cpu", probe_width, GROUP, model_dtype=torch.float32, draft=draft
        )
        # What nobody has written must not be read, however small its weight.
        for buffers in (self.pool.full_kv_pool, self.pool.swa_kv_pool):
            for buffer in (*buffers.k, *buffers.v):
                buffer[1:] = torch.nan
        self.mapping = torch.zeros(TOKENS + 2, dtype=torch.int64)
        self.pool.register_mapping(self.mapping)
        self.slots = (1 + torch.randperm(TOKENS, generator=generator))[:60].view(2, 30)
        self.local_slots = (1 + torch.randperm(TOKENS, generator=generator))[:60].view(2, 30)
        req_to_token = torch.zeros(5, 32, dtype=torch.int32)
        self.requests = torch.tensor([3, 1])
        req_to_token[self.requests, :30] = self.slots.int()
        shape = MAP.num_layers, 2, 30
        self.q = torch.randn(*shape, 4 * GROUP, DIM, generator=generator)
        self.k, self.v = (torch.randn(*shape, 4, DIM, generator=generator) for _ in "kv")
        if stored_as == FP8:
            # Numbers that the pool can store, so that all forwards read what the oracle is given.
            self.k, self.v = ((x / s).to(FP8).float() * s for x, s in zip((self.k, self.v), SCALES, strict=True))
        self.backend = RedKnotAttention(
            SimpleNamespace(
                token_to_kv_pool=self.pool,
                server_args=SimpleNamespace(_redknot=SimpleNamespace(attention=None), speculative_algorithm=None),
                req_to_token_pool=SimpleNamespace(req_to_token=req_to_token),
                model_config=SimpleNamespace(context_len=32, get_num_attention_heads=lambda tp_size: 4 * GROUP),
                model=torch.nn.ModuleList([RadixAttention(layer) for layer in range(MAP.num_layers)]),
            )
        )

    def alive(self, prefixes: Sequence[int], lens: Sequence[int]) -> None:
        """Give local slots to the positions that rows behind these prefixes see, and to no others."""
        self.mapping.zero_()
        for request, (prefix, n) in enumerate(zip(prefixes, lens, strict=True)):
            for at in range(n):
                if at < MAP.sink or at > prefix - MAP.window:
                    self.mapping[self.slots[request, at]] = self.local_slots[request, at]

    def batch(self, mode: ForwardMode, rows: Sequence[Sequence[int]]) -> Any:
        """A forward over rows at these positions of both requests, as SGLang describes it."""
        lens = torch.tensor([own[-1] + 1 for own in rows])
        starts = torch.tensor([own[0] for own in rows])
        return SimpleNamespace(
            forward_mode=mode,
            batch_size=2,
            req_pool_indices=self.requests,
            seq_lens=starts if mode.is_target_verify() else lens,
            seq_lens_cpu=starts if mode.is_target_verify() else lens,
            spec_info=SimpleNamespace(draft_token_num=len(rows[0])),
            extend_prefix_lens=starts,
            extend_prefix_lens_cpu=starts.tolist(),
            extend_seq_lens_cpu=[len(own) for own in rows],
            positions=torch.tensor([at for own in rows for at in own]),
            out_cache_loc=torch.cat([self.slots[request, list(own)] for request, own in enumerate(rows)]),
            _attn_output=None,
        )

    def layer(self, number: int, logit_cap: float = 0.0) -> Any:
        """SGLang's attention layer."""
        shape = {"tp_q_head_num": 4 * GROUP, "tp_k_head_num": 4, "scaling": SCALE}
        return SimpleNamespace(layer_id=number, logit_cap=logit_cap, **shape)

    def rows_of(self, x: Tensor, layer: int, rows: Sequence[Sequence[int]]) -> Tensor:
        """Rows of q, k or v in a layer, as a projection gives them: [N, heads * D]."""
        return torch.cat([x[layer, request, list(own)] for request, own in enumerate(rows)]).flatten(1)

    def qkv(self, layer: int, rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor, Tensor]:
        """What a layer is given for these rows."""
        return self.rows_of(self.q, layer, rows), self.rows_of(self.k, layer, rows), self.rows_of(self.v, layer, rows)

    def forward(self, mode: ForwardMode, rows: Sequence[Sequence[int]]) -> list[Tensor]:
        """A forward's output in every layer, [N, Hq * D]."""
        batch = self.batch(mode, rows)
        self.backend.init_forward_metadata(batch)
        call = self.backend.forward_decode if mode.is_decode() else self.backend.forward_extend
        return [call(*self.qkv(layer, rows), self.layer(layer), batch) for layer in range(MAP.num_layers)]

    def wanted(self, rows: Sequence[Sequence[int]]) -> list[Tensor]:
        """What the oracle makes of the whole sequences."""
        outs = []
        for layer in range(MAP.num_layers):
            parts = []
            for request, own in enumerate(rows):
                n, at = own[-1] + 1, torch.tensor(list(own))
                kv = self.k[layer, request, :n], self.v[layer, request, :n]
                heads = torch.tensor(MAP.is_global[layer])
                q = self.q[layer, request, at]
                parts.append(attend(q, *kv, at, torch.arange(n), heads, MAP.window, MAP.sink, SCALE)[0].flatten(1))
            outs.append(torch.cat(parts))
        return outs

    def check(self, mode: ForwardMode, rows: Sequence[Sequence[int]]) -> None:
        """A forward gives what the oracle gives, in all layers."""
        self.alive([own[0] for own in rows], [own[-1] + 1 for own in rows])
        for out, want in zip(self.forward(mode, rows), self.wanted(rows), strict=True):
            torch.testing.assert_close(out, want, atol=1e-5, rtol=1e-5)


@pytest.fixture(params=[torch.float32, FP8], ids=["float32", "fp8"])
def server(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Server:
    """Over both kinds of pools."""
    return Server(monkeypatch, stored_as=request.param)


def test_what_is_read_is_what_is_stored(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of a prompt see each other's keys and values as 8 bits hold them, as if they had been cached before: so a hit changes
    nothing. In one chunk or in two, and in a decode step, the oracle of rounded keys and values agrees.
    """
    server = Server(monkeypatch, stored_as=FP8)
    rounded = server.k, server.v
    noise = torch.Generator().manual_seed(1)
    # Less than half a step of an 8-bit float: what is stored stays the same.
    server.k, server.v = (x * (1 + 0.01 * torch.rand(x.shape, generator=noise)) for x in rounded)
    whole: list[list[Sequence[int]]] = [[range(30), range(30)]]
    in_parts: list[list[Sequence[int]]] = [[range(9), range(1)], [range(9, 29), range(1, 29)], [[29], [29]]]
    for forwards in (whole, in_parts):
        for rows in forwards:
            mode = ForwardMode.DECODE if len(rows[0]) == 1 else ForwardMode.EXTEND
            server.alive([own[0] for own in rows], [own[-1] + 1 for own in rows])
            outs = server.forward(mode, rows)
            given, (server.k, server.v) = (server.k, server.v), rounded
            for out, want in zip(outs, server.wanted(rows), strict=True):
                torch.testing.assert_close(out, want, atol=1e-5, rtol=1e-5)
            server.k, server.v = given


def test_prompts_in_chunks_and_then_answers(server: Server) -> None:
    """Every forward reads what those before it stored; what left the windows is gone from the local class."""
    server.check(ForwardMode.EXTEND, [range(9), range(1)])
    server.check(ForwardMode.EXTEND, [range(9, 14), range(1, 20)])
    for step in range(4):
        server.check(ForwardMode.DECODE, [[14 + step], [20 + step]])
    server.check(ForwardMode.EXTEND, [range(18, 30), range(24, 25)])


def test_drafts_that_are_verified(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of a draft see those before them, back to a window before the first; rejected rows are written over."""
    server = Server(monkeypatch, draft=4)
    server.check(ForwardMode.EXTEND, [range(9), range(5)])
    # Runs of a prefill before are not those of a draft.
    server.backend.runs = Runs([0], [0], [1], [np.array([0])])
    first = [range(9, 13), range(5, 9)]
    server.check(ForwardMode.TARGET_VERIFY, first)
    # Two rows of the first request are accepted, one of the second.
    rejected = torch.cat([server.slots[0, 11:13], server.slots[1, 6:9]])
    for buffers, slots in (
        (server.pool.full_kv_pool, rejected),
        (server.pool.swa_kv_pool, server.mapping[rejected]),
    ):
        for buffer in (*buffers.k, *buffers.v):
            buffer[slots] = torch.nan
    server.check(ForwardMode.TARGET_VERIFY, [range(11, 15), range(6, 10)])
    server.check(ForwardMode.TARGET_VERIFY, [range(15, 19), range(10, 14)])


def test_rows_in_several_runs_of_a_gather_extend(server: Server) -> None:
    """Two runs of one request and one of the other, over keys that are there already."""
    server.check(ForwardMode.EXTEND, [range(30), range(30)])
    rows = [[*range(1, 9), *range(11, 30)], list(range(5, 30))]
    server.backend.runs = Runs([0, 0, 1], [1, 11, 5], [9, 30, 30], [np.array(own) for own in rows])
    assert not server.backend.runs.is_scattered
    server.alive([1, 5], [30, 30])
    for out, want in zip(server.forward(ForwardMode.EXTEND, rows), server.wanted(rows), strict=True):
        torch.testing.assert_close(out, want, atol=1e-5, rtol=1e-5)


def test_scattered_rows_go_to_their_own_path(server: Server) -> None:
    server.check(ForwardMode.EXTEND, [range(30), range(30)])
    rows = [list(range(1, 30, 3)), list(range(0, 30, 7))]
    starts, stops = [at for own in rows for at in own], [at + 1 for own in rows for at in own]
    requests = [request for request, own in enumerate(rows) for _ in own]
    server.backend.runs = Runs(requests, starts, stops, [np.array(own) for own in rows])
    server.alive([0, 0], [30, 30])
    planned: list[type[ExtendBatch]] = []

    class Watched(TorchExtend):
        def plan_extend(self, batch: ExtendBatch) -> None:
            planned.append(type(batch))
            super().plan_extend(batch)

    server.backend.scattered_path = Watched(attention.class_spec(MAP, GROUP, server.pool))
    for out, want in zip(server.forward(ForwardMode.EXTEND, rows), server.wanted(rows), strict=True):
        torch.testing.assert_close(out, want, atol=1e-5, rtol=1e-5)
    assert planned == [ScatteredBatch]


def test_a_forward_that_stores_nothing_leaves_the_pool_alone(server: Server) -> None:
    rows = [range(9), range(4)]
    server.check(ForwardMode.EXTEND, rows)
    batch, layer = server.batch(ForwardMode.EXTEND, rows), server.layer(0)
    server.backend.init_forward_metadata(batch)
    before = [x.clone() for x in (*server.pool.global_kv(0), *server.pool.local_kv(0))]
    q, k, v = server.qkv(0, rows)
    for keys, values in ((7 * k, 7 * v), (None, None)):
        out = server.backend.forward_extend(q, keys, values, layer, batch, save_kv_cache=False)
        torch.testing.assert_close(out, server.wanted(rows)[0], atol=1e-5, rtol=1e-5)
    after = (*server.pool.global_kv(0), *server.pool.local_kv(0))
    assert all(torch.equal(a.float().nan_to_num(), b.float().nan_to_num()) for a, b in zip(after, before, strict=True))


def test_the_output_goes_to_a_graphs_buffer_if_that_fits(server: Server) -> None:
    rows = [range(9), range(4)]
    server.alive([0, 0], [9, 4])
    batch, layer = server.batch(ForwardMode.EXTEND, rows), server.layer(0)
    server.backend.init_forward_metadata(batch)
    qkv = server.qkv(0, rows)
    for buffer, fits in ((torch.zeros(13, 4 * GROUP * DIM), True), (torch.zeros(12, 4 * GROUP * DIM), False)):
        batch._attn_output = buffer
        out = server.backend.forward_extend(*qkv, layer, batch)
        assert (out.data_ptr() == buffer.data_ptr()) == fits
        torch.testing.assert_close(out, server.wanted(rows)[0], atol=1e-5, rtol=1e-5)


def test_rows_that_probes_look_at_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    server = Server(monkeypatch, probe_width=2 * GROUP)
    server.backend.probed = True
    rows = [range(9), range(4)]
    server.check(ForwardMode.EXTEND, rows)
    probes = server.pool.probes
    assert probes is not None and probes.layer == 0
    at = torch.cat([server.local_slots[0, :9], server.local_slots[1, :4]])
    heads = [0, 1, 4, 5]
    asked = server.rows_of(server.q, 0, rows).view(13, 4 * GROUP, DIM)[:, heads]
    assert torch.equal(probes.asked[at], asked)
    torch.testing.assert_close(probes.got[at], server.wanted(rows)[0].view(13, 4 * GROUP, DIM)[:, heads])


class RecordedTorch(TorchExtend):
    """Stands for a path that graphs record: rows of a graph behind those of the batch are left as they are."""

    def init_extend_graphs(self, max_rows: int, max_context: int) -> None:
        self.max_rows = max_rows

    def plan_extend_graph(self, batch: ExtendBatch, rows: int) -> bool:
        if rows > self.max_rows or len(batch.seq_lens_cpu) > 2:
            return False
        self.plan_extend(batch)
        return True

    def run(self, head_class: HeadClass, q: Tensor, *args: Any, target: Target | None = None, **kwargs: Any) -> Tensor:
        assert target is not None
        short = Target(target.out[: self._rows], target.heads)
        return super().run(head_class, q[: self._rows], *args, target=short, **kwargs)


@pytest.mark.parametrize("probed", [True, False])
def test_a_graph_that_holds_the_attention_keeps_what_is_asked_with(
    probed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Queries of retrieval heads and of the probe layer, as an eager forward keeps them; rows that fill the graph up leave no trace."""
    retrieval = ((0, 4), (2, 5), (2, 0))
    server = Server(monkeypatch, 2 * GROUP, replace(MAP, retrieval=retrieval))
    path = RecordedTorch(attention.class_spec(MAP, GROUP, server.pool))
    server.backend.paths = replace(server.backend.paths, extend=path)
    server.backend.scattered_path = path
    assert server.backend.init_whole_graphs(16) == 1
    rows, graph = [range(9), range(4)], 16
    server.alive([0, 0], [9, 4])
    batch = server.batch(ForwardMode.EXTEND, rows)
    filled = SimpleNamespace(**vars(batch) | {"out_cache_loc": F.pad(batch.out_cache_loc, (0, graph - 13))})
    server.backend.probed = probed
    server.backend.forwards.begin()
    assert server.backend.plan_whole_graph(batch, graph) == 0
    # A replay runs what was recorded for another batch, whatever this one is.
    server.backend.probed = False
    for layer in range(MAP.num_layers):
        q, k, v = (F.pad(x, (0, 0, 0, graph - 13)) for x in server.qkv(layer, rows))
        out = server.backend.forward_extend(q, k, v, server.layer(layer), filled)
        assert not out[13:].any()
        torch.testing.assert_close(out[:13], server.wanted(rows)[layer], atol=1e-5, rtol=1e-5)
    asked, probes = server.pool.asked, server.pool.probes
    assert asked is not None and probes is not None
    at = torch.cat([server.local_slots[0, :9], server.local_slots[1, :4]])
    for number, (layer, head) in enumerate(retrieval):
        queries = server.rows_of(server.q, layer, rows).view(13, 4 * GROUP, DIM)
        assert torch.equal(asked.rows[at, number], queries[:, head])
    assert asked.scale == SCALE
    got = server.wanted(rows)[0].view(13, 4 * GROUP, DIM)[:, [0, 1, 4, 5]]
    torch.testing.assert_close(probes.got[at], got, atol=1e-5, rtol=1e-5)
    untouched = torch.ones(TOKENS + 1, dtype=torch.bool)
    untouched[at] = untouched[0] = False
    assert not asked.rows[untouched].any()
    assert server.backend.forwards.status() == {"whole_graph": 1, "broken_graph": {}, "eager": {}, "choosing": 0}


def test_forwards_are_counted_by_what_ran_them(server: Server) -> None:
    backend, rows = server.backend, [range(9), range(4)]
    path = RecordedTorch(attention.class_spec(MAP, GROUP, server.pool))
    backend.paths = replace(backend.paths, extend=path)
    backend.init_whole_graphs(16)
    server.alive([0, 0], [9, 4])
    batch = server.batch(ForwardMode.EXTEND, rows)
    # SGLang's own dummies are no forwards of requests.
    backend.init_forward_metadata(batch)
    assert backend.plan_whole_graph(batch, 16, 0) == 0
    three = SimpleNamespace(**vars(batch))
    three.extend_prefix_lens_cpu, three.extend_seq_lens_cpu = [0, 0, 0], [4, 5, 4]
    for counted, graph in ((batch, 16), (batch, 17), (three, 16)):
        backend.forwards.begin()
        assert (backend.plan_whole_graph(counted, graph) is None) == (counted is three or graph == 17)
    backend.paths = replace(backend.paths, extend=TorchExtend(attention.class_spec(MAP, GROUP, server.pool)))
    backend.forwards.begin()
    assert backend.plan_whole_graph(batch, 16) is None
    for sizes in ((), (12, 27), (13,)):
        backend.forwards.sizes = sizes
        backend.forwards.begin()
        backend.init_forward_metadata(batch)
    assert backend.forwards.status() == {
        "whole_graph": 1,
        "broken_graph": {"adapters_or_path": 1, "rows": 1, "runs": 1},
        "eager": {"disabled": 1, "other": 1, "size": 1},
        "choosing": 0,
    }
    # A forward that only chooses documents has no use for SGLang's graph, which has all layers, and runs without one.
    backend.choosing = True
    backend.forwards.begin(choosing=True)
    assert backend.plan_whole_graph(three, 16) is None
    backend.init_forward_metadata(batch)
    found = backend.forwards.status()
    assert (found["broken_graph"], found["eager"]["choosing"], found["choosing"]) == (
        {"adapters_or_path": 1, "rows": 1, "runs": 1},
        1,
        1,
    )


def test_an_idle_forward_plans_nothing(server: Server) -> None:
    server.backend.init_forward_metadata(SimpleNamespace(forward_mode=ForwardMode.IDLE))


def test_the_torch_path_has_no_graphs_that_hold_the_attention(server: Server) -> None:
    assert server.backend.init_whole_graphs(64) == 0
    assert server.backend.plan_whole_graph(server.batch(ForwardMode.EXTEND, [range(9), range(4)]), 16) is None
    assert server.backend.plan_whole_graph(server.batch(ForwardMode.DECODE, [[9], [4]]), 16) is None


def test_capped_logits_are_refused(server: Server) -> None:
    rows = [range(9), range(4)]
    batch = server.batch(ForwardMode.EXTEND, rows)
    server.backend.init_forward_metadata(batch)
    with pytest.raises(ValueError, match="layer 2 caps attention logits at 30.0"):
        server.backend.forward_extend(*server.qkv(2, rows), server.layer(2, 30.0), batch)


def test_another_pool_is_refused() -> None:
    with pytest.raises(TypeError, match="needs a HeadClassPool, found SimpleNamespace"):
        RedKnotAttention(SimpleNamespace(token_to_kv_pool=SimpleNamespace()))


def test_a_model_that_rotates_otherwise_is_served_without_relocation(server: Server) -> None:
    facts = server.backend.facts
    assert facts.rotation is None and facts.arithmetic is None and "not checked for ModuleList" in str(facts.why_not)
