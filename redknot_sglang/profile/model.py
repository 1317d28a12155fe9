# SPDX-License-Identifier: Apache-2.0
"""Runs a transformers model layer by layer, each layer chunk by chunk of rows, with attention functions of our own.

All rows of a prompt pass one layer before the next. So the KV of one layer is held, not of all: at 128K tokens and the
shape of Qwen3-8B that is 0.5 GiB of K and V and 1 GiB of hidden states, where the KV of all layers would be 18 GiB. And a
run that differs from another one only from layer l on need not repeat the layers below.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor
from transformers import AttentionInterface, AutoConfig, AutoModelForCausalLM

from redknot_sglang.errors import ProfileError
from redknot_sglang.heads.model_info import ModelShape, read_model_shape
from redknot_sglang.profile.adapters import find_parts
from redknot_sglang.profile.attention import full

ATTENTION = "redknot_profile"
LOAD_FORMATS = ("auto", "dummy")
# Rows whose logits are held at once: 256 of Qwen3's vocabulary are 150 MiB in float32.
LOGIT_ROWS = 256


@dataclass(frozen=True)
class Rows:
    """A chunk of rows in one layer, as an attention function gets it.

    layer: number of the layer, from 0.
    begin: position of the first row.
    q: [Q, n, D], rotated queries of n rows, Q query heads.
    k: [H, begin + n, D], rotated keys of all rows so far, H KV heads.
    v: [H, begin + n, D], values.
    scale: factor of the logits.
    """

    layer: int
    begin: int
    q: Tensor
    k: Tensor
    v: Tensor
    scale: float


Attend = Callable[[Rows], Tensor]
"""Attention output [Q, n, D] of a chunk."""


def dense(rows: Rows) -> Tensor:
    """Attention over the whole context, as stock SGLang computes it."""
    return full(rows.q, rows.k, rows.v, rows.scale)


def _attention(module: Any, query: Tensor, key: Tensor, value: Tensor, mask: None, scaling: float, **_: Any) -> Any:
    """The attention function that transformers calls: tensors [1, heads, n, D] in, [1, n, Q, D] out."""
    return module.redknot_attend(query[0], key[0], value[0], scaling).transpose(0, 1)[None], None


AttentionInterface.register(ATTENTION, _attention)


class ProfiledModel:
    """A model on one device. Hidden states are those of one prompt, [T, d], in the model's dtype."""

    def __init__(self, model: Any, chunk: int) -> None:
        """model: a causal language model of transformers, loaded with `attn_implementation=ATTENTION`.

        chunk: rows that pass a layer at a time.
        """
        self.model = model.eval().requires_grad_(False)
        self.parts, self.chunk = find_parts(model), chunk
        config = model.config
        self.layers, self.q_heads = config.num_hidden_layers, config.num_attention_heads
        self.kv_heads = config.num_key_value_heads or self.q_heads
        self.head_dim = getattr(config, "head_dim", None) or config.hidden_size // self.q_heads
        self.device, self.dtype = model.device, model.dtype

    def embed(self, ids: Sequence[int], places: Tensor | None = None) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Hidden states before layer 0, and cosines and sines of all positions, each [T, D].

        places: int64 [T], where the tokens stand; None for one behind the other.
        """
        x = self.parts.embed(torch.tensor(ids, device=self.device))
        # All at once: a rotation that depends on the length must not depend on the chunks.
        return x, self.tables(x, torch.arange(len(ids), device=self.device) if places is None else places)

    def tables(self, x: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
        """The tables (cos, sin), each [T, D], of tokens at `places`, int64 [T]. x: [T, d], for its dtype and device."""
        cos, sin = self.parts.rotary(x[None], places[None])
        return cos[0], sin[0]

    def run(
        self, x: Tensor, tables: tuple[Tensor, Tensor], attend: Attend, first: int = 0, last: int | None = None
    ) -> Tensor:
        """Pass hidden states through layers, in place, and return them.

        x: [T, d].
        tables: cosines and sines, each [T, D].
        attend: the attention function.
        first: first layer.
        last: layer before which to stop; None for the end.
        """
        for layer in range(first, self.layers if last is None else last):
            self.run_layer(layer, x, tables, attend)
        return x

    def run_layer(self, layer: int, x: Tensor, tables: tuple[Tensor, Tensor], attend: Attend) -> tuple[Tensor, Tensor]:
        """Pass hidden states through one layer, in place. Returns its K and V, each [H, T, D]. Parameters as in `run`."""
        k = x.new_empty(self.kv_heads, len(x), self.head_dim)
        v = torch.empty_like(k)
        for begin in range(0, len(x), self.chunk):
            end = min(len(x), begin + self.chunk)

            def kept(q: Tensor, new_k: Tensor, new_v: Tensor, scale: float, a: int = begin, b: int = end) -> Tensor:
                k[:, a:b], v[:, a:b] = new_k, new_v
                return attend(Rows(layer, a, q, k[:, :b], v[:, :b], scale))

            x[begin:end] = self.apply_layer(layer, x[begin:end], (tables[0][begin:end], tables[1][begin:end]), kept)
        return k, v

    def apply_layer(
        self, layer: int, x: Tensor, tables: tuple[Tensor, Tensor], attend: Callable[..., Tensor]
    ) -> Tensor:
        """One layer on rows, whose gradient can be taken.

        x: [n, d].
        tables: cosines and sines of the rows, each [n, D].
        attend: called with q [Q, n, D], k and v [H, n, D] of these rows, and the logits' factor; returns [Q, n, D].
        Returns [n, d].
        """
        module: Any = self.parts.attentions[layer]
        module.redknot_attend = attend
        try:
            out: Tensor = self.parts.layers[layer](
                x[None], attention_mask=None, position_embeddings=(tables[0][None], tables[1][None])
            )
        finally:
            del module.redknot_attend
        return out[0]

    def project(self, layer: int, attended: Tensor) -> Tensor:
        """A layer's output projection: attention output [Q, R, D] to [R, d] in float32."""
        flat = attended.transpose(0, 1).flatten(1).to(self.dtype)
        out: Tensor = self.parts.outputs[layer](flat).float()
        return out

    def squared_by_head(self, layer: int, attended: Tensor) -> Tensor:
        """How much each KV head adds to a layer's output: the sum of squares over rows and elements, float64 [H].

        attended: float32 [Q, R, D], attention output.
        """
        weight: Any = self.parts.outputs[layer].weight
        heads = weight.float().unflatten(1, (self.kv_heads, -1)).transpose(0, 1)  # [H, d, Q / H * D]
        rows = attended.unflatten(0, (self.kv_heads, -1)).transpose(1, 2).flatten(2)  # [H, R, Q / H * D]
        return (rows @ heads.transpose(1, 2)).square().sum((1, 2), dtype=torch.float64)

    def logits(self, x: Tensor) -> Tensor:
        """Logits, float32 [R, vocabulary], of hidden states [R, d] after the last layer."""
        out: Tensor = self.parts.head(self.parts.norm(x)).float()
        return out


