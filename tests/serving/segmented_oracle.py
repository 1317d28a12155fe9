# SPDX-License-Identifier: Apache-2.0
"""An independent float32 model of segmented mode: isolation, relocation, repair, from their definitions.

Plain torch over whole layers; shares nothing with the server but the embedded model's weights. Keys are kept unrotated
and rotated by their row's true position, which is what relocation amounts to.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.serving.oracle import OracleModel, _rotate


class SegmentedOracle(OracleModel):
    """Log-probabilities of a segmented prompt and an answer to it."""

    @torch.no_grad()
    def segmented(
        self, prompt: list[int], answer: list[int], offsets: Sequence[int], policy: str, lead: bool
    ) -> Tensor:
        """Log-probabilities before each answer token: float32 [len(answer), vocabulary].

        offsets: flat token offsets of the segments; policy: none, boundary:K or blend:R; lead: whether segments are
        computed after the text before the first one. The prompt's last row is always computed.
        """
        pairs = list(zip(offsets[::2], offsets[1::2], strict=True))
        pairs = [(a, min(b, len(prompt) - 1)) for a, b in pairs if a < min(b, len(prompt) - 1)]
        ids = torch.tensor(prompt + answer)
        shape = len(ids), self.config["num_key_value_heads"], self.config["head_dim"]
        layers = range(self.config["num_hidden_layers"])
        kept = [(torch.zeros(shape), torch.zeros(shape)) for _ in layers]
        first = pairs[0][0] if lead and pairs else 0
        isolated = []
        for a, b in pairs:
            alone = torch.cat([ids[:first], ids[a:b]])
            own = torch.arange(len(alone))
            fresh = self._run(alone, own, [None] * len(kept), len(alone))[1]
            isolated.append((a, b, [tuple(part[first:] for part in rows) for rows in fresh]))
            for (keys, values), (k, v, *_) in zip(kept, fresh, strict=True):
                keys[a:b], values[a:b] = k[first:], v[first:]
        computed = torch.ones(len(ids), dtype=torch.bool)
        for a, b in pairs:
            computed[a:b] = False
        kind, _, number = policy.partition(":")
        if kind == "blend":
            ends = [0, *(end for _, end in pairs)]
            for a, b in zip(ends, (start for start, _ in pairs), strict=False):
                if a < b:
                    fresh = self._run(ids[a:b], torch.arange(b - a), [None] * len(kept), b - a)[1]
                    isolated.append((a, b, fresh))
            isolated.sort(key=lambda piece: piece[0])
            for a, b in pairs:
                computed[self._blend(isolated, a, b, float(number))] = True
        else:
            for a, b in pairs:
                computed[a : min(b, a + int(number or 0))] = True
        at = computed.nonzero().flatten()
        hidden, _ = self._run(ids, at, kept, len(ids))
        hidden = self._norm(hidden, self.weights["model.norm.weight"])
        head = self.weights.get("lm_head.weight", self.weights["model.embed_tokens.weight"])
        return (hidden @ head.T).log_softmax(-1)[-len(answer) - 1 : -1]

    def _blend(self, isolated: list, a: int, b: int, share: float) -> list[int]:
        """Rows of [a, b) to repair: those for which the first global heads get something else in context.

        What they get is carried to the values of the next layer's global heads. Keys and queries are not rotated yet.
        """
        assert self.head_map is not None
        marks, config, weights = self.head_map["layers"], self.config, self.weights
        dim, group = config["head_dim"], config["num_attention_heads"] // config["num_key_value_heads"]
        layer, following = [i for i, row in enumerate(marks) if "G" in row][:2]
        k, v, q, alone = (torch.cat([piece[2][layer][part] for piece in isolated]) for part in range(4))
        cos, sin = self._rotation(len(k))
        k, q = _rotate(k, cos, sin)[:b], _rotate(q, cos, sin)[a:b]
        seen = torch.arange(b) <= torch.arange(a, b)[:, None]
        out = weights[f"model.layers.{layer}.self_attn.o_proj.weight"]
        norm = weights[f"model.layers.{following}.input_layernorm.weight"]
        value = weights[f"model.layers.{following}.self_attn.v_proj.weight"].view(-1, dim, len(norm))
        into = value[[head for head, mark in enumerate(marks[following]) if mark == "G"]].flatten(0, 1) * norm
        change = size = torch.zeros(1)
        for head in range(config["num_attention_heads"]):
            if marks[layer][head // group] == "L":
                continue
            scores = (q[:, head] @ k[:, head // group].T / dim**0.5).masked_fill(~seen, float("-inf"))
            got = scores.softmax(-1) @ v[:b, head // group]
            through = into @ out[:, head * dim : (head + 1) * dim]
            change = change + (got - alone[a:b, head]) @ through.T
            size = size + alone[a:b, head] @ through.T
        deviation = change.square().sum(1) / size.square().sum(1).mean()
        order = sorted(range(b - a), key=lambda row: -deviation[row])[: math.ceil(share * (b - a))]
        return [a + row for row in order if deviation[row] > 1e-4]

    def _run(self, ids: Tensor, at: Tensor, kept: list, length: int) -> tuple[Tensor, list[tuple[Tensor, ...]]]:
        """Rows at positions `at` through all layers; other rows have the K (not rotated) and V in `kept`.

        Returns the last hidden states and of each layer K, V, the rows' queries (K and q not rotated) and what they got.
        """
        config, weights = self.config, self.weights
        dim, heads, kv_heads = (config[k] for k in ("head_dim", "num_attention_heads", "num_key_value_heads"))
        cos, sin = self._rotation(length)
        x = weights["model.embed_tokens.weight"][ids[at]]
        every: list[tuple[Tensor, ...]] = []
        for layer in range(config["num_hidden_layers"]):
            name = f"model.layers.{layer}."
            hidden = self._norm(x, weights[name + "input_layernorm.weight"])
            q, k, v = (
                (hidden @ weights[f"{name}self_attn.{part}_proj.weight"].T).view(len(at), -1, dim) for part in "qkv"
            )
            keys, values = (
                torch.zeros(length, kv_heads, dim) if kept[layer] is None else kept[layer][i].clone() for i in (0, 1)
            )
            keys[at], values[at] = k, v
            plain = q
            rotated, q = _rotate(keys, cos, sin), _rotate(q, cos[at], sin[at])
            out = torch.empty_like(q)
            for head in range(heads):
                kv = head // (heads // kv_heads)
                scores = q[:, head] @ rotated[:, kv].T / dim**0.5
                mask = self._mask(length, layer, kv)[at]
                out[:, head] = scores.masked_fill(~mask, float("-inf")).softmax(-1) @ values[:, kv]
            every.append((keys, values, plain, out))
            x = x + out.reshape(len(at), heads * dim) @ weights[name + "self_attn.o_proj.weight"].T
            hidden = self._norm(x, weights[name + "post_attention_layernorm.weight"])
            gate = F.silu(hidden @ weights[name + "mlp.gate_proj.weight"].T)
            up = hidden @ weights[name + "mlp.up_proj.weight"].T
            x = x + (gate * up) @ weights[name + "mlp.down_proj.weight"].T
        return x, every
