# SPDX-License-Identifier: Apache-2.0
"""Segmented mode by definition, in plain torch: isolated segments, relocation, repair, greedy decoding.

A prompt is context rows and segments, token spans [start, end). A segment's K and V are computed alone (lead policy
`none`: positions from 0; `lead`: after the tokens before the first segment), its K turned to the true position in
float32. Then the computed rows (all context rows, the prompt's last row, the repair rows) pass through the model at
their true positions. A row sees everything up to itself in global heads, its window and the prompt's first tokens in
local heads: fresh K and V of computed rows, relocated ones of the others. Policies (RedKnot, arXiv 2606.06256):

- `none`; `boundary:k`, the first k rows of each segment; `heads`: every row is computed, but in segments only for the
  global heads; the local heads' K, V and attention output there stay those of isolation.
- `blend:r`: of each segment the share r of the rows that a probe says change most in context, leaving out rows that hardly
  do. Queries, K and V of the first layer with global heads as isolation left them, of segments and of the text between
  them; what rows get from all before them less what they got in isolation, carried to the values of the next layer's
  global heads. Shares of single segments, so that what follows changes no choice.
- `cacheblend:r` (arXiv 2405.16444, by segment and by global heads): the rows whose K and V in the global heads of one early
  layer deviate most from a causal pass; `cacheblend:r:l` names the layer, else it is `SegmentedModel.blend_layer`.
- controls of the same size: `random:r`, and `oracle:r`, most deviation over the global heads of all layers together.
- `dense`: exact mode, every row computed under the head map.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad, scaled_dot_product_attention

from eval.repair_rows import repair_rows
from eval.train.checkpoint import hf_config, load_weights
from eval.train.model import EmbeddedModel, Layer, ModelConfig, finish, project, read_out, rotate

Tokens = Sequence[int]
Segments = Sequence[tuple[int, int]]
Ids = tuple[int, ...]
Spans = tuple[tuple[int, int], ...]
CHUNK_ROWS = 1024


@dataclass(frozen=True)
class State:
    """A prompt of P tokens and A tokens of answer after prefill, T = P + A.

    ids: int64 [T].
    k: [layers, T, KV heads, D], rotated to their positions.
    v: [layers, T, KV heads, D].
    logits: float32 [A + 1, vocabulary], after the prompt and after each token of the answer.
    computed: how many of the P rows went through the model.
    """

    ids: Tensor
    k: Tensor
    v: Tensor
    logits: Tensor
    computed: int


class Cached(NamedTuple):
    """Isolated spans in place, other rows 0: k, v [layers, T, KV heads, D]; q and attention [layers, T, query heads, D].

    q and k are rotated to true positions.
    """

    k: Tensor
    v: Tensor
    q: Tensor
    attended: Tensor


class SegmentedModel:
    """A model of the embedded model's shape under a head map, in exact and in segmented mode, one prompt at a time."""

    def __init__(
        self, model_dir: Path, head_map: Path | dict[str, Any], device: str = "cpu", dtype: torch.dtype = torch.float32
    ) -> None:
        """model_dir: a folder like eval/model.

        head_map: a native JSON file, or its content.
        device: a torch device.
        dtype: of weights and activations; norms, rotation and relocation are float32 in any case.
        Raises FileNotFoundError or KeyError if something is missing, ValueError for a model of another kind.
        """
        found = head_map if isinstance(head_map, dict) else json.loads(head_map.read_text())
        heads = tuple((i, h) for i, row in enumerate(found["layers"]) for h, mark in enumerate(row) if mark == "G")
        self.config = c = ModelConfig(global_heads=heads, **found.get("local", {}))
        shaped = json.loads((model_dir / "config.json").read_text()) == hf_config(c)
        if not shaped or [len(row) for row in found["layers"]] != [c.kv_heads] * c.layers:
            raise ValueError("model folder or head map is not of the embedded model's shape")
        self.device, self.dtype = device, dtype
        self.weights = EmbeddedModel(c).requires_grad_(False)
        load_weights(self.weights, model_dir / "model.safetensors")
        self.weights.to(device, dtype)
        # Angles in float64, so that R(p - p0) R(p0) and R(p) differ by float32 rounding alone.
        frequency = c.rope_theta ** (-torch.arange(0, c.head_dim, 2, dtype=torch.float64) / c.head_dim)
        angle = torch.arange(c.max_positions, dtype=torch.float64)[:, None] * torch.cat([frequency] * 2)
        # `blend` looks at the output of the first layer with global heads, `cacheblend` at K and V of the second one: what
        # a global head brings from other documents is in K and V only behind its layer.
        self.probe_layer, self.blend_layer = ([*sorted({layer for layer, _ in heads}), 0, 0])[:2]
        # On the device once: an index given as a list would be copied there, with a wait, at each use.
        self.heads = [(self._index(c.global_in(i)), self._index(c.local_in(i))) for i in range(c.layers)]
        self._cos, self._sin = angle.cos().float().to(device), angle.sin().float().to(device)
        # Policies are compared on one prompt after another; what does not depend on them is computed once.
        self.isolate = lru_cache(maxsize=4)(self._run_isolated)
        self.dense = lru_cache(maxsize=1)(lambda p, forced: self._compute(p, forced, (), self._empty(len(p + forced))))

    def prefill(
        self, ids: Tokens, segments: Segments, policy: str, lead: str = "none", seed: int = 0, answer: Tokens = ()
    ) -> State:
        """The prompt `ids` under a policy (see the module), then `answer` teacher forced, whose rows are ordinary.

        segments: token spans, ascending and disjoint.
        lead: `none` or `lead`.
        seed: the request's, for the policy `random`.
        Greedy decoding gives `answer` if each of its tokens is the most likely one at its place. Raises ValueError for an
        unknown policy or lead policy, and for a wrong span.
        """
        prompt, forced, spans = tuple(ids), tuple(answer), tuple((a, b) for a, b in segments if a != b)
        edges = [edge for span in spans for edge in span]
        if not prompt or edges != sorted(edges) or (edges and not 0 <= edges[0] <= edges[-1] <= len(prompt)):
            raise ValueError(f"segments must be ascending, disjoint spans of {len(prompt)} tokens, got {spans}")
        if lead not in ("none", "lead"):
            raise ValueError(f"unknown lead policy {lead!r}; known: none, lead")
        if policy == "dense":
            return self.dense(prompt, forced)
        inside = [p for a, b in spans for p in range(a, min(b, len(prompt) - 1))]
        cached = self.isolate(prompt + forced, spans, lead)
        if policy == "heads":
            return self._compute(prompt, forced, [], cached, inside)
        clean = set(inside).difference(repair_rows(self, policy, prompt, forced, spans, cached, seed))
        return self._compute(prompt, forced, clean, cached)

    def generate(self, state: State, most: int, stop: int | None = None) -> list[int]:
        """Greedy continuation of `state`, up to `most` tokens, cut before `stop`; `state` stays as it is."""
        room = (0, 0, 0, 0, 0, most)
        ids, k, v, out, logits = state.ids, pad(state.k, room), pad(state.v, room), list[int](), state.logits[-1]
        while len(out) < most and (token := int(logits.argmax())) != stop:
            out.append(token)
            ids = pad(ids, (0, 1), value=token)
            logits = self._forward(ids, [len(ids) - 1], k[:, : len(ids)], v[:, : len(ids)], 1)[-1]
        return out

    def _run_isolated(self, ids: Ids, spans: Spans, lead: str) -> Cached:
        c, kept, before = self.config, self._empty(len(ids)), spans[0][0] if spans and lead == "lead" else 0
        alone = [ids[:before] + ids[a:b] for a, b in spans]
        length = max(map(len, alone), default=0)
        at = torch.arange(length, device=self.device)
        taken = self._index([i * length + before + j for i, (a, b) in enumerate(spans) for j in range(b - a)])
        target = self._index([p for a, b in spans for p in range(a, b)])
        shift = self._index([a - before for a, b in spans for _ in range(a, b)])
        wide, near = (self._mask(at, at, windowed) for windowed in (False, True))

        def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            kept.k[layer, target] = rotate(k[taken], self._cos[shift], self._sin[shift])
            kept.v[layer, target] = v[taken]
            kept.q[layer, target] = rotate(q[taken], self._cos[shift], self._sin[shift])
            mask = torch.stack([wide if h in c.global_in(layer) else near for h in range(c.kv_heads)])
            q, k, v = (x.unflatten(0, (-1, length)).transpose(1, 2) for x in (q, k, v))
            k, v, mask = (x.repeat_interleave(c.q_heads // c.kv_heads, -3) for x in (k, v, mask))
            out = scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(0, 1)
            kept.attended[layer, target] = out[taken]
            return out

        if alone:
            # Padding stands behind its segment, where causal rows never look.
            tokens = self._index([row + (0,) * (length - len(row)) for row in alone]).flatten()
            self._layers(tokens, at.repeat(len(alone)), attend)
        return kept

    def _compute(self, prompt: Ids, forced: Ids, clean: Collection[int], cached: Cached, pin: Tokens = ()) -> State:
        """All rows but the clean ones, over cached K and V; in the rows `pin` local heads stay as cached."""
        tokens, k, v = self._index(prompt + forced), cached.k.clone(), cached.v.clone()
        held = (self._index(pin)[:, None], cached.attended) if pin else None
        logits = self._forward(tokens, [p for p in range(len(tokens)) if p not in clean], k, v, len(forced) + 1, held)
        return State(tokens, k, v, logits, len(prompt) - len(clean))

    def _forward(
        self, ids: Tensor, rows: list[int], k: Tensor, v: Tensor, last: int, held: tuple[Tensor, Tensor] | None = None
    ) -> Tensor:
        """Logits of the last of the ascending `rows`, whose K and V are written into k and v.

        held: [n, 1] positions whose local heads stay as in k, v and the attention output given; needs all rows.
        """
        c, at = self.config, self._index(rows)
        chunks = [self._views(rows[i : i + CHUNK_ROWS], i) for i in range(0, len(rows), CHUNK_ROWS)]

        def attend(layer: int, q: Tensor, new_k: Tensor, new_v: Tensor) -> Tensor:
            if held:
                stay = (held[0], self.heads[layer][1])
                new_k[stay], new_v[stay] = k[layer][stay], v[layer][stay]
            k[layer, at], v[layer, at] = new_k, new_v
            q = q.unflatten(1, (c.kv_heads, -1))
            out = torch.empty_like(q)
            for span, *views in chunks:
                for heads, (keys, mask) in zip(self.heads[layer], views, strict=True):
                    if not len(heads):
                        continue
                    # K and V [heads, 1, keys, D] are expanded over the group of query heads that share them.
                    shared = (x[layer][keys][:, heads].transpose(0, 1)[:, None] for x in (k, v))
                    key, value = (x.expand(-1, q.shape[2], -1, -1) for x in shared)
                    own = q[span][:, heads].permute(1, 2, 0, 3)
                    out[span, heads] = scaled_dot_product_attention(own, key, value, attn_mask=mask).permute(2, 0, 1, 3)
            if held:
                out[stay] = held[1][layer].view_as(out)[stay]
            return out.flatten(1, 2)

        return read_out(c, self._layers(ids[at], at, attend)[-last:], self.weights.norm, self.weights.embedding)

    def _layers(self, ids: Tensor, at: Tensor, attend: Callable[[int, Tensor, Tensor, Tensor], Tensor]) -> Tensor:
        """Hidden states [R, d] of tokens `ids` at positions `at`; attend: (layer, q, k, v) -> [R, query heads, D]."""
        c, x, cos, sin = self.config, self.weights.embedding[ids], self._cos[at], self._sin[at]
        for i, w in enumerate(self.weights.layers):
            assert isinstance(w, Layer)
            out = attend(i, *project(c, x, (w.norm_in, w.q, w.k, w.v), cos, sin))
            x = finish(c, x, out.flatten(1), (w.o, w.norm_post, w.gate, w.up, w.down))
        return x

    def _views(self, rows: list[int], first: int) -> tuple[slice, tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """The slice of all rows that `rows` are; for global and for local heads key positions and the mask over them."""
        every, low = torch.arange(rows[-1] + 1, device=self.device), max(0, rows[0] - self.config.window + 1)
        near = torch.cat([every[: min(low, self.config.sink)], every[low:]])
        wide, local = ((keys, self._mask(self._index(rows), keys, keys is near)) for keys in (every, near))
        return slice(first, first + len(rows)), wide, local

    def _mask(self, rows: Tensor, keys: Tensor, windowed: bool) -> Tensor:
        """Additive [rows, keys] over positions."""
        near = (keys > rows[:, None] - self.config.window) | (keys < self.config.sink)
        seen = (keys <= rows[:, None]) & near if windowed else keys <= rows[:, None]
        # Finite: a kernel that goes over keys in blocks makes NaN of a row whose first block is all -inf.
        return torch.zeros(seen.shape, device=self.device, dtype=self.dtype).masked_fill_(~seen, -1e30)

    def _index(self, numbers: Sequence[int] | Sequence[Ids]) -> Tensor:
        return torch.tensor(numbers, dtype=torch.long, device=self.device)

    def _empty(self, length: int) -> Cached:
        c, new = self.config, self.weights.embedding.new_zeros
        return Cached(*(new(c.layers, length, h, c.head_dim) for h in (c.kv_heads, c.kv_heads, c.q_heads, c.q_heads)))