def load_model(
    folder: Path, device: str, dtype: str, load_format: str, chunk: int
) -> tuple[ProfiledModel, ModelShape, str]:
    """Load a model.

    folder: the model's, on this disk.
    device: a torch device.
    dtype: a torch dtype's name, or `auto` for that of config.json.
    load_format: `auto` reads the weights; `dummy` draws them at random, for measuring time and memory.
    chunk: rows that pass a layer at a time.
    Returns the model, its shape, and the SHA-256 of config.json. Raises ProfileError or HeadMapError.
    """
    shape = read_model_shape(folder)
    if load_format not in LOAD_FORMATS:
        raise ProfileError(f"unknown load format {load_format!r}; use one of {', '.join(LOAD_FORMATS)}")
    file = folder / "config.json" if folder.is_dir() else folder
    raw = file.read_bytes()
    try:
        config = AutoConfig.from_pretrained(file.parent, local_files_only=True)
        wanted = getattr(config, "dtype", None) or torch.float32 if dtype == "auto" else getattr(torch, dtype)
        options: dict[str, Any] = {"dtype": wanted, "attn_implementation": ATTENTION}
        if load_format == "dummy":
            torch.manual_seed(0)
            with torch.device(device):
                model = AutoModelForCausalLM.from_config(config, **options)
        else:
            model = AutoModelForCausalLM.from_pretrained(file.parent, config=config, local_files_only=True, **options)
    except (OSError, ValueError, KeyError, AttributeError, StrictDataclassError) as error:
        reason = str(error).split("\n", 1)[0]
        raise ProfileError(f"{folder}: transformers cannot load the model: {reason}") from error
    return ProfiledModel(model.to(device), chunk), shape, hashlib.sha256(raw).hexdigest()
