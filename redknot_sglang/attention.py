# SPDX-License-Identifier: Apache-2.0
"""The attention backend that SGLang calls, over the paths of `kernels/`.

A *path* is a set of attention kernels. It plans once for each forward, since all layers have the same page tables, and
runs once for each layer and head class, since each class has its own buffers.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from redknot_sglang import active
from redknot_sglang.batches import decode_batch, extend_batch, verify_batch
from redknot_sglang.forwards import PrefillForwards
from redknot_sglang.heads import HeadMap
from redknot_sglang.kernels.batch import ClassSpec, DecodeBatch, ExtendBatch, HeadClass, ScatteredBatch
from redknot_sglang.kernels.class_heads import ClassHeads, Split, Target
from redknot_sglang.kernels.move_heads import split_heads
from redknot_sglang.kernels.paths import AttentionPath, ExtendPath, RecordedExtendPath
from redknot_sglang.kernels.select import recorded_extend, scattered_extend, select_paths
from redknot_sglang.plan.gather import Runs
from redknot_sglang.pool.draft_model import has_draft_model
from redknot_sglang.pool.head_class_pool import HeadClassPool
from redknot_sglang.reuse.kv_scales import kv_scales
from redknot_sglang.reuse.model_facts import ModelFacts
from redknot_sglang.reuse.probe_ranks import ONE_RANK, ProbeRanks
from redknot_sglang.seams.sglang import AttentionBackend, get_parallel


class RedKnotAttention(AttentionBackend):
    """Attention over a `HeadClassPool`.

    Query heads are parted by the class of their KV head, attend to the buffers of that class, and write their output to
    their place in the model's order.
    """

    # Newer SGLang tunes MoE kernels by a forward of made-up prompts; as under its own FlashInfer backend, let them be no more than
    # there may be requests.
    extend_dummy_seqs_capped_by_req_pool = True

    def __init__(self, runner: Any) -> None:
        """runner: SGLang's ModelRunner, whose KV pool is already made. Raises TypeError if that is not ours."""
        super().__init__()
        pool = runner.token_to_kv_pool
        if not isinstance(pool, HeadClassPool):
            raise TypeError(f"RedKnot's attention needs a HeadClassPool, found {type(pool).__name__}")
        config = active.config_of(runner.server_args)
        assert config is not None, "built for a runner without --redknot"
        self.token_to_kv_pool: HeadClassPool = pool
        self.req_to_token_pool = runner.req_to_token_pool
        self.device = pool.buffer_device
        self.max_context = runner.model_config.context_len
        self.head_dim = pool.head_dim
        heads = pool.head_map
        ranks = get_parallel().attn_tp_size
        query_heads = runner.model_config.get_num_attention_heads(ranks)
        self.group = query_heads // heads.num_kv_heads
        self.splits = [_split_of(heads, layer, self.group, self.device) for layer in range(heads.num_layers)]
        pool.scales = kv_scales(runner.model, heads.num_layers, pool.dtype)
        spec = class_spec(heads, self.group, pool)
        self.paths = select_paths(config.attention, spec)
        # The path of the extend that is planned: rows at scattered positions have one of their own.
        self.extend_path: ExtendPath = self.paths.extend
        # Runs of the batch to plan next, if it is a gather extend.
        self.runs: Runs | None = None
        # Whether the batch to run next has rows that probes will look at.
        self.probed = False
        # Whether all that the batch to run next is for is to choose documents, so that no layer behind the deepest retrieval head
        # has to run.
        self.choosing = False
        self.local_loc: Tensor | None = None
        # Extend paths with prefill graphs that hold the attention, and rows of the largest such graph.
        self._recorded: list[RecordedExtendPath] = []
        self._most_rows = 0
        self.forwards = PrefillForwards()
        self._begin()
        # What the scheduler asks for when it builds the prefix cache.
        self.facts = ModelFacts.of(
            runner.model,
            runner.model_config,
            pool.dealing.dealt,
            self.head_dim,
            pool.probe_width,
            _probe_ranks(ranks),
            drafts=has_draft_model(runner.server_args),
        )
        self.scattered_path: ExtendPath = self.paths.extend
        if self.facts.rotation is not None:
            self.scattered_path = scattered_extend(self.paths.extend, spec)
        # Drafts that are verified have a path of their own, since decode graphs and prefill graphs keep their plans apart.
        self.verify_path: ExtendPath | None = recorded_extend(self.paths.extend, spec) if pool.draft else None

    def follow_weights(self, model: Any) -> None:
        """Make anew what is derived from weights: the matrix by which probes judge a change, and scales of KV. After updates.

        model: SGLang's model.
        """
        pool = self.token_to_kv_pool
        pool.scales = kv_scales(model, pool.head_map.num_layers, pool.dtype)
        self.facts.follow_weights(model)

    # ---- plans ------------------------------------------------------------------------------------------------------

    def init_forward_metadata(self, forward_batch: Any) -> None:
        """Plan a forward without a graph, or the attention of a prefill graph that leaves attention to Python.

        SGLang calls the latter breakable graphs. forward_batch: SGLang's ForwardBatch.
        """
        self._begin(in_decode_graph=False)
        self._relocate()
        if forward_batch.forward_mode.is_idle():
            return
        if forward_batch.forward_mode.is_decode():
            self.paths.decode.plan_decode(self._decode_batch(forward_batch, forward_batch.batch_size))
        elif forward_batch.forward_mode.is_target_verify():
            assert self.verify_path is not None, "drafts are verified on a server without speculative decoding"
            self.extend_path = self.verify_path
            self.extend_path.plan_extend(self._verify_batch(forward_batch))
        else:
            batch = self._extend_batch(forward_batch)
            self.forwards.eagerly(batch.qo_indptr[-1], self.choosing)
            self.extend_path = self._path_of(batch)
            self.extend_path.plan_extend(batch)

    def init_whole_graphs(self, max_rows: int) -> int:
        """Reserve buffers for prefill graphs that hold the attention as well, where SGLang's own leave it to Python.

        max_rows: rows of the largest such graph.
        Returns how many paths can be captured; each of them gets graphs of its own.
        """
        paths = {id(path): path for path in (self.paths.extend, self.scattered_path)}.values()
        self._recorded = [path for path in paths if isinstance(path, RecordedExtendPath)]
        self._most_rows = max_rows
        for path in self._recorded:
            path.init_extend_graphs(max_rows, self.max_context)
        return len(self._recorded)

    def plan_whole_graph(self, forward_batch: Any, rows: int, number: int | None = None) -> int | None:
        """Plan a forward by a prefill graph that holds the attention.

        forward_batch: SGLang's ForwardBatch.
        rows: rows of the graph, at least those of the batch.
        number: while graphs are captured, the number of the path to capture; else None, and the batch decides the path.
        Returns the number of the path whose graph is to be replayed, or None if the batch needs Python between its layers, with
        nothing done but that its forward is counted, unless it only chooses documents: that one is counted when it runs eagerly.
        """
        if not forward_batch.forward_mode.is_extend():
            return None
        batch = self._extend_batch(forward_batch)
        path = self._recorded[number] if number is not None else self._path_of(batch)
        if path not in self._recorded or not path.plan_extend_graph(batch, rows):
            if self.choosing:
                # SGLang's graph has all layers, so this one runs without a graph.
                return None
            paths = "adapters_or_path" if path not in self._recorded else "runs"
            self.forwards.by_broken_graph("rows" if rows > self._most_rows else paths)
            return None
        self.forwards.by_whole_graph()
        self.extend_path = path
        self._begin(in_whole_graph=True)
        self._relocate()
        # Within the graph nobody can wait for a layer.
        self.token_to_kv_pool.relocations.wait()
        return self._recorded.index(path)

    def _path_of(self, batch: ExtendBatch) -> ExtendPath:
        return self.scattered_path if isinstance(batch, ScatteredBatch) else self.paths.extend

    def init_cuda_graph_state(self, max_bs: int, max_num_tokens: int) -> None:
        """Reserve what decode graphs use.

        max_bs: requests of the largest graph. max_num_tokens: its rows, one for each request, or a draft for each if they are
            verified.
        """
        self._side = torch.cuda.Stream(self.device)
        if self.verify_path is None:
            self.paths.decode.init_graph(max_bs, self.max_context)
            return
        assert isinstance(self.verify_path, RecordedExtendPath), f"{self.verify_path.name} has no graphs"
        rows = max_num_tokens // max_bs
        self.verify_path.init_extend_graphs(max_num_tokens, self.max_context + rows, max_bs)

    def init_forward_metadata_out_graph(self, forward_batch: Any, in_capture: bool = False) -> None:
        """Plan a forward by a decode graph, whose batch size and buffers are fixed.

        forward_batch: SGLang's ForwardBatch. in_capture: whether the graph is being captured, not replayed.
        """
        self._begin(in_decode_graph=True)
        if not forward_batch.forward_mode.is_target_verify():
            self.paths.decode.plan_graph(self._decode_batch(forward_batch, forward_batch.batch_size))
            return
        assert isinstance(self.verify_path, RecordedExtendPath), "drafts are verified without buffers for a graph"
        self.extend_path, batch = self.verify_path, self._verify_batch(forward_batch)
        if not self.verify_path.plan_extend_graph(batch, batch.qo_indptr[-1]):
            raise RuntimeError(f"a decode graph has no room for drafts of {forward_batch.batch_size} requests")

    def get_cuda_graph_seq_len_fill_value(self) -> int:
        """Length in tokens of the requests that fill a graph's batch up: one, in the dummy slot that no request owns."""
        return 1

    def _begin(self, in_decode_graph: bool = False, in_whole_graph: bool = False) -> None:
        self.local_loc = None
        self._in_decode_graph, self._in_whole_graph = in_decode_graph, in_whole_graph

    def _relocate(self) -> None:
        self.token_to_kv_pool.relocations.run(self.token_to_kv_pool, self.facts.rotation)

    def _decode_batch(self, forward_batch: Any, bs: int) -> DecodeBatch:
        return decode_batch(forward_batch, bs, self.req_to_token_pool.req_to_token, self._full_to_local())

    def _verify_batch(self, forward_batch: Any) -> ExtendBatch:
        bs, rows = forward_batch.batch_size, forward_batch.spec_info.draft_token_num
        return verify_batch(forward_batch, bs, rows, self.req_to_token_pool.req_to_token, self._full_to_local())

    def _extend_batch(self, forward_batch: Any) -> ExtendBatch:
        return extend_batch(forward_batch, self.runs, self.req_to_token_pool.req_to_token, self._full_to_local())

    def _full_to_local(self) -> Tensor:
        mapping = self.token_to_kv_pool.full_to_swa_index_mapping
        assert mapping is not None, "the allocator has not registered its slot mapping"
        return mapping

    # ---- layers -----------------------------------------------------------------------------------------------------

    def forward_extend(
        self,
        q: Tensor,
        k: Tensor | None,
        v: Tensor | None,
        layer: Any,
        forward_batch: Any,
        save_kv_cache: bool = True,
        **kwargs: Any,
    ) -> Tensor:
        """Store this layer's K and V for the new rows, then attend.

        q: [N, Hq * D], N rows of the batch, Hq query heads of this rank, D elements each.
        k, v: [N, Hkv * D], Hkv KV heads; None if they are in the cache already.
        layer: SGLang's RadixAttention.
        forward_batch: SGLang's ForwardBatch.
        save_kv_cache: whether k and v are to be stored.
        Returns [N, Hq * D] in q's dtype. Raises ValueError for a layer that caps its attention logits.
        """
        return self._attend(self.extend_path, q, k, v, layer, forward_batch, save_kv_cache)

    def forward_decode(
        self,
        q: Tensor,
        k: Tensor | None,
        v: Tensor | None,
        layer: Any,
        forward_batch: Any,
        save_kv_cache: bool = True,
        **kwargs: Any,
    ) -> Tensor:
        """The same for a decode step, in which every request has one row. Parameters as in `forward_extend`."""
        return self._attend(self.paths.decode, q, k, v, layer, forward_batch, save_kv_cache)

    def _attend(
        self,
        path: AttentionPath,
        q: Tensor,
        k: Tensor | None,
        v: Tensor | None,
        layer: Any,
        forward_batch: Any,
        save_kv_cache: bool,
    ) -> Tensor:
        if layer.logit_cap:
            raise ValueError(
                f"layer {layer.layer_id} caps attention logits at {layer.logit_cap}, which --redknot cannot serve; start the "
                "server without it"
            )
        pool, split = self.token_to_kv_pool, self.splits[layer.layer_id]
        index = layer.layer_id
        pools = pool.global_kv(index), pool.local_kv(index)
        pool.relocations.wait_for_layer(index)
        if self.local_loc is None or index == 0:
            # Once per forward; inside a graph this gather is recorded with the first layer.
            self.local_loc = pool.translate_loc_from_full_to_swa(forward_batch.out_cache_loc)
        if not save_kv_cache or k is None or v is None:
            k = v = None
        else:
            k, v = (rows.reshape(-1, layer.tp_k_head_num, self.head_dim) for rows in (k, v))
        q = q.reshape(-1, layer.tp_q_head_num, self.head_dim)
        scales = pool.scales[index]
        queries = split_heads(split, q, k, v, forward_batch.out_cache_loc, self.local_loc, *pools, scales)
        out = self._output(forward_batch, q)
        if self._in_whole_graph:
            # The batch may have fewer rows than the graph; the rest must be numbers.
            out.zero_()

        def attend(head_class: HeadClass, heads: ClassHeads, q: Tensor, kv: tuple[Tensor, Tensor]) -> None:
            if heads.numbers:
                target = Target(out, heads)
                path.run(head_class, q, *kv, layer.scaling, target=target, k_scale=scales[0], v_scale=scales[1])

        with self._beside(split):
            attend("local", split.local_heads, queries[1], pools[1])
        attend("global", split.global_heads, queries[0], pools[0])
        self._join(split)
        # A graph is the same for all batches, so it keeps rows that nobody will look at as well; others skip the launches.
        keeps = self.probed or self._in_whole_graph
        if keeps and pool.probes is not None and pool.probes.width and index == pool.probes.layer:
            pool.probes.store(self.local_loc, queries[0], out.index_select(1, split.global_heads.query))
        if keeps and pool.asked is not None:
            pool.asked.store(index, self.local_loc, queries[0], layer.scaling)
        return out.view(-1, layer.tp_q_head_num * self.head_dim)

    def _output(self, forward_batch: Any, q: Tensor) -> Tensor:
        """Where to write the layer's output, [N, Hq, D]: a prefill graph's own buffer, if one is being replayed."""
        given: Tensor | None = forward_batch._attn_output
        if given is not None and given.is_contiguous() and given.numel() == q.numel() and given.dtype == q.dtype:
            return given.view(q.shape)
        return torch.empty(q.shape, dtype=q.dtype, device=q.device)

    def _beside(self, split: Split) -> AbstractContextManager[Any]:
        """A context that puts the local class on a stream of its own until `_join`; in a decode graph only.

        Each class alone leaves most of the device idle there, and a graph pays nothing for the second stream.
        """
        if not self._two_streams(split):
            return nullcontext()
        self._side.wait_stream(torch.cuda.current_stream())
        return torch.cuda.stream(self._side)

    def _join(self, split: Split) -> None:
        if self._two_streams(split):
            torch.cuda.current_stream().wait_stream(self._side)

    def _two_streams(self, split: Split) -> bool:
        return self._in_decode_graph and bool(split.global_heads.numbers and split.local_heads.numbers)


