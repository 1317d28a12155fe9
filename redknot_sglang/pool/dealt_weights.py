# SPDX-License-Identifier: Apache-2.0
"""Moves the weights of attention heads to the places where the ranks serve them (`dealing.py`), while they are loaded.

A KV head goes with its query heads: rows of the projections to queries, keys and values, and columns of the output
projection. SGLang then cuts the weights for its ranks as ever. Whatever is loaded later, at an update, goes the same
way.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from redknot_sglang.errors import RedKnotError
from redknot_sglang.pool.dealing import ARCHITECTURES, Dealing

# Attribute of a model whose heads were moved.
_DEALT = "redknot_dealt_weights"
_NAME = re.compile(r"(?:^|\.)layers\.(\d+)\.self_attn\.(.+)$")
_ROWS = {f"{part}_proj.{kind}": part for part in ("q", "k", "v", "qkv") for kind in ("weight", "bias")}
_ALL = frozenset("qkvo")
_REMEDY = "serve this checkpoint with --tp-size 1, or convert it to the names and shapes of Hugging Face's model"


class DealtWeights:
    """Moves heads in a stream of weights.

    dealing: where the heads go.
    head_dim: D, elements of one head's query, key or value.
    """

    def __init__(self, dealing: Dealing, head_dim: int) -> None:
        self._order = [torch.tensor(layer) for layer in dealing.order]
        self._moved = [tuple(layer) != tuple(sorted(layer)) for layer in dealing.order]
        self._kv_heads, self._head_dim = dealing.heads.num_kv_heads, head_dim
        keys = self._kv_heads * head_dim
        self._sizes = {"q": [keys * dealing.group], "k": [keys], "v": [keys], "qkv": [keys * dealing.group, keys, keys]}

    def moved(self, weights: Iterable[tuple[str, Tensor]], seen: set[tuple[int, str]]) -> Iterator[tuple[str, Tensor]]:
        """The same weights, with heads moved in those of attention.

        weights: names as in the checkpoint, and whole tensors, not those of one rank.
        seen: (layer, one of q, k, v, o) of weights that have passed are added.
        Raises RedKnotError for a weight of attention of which it is not known how heads lie in it.
        """
        for name, tensor in weights:
            found = _NAME.search(name)
            if found is None or int(found[1]) >= len(self._order):
                yield name, tensor
                continue
            yield name, self._of_layer(int(found[1]), found[2], name, tensor, seen)

    def check(self, seen: set[tuple[int, str]]) -> None:
        """Raises RedKnotError if weights of a moved layer have not passed. seen: those that have."""
        for layer, moved in enumerate(self._moved):
            lacking = sorted(part for part in _ALL if (layer, part) not in seen)
            if moved and lacking:
                raise RedKnotError(
                    f"weights {', '.join(f'{part}_proj' for part in lacking)} of layer {layer} were not found "
                    "by their names while the model was "
                    f"loaded, so heads cannot be dealt out over ranks: {_REMEDY}"
                )

    def _of_layer(self, layer: int, part: str, name: str, tensor: Tensor, seen: set[tuple[int, str]]) -> Tensor:
        if part in _ROWS:
            sizes = self._sizes[_ROWS[part]]
            if tensor.dim() in (1, 2) and tensor.shape[0] == sum(sizes):
                if part.endswith(".weight"):
                    seen.update((layer, letter) for letter in _ROWS[part])
                if not self._moved[layer]:
                    return tensor
                return torch.cat([self._pick(rows, layer, 0) for rows in tensor.split(sizes)])
        elif part == "o_proj.weight":
            if tensor.dim() == 2 and tensor.shape[1] == self._sizes["q"][0]:
                seen.add((layer, "o"))
                return self._pick(tensor, layer, 1).contiguous() if self._moved[layer] else tensor
        elif self._is_of_all_heads(part, tensor):
            return tensor
        raise RedKnotError(
            f"heads cannot be dealt out over ranks: {name}, of shape {list(tensor.shape)}, is no weight of "
            f"attention as it is known: {_REMEDY}"
        )

    def _is_of_all_heads(self, part: str, tensor: Tensor) -> bool:
        """Whether a weight is the same for all heads."""
        if part in ("q_norm.weight", "k_norm.weight"):
            return tensor.numel() == self._head_dim
        return part == "o_proj.bias" or part.startswith("rotary_emb.") or tensor.numel() == 1

    def _pick(self, tensor: Tensor, layer: int, dim: int) -> Tensor:
        heads = tensor.unflatten(dim, (self._kv_heads, -1))
        return heads.index_select(dim, self._order[layer].to(tensor.device)).flatten(dim, dim + 1)


def follow_dealing(model: Any, dealing: Dealing, head_dim: int, complete: bool) -> None:
    """Have all that is loaded into a model go through a `DealtWeights`.

    model: SGLang's model, before its weights are loaded.
    dealing: where the heads go. head_dim: D.
    complete: whether the first load brings all weights; dummy weights are made up in place, and need not be moved.
    Raises RedKnotError for a model of a class that was not looked at.
    """
    if type(model).__name__ not in ARCHITECTURES:
        raise RedKnotError(
            f"heads cannot be dealt out over ranks in {type(model).__name__}, a model class that is not "
            "SGLang's own: serve it with --tp-size 1"
        )
    load, dealt, first = model.load_weights, DealtWeights(dealing, head_dim), [complete]

    def load_weights(weights: Iterable[tuple[str, Tensor]], *args: Any, **kwargs: Any) -> Any:
        seen = set[tuple[int, str]]()
        result = load(dealt.moved(weights, seen), *args, **kwargs)
        if first[0]:
            dealt.check(seen)
            first[0] = False
        return result

    model.load_weights = load_weights
    setattr(model, _DEALT, dealt)


def is_dealt(model: Any) -> bool:
    """Whether a model's heads were moved, so that its weights are not in the checkpoint's order."""
    return hasattr(model, _DEALT)
