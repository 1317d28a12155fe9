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
        for a, b in pairs:
            alone = torch.cat([ids[:first], ids[a:b]])
            own = torch.arange(len(alone))
            fresh = self._run(alone, own, [None] * len(kept), len(alone))[1]
            for (keys, values), (k, v) in zip(kept, fresh, strict=True):
                keys[a:b], values[a:b] = k[first:], v[first:]
        computed = torch.ones(len(ids), dtype=torch.bool)
        for a, b in pairs:
            computed[a:b] = False
        kind, _, number = policy.partition(":")
        if kind == "blend":
            true = self._run(ids, torch.arange(len(ids)), [None] * len(kept), len(ids))[1]
            for a, b in pairs:
                computed[self._blend(kept, true, a, b, float(number))] = True
        else:
            for a, b in pairs:
                computed[a : min(b, a + int(number or 0))] = True
        at = computed.nonzero().flatten()
        hidden, _ = self._run(ids, at, kept, len(ids))
        hidden = self._norm(hidden, self.weights["model.norm.weight"])
        head = self.weights.get("lm_head.weight", self.weights["model.embed_tokens.weight"])
        return (hidden @ head.T).log_softmax(-1)[-len(answer) - 1 : -1]

    def _blend(self, kept: list, true: list, a: int, b: int, share: float) -> list[int]:
        """Rows of [a, b) to repair. Both keys are unrotated, which leaves the length of their difference as it is."""
        assert self.head_map is not None
        rows = self.head_map["layers"]
        layer = [i for i, row in enumerate(rows) if "G" in row][1]
        heads = [head for head, mark in enumerate(rows[layer]) if mark == "G"]
        deviation = torch.zeros(b - a)
        for had, wanted in zip(kept[layer], true[layer], strict=True):
            error = (had[a:b, heads] - wanted[a:b, heads]).square().sum((1, 2))
            deviation += error / wanted[a:b, heads].square().sum((1, 2)).mean()
        order = sorted(range(b - a), key=lambda row: -deviation[row])[: math.ceil(share * (b - a))]
        return [a + row for row in order if deviation[row] > 1e-4]

    def _run(self, ids: Tensor, at: Tensor, kept: list, length: int) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
        """Rows at positions `at` through all layers; other rows have the K (not rotated) and V in `kept`."""
        config, weights = self.config, self.weights
        dim, heads, kv_heads = (config[k] for k in ("head_dim", "num_attention_heads", "num_key_value_heads"))
        cos, sin = self._rotation(length)
        x = weights["model.embed_tokens.weight"][ids[at]]
        all_kv = []
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
            all_kv.append((keys, values))
            rotated, q = _rotate(keys, cos, sin), _rotate(q, cos[at], sin[at])
            out = torch.empty_like(q)
            for head in range(heads):
                kv = head // (heads // kv_heads)
                scores = q[:, head] @ rotated[:, kv].T / dim**0.5
                mask = self._mask(length, layer, kv)[at]
                out[:, head] = scores.masked_fill(~mask, float("-inf")).softmax(-1) @ values[:, kv]
            x = x + out.reshape(len(at), heads * dim) @ weights[name + "self_attn.o_proj.weight"].T
            hidden = self._norm(x, weights[name + "post_attention_layernorm.weight"])
            gate = F.silu(hidden @ weights[name + "mlp.gate_proj.weight"].T)
            up = hidden @ weights[name + "mlp.up_proj.weight"].T
            x = x + (gate * up) @ weights[name + "mlp.down_proj.weight"].T
        return x, all_kv