def _split_of(heads: HeadMap, layer: int, group: int, device: torch.device) -> Split:
    return Split.of(*(ClassHeads.of(of(layer), group, device) for of in (heads.global_heads, heads.local_heads)))


def _probe_ranks(count: int) -> ProbeRanks:
    """This rank among all `count` of them."""
    if count == 1:
        return ONE_RANK
    parallel = get_parallel()
    group = parallel.attn_tp_group
    return ProbeRanks(parallel.attn_tp_rank, count, group.device_group, group.cpu_group)


def class_spec(heads: HeadMap, group: int, pool: HeadClassPool) -> ClassSpec:
    """What a path must be able to serve on this rank.

    heads: head map of this rank.
    group: query heads for each KV head.
    pool: the buffers, for their dtypes and device.
    """
    layers = range(heads.num_layers)
    return ClassSpec(
        group=group,
        head_dim=pool.head_dim,
        global_widths=tuple(sorted({heads.num_global(layer) for layer in layers} - {0})),
        local_widths=tuple(sorted({heads.num_local(layer) for layer in layers} - {0})),
        window=heads.window,
        sink=heads.sink,
        dtype=pool.model_dtype,
        device=pool.buffer_device,
        global_kv_dtype=pool.dtype,
        local_kv_dtype=pool.dtype,
    )
