# SPDX-License-Identifier: Apache-2.0
"""The head map: the class of every (layer, KV head), one window and one sink for all local heads.

A map has a single window and sink because the heads of a class share their page table: a token either has a
local slot, for all local heads of all layers, or it has none.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from functools import cached_property
from typing import Any

from redknot_sglang.errors import HeadMapError
from redknot_sglang.heads.checks import require_int, require_object, require_str, shown
from redknot_sglang.heads.files import StrPath, write_bytes
from redknot_sglang.heads.model_info import ModelInfo

__all__ = ["HeadClass", "HeadMap", "HeadMapError", "ModelInfo", "load_head_map"]

FORMAT = "redknot-head-map"
VERSION = 1

# Recorded in maps that have no local head, where neither number has an effect.
DEFAULT_WINDOW = 128
DEFAULT_SINK = 4


class HeadClass(str, Enum):
    """What a KV head needs: the whole context, or sink + window."""

    GLOBAL = "global"
    LOCAL = "local"

    @property
    def letter(self) -> str:
        """The character that stands for the class in a file: G or L."""
        return self.value[0].upper()


@dataclass(frozen=True)
class HeadMap:
    """Classes of all KV heads of a model (or of one tensor-parallel rank of it, see `shard`).

    num_layers: layers of the model, at least 1.
    num_kv_heads: KV heads of each layer, at least 1.
    is_global: [num_layers][num_kv_heads] bool, true for heads that need the whole context.
    window: W >= 1 tokens, the row itself included: a local head's row at position p sees positions > p - W.
    sink: S >= 0 tokens: a local head's row sees the first S positions, too, wherever it is.
    model: which model the map is for, as far as its maker knew.
    provenance: JSON object that says how the map was made; the key "method" is required.
    retrieval: retrieval heads, pairs (layer, query head), the best one first, each once: heads whose attention from a question
        finds the document that answers it. Empty where nobody has looked for them.

    Raises HeadMapError if any of this does not hold.
    """

    num_layers: int
    num_kv_heads: int
    is_global: tuple[tuple[bool, ...], ...]
    window: int
    sink: int
    model: ModelInfo = ModelInfo()
    provenance: Mapping[str, Any] = field(default_factory=lambda: {"method": "code"}, hash=False)
    retrieval: tuple[tuple[int, int], ...] = ()

    def __post_init__(self) -> None:
        require_int(self.num_layers, "num_layers", at_least=1)
        require_int(self.num_kv_heads, "num_kv_heads", at_least=1)
        require_int(self.window, "window", at_least=1)
        require_int(self.sink, "sink", at_least=0)
        object.__setattr__(self, "is_global", tuple(tuple(row) for row in self.is_global))
        if len(self.is_global) != self.num_layers:
            raise HeadMapError(f"is_global has {len(self.is_global)} layers, num_layers is {self.num_layers}")
        for layer, row in enumerate(self.is_global):
            if len(row) != self.num_kv_heads:
                raise HeadMapError(f"layer {layer} has {len(row)} heads, num_kv_heads is {self.num_kv_heads}")
            for head, value in enumerate(row):
                if not isinstance(value, bool):
                    raise HeadMapError(
                        f"is_global at layer {layer}, head {head} must be True or False, got {shown(value)}"
                    )
        object.__setattr__(self, "provenance", _plain_json(self.provenance))
        object.__setattr__(self, "retrieval", tuple((layer, head) for layer, head in self.retrieval))
        for layer, head in self.retrieval:
            require_int(layer, "layer of a retrieval head", at_least=0)
            require_int(head, "retrieval head", at_least=0)
            if layer >= self.num_layers:
                raise HeadMapError(f"retrieval head {layer}.{head}: there are {self.num_layers} layers")
        if len(set(self.retrieval)) < len(self.retrieval):
            raise HeadMapError("retrieval names a head twice")

    @classmethod
    def from_global_heads(
        cls,
        num_layers: int,
        num_kv_heads: int,
        global_heads: Iterable[tuple[int, int]],
        window: int,
        sink: int,
        model: ModelInfo | None = None,
        provenance: Mapping[str, Any] | None = None,
    ) -> HeadMap:
        """A map in which the given heads are global and all others local.

        global_heads: (layer, KV head) pairs, both from 0.
        The other parameters are those of the class. Raises HeadMapError for a head that the model does not have.
        """
        chosen = set(global_heads)
        for layer, head in chosen:
            if not (0 <= layer < num_layers and 0 <= head < num_kv_heads):
                raise HeadMapError(
                    f"no head {head} in layer {layer}: there are {num_layers} layers of {num_kv_heads} heads"
                )
        rows = tuple(tuple((layer, head) in chosen for head in range(num_kv_heads)) for layer in range(num_layers))
        known: dict[str, Any] = {} if provenance is None else {"provenance": provenance}
        return cls(num_layers, num_kv_heads, rows, window, sink, model or ModelInfo(), **known)

    def head_class(self, layer: int, head: int) -> HeadClass:
        """Class of one head, both numbers from 0. Raises HeadMapError if there is no such head."""
        row = self._row(layer)
        if not 0 <= head < self.num_kv_heads:
            raise HeadMapError(f"no KV head {head}: the map has heads 0 to {self.num_kv_heads - 1}")
        return HeadClass.GLOBAL if row[head] else HeadClass.LOCAL

    def global_heads(self, layer: int) -> tuple[int, ...]:
        """KV heads of the layer that are global, ascending."""
        return tuple(head for head, is_global in enumerate(self._row(layer)) if is_global)

    def local_heads(self, layer: int) -> tuple[int, ...]:
        """KV heads of the layer that are local, ascending."""
        return tuple(head for head, is_global in enumerate(self._row(layer)) if not is_global)

    def num_global(self, layer: int) -> int:
        """How many KV heads of the layer are global."""
        return sum(self._row(layer))

    def num_local(self, layer: int) -> int:
        """How many KV heads of the layer are local."""
        return self.num_kv_heads - self.num_global(layer)

    @cached_property
    def global_share(self) -> float:
        """rho: global heads over all KV heads of all layers, 0 to 1."""
        return sum(map(sum, self.is_global)) / (self.num_layers * self.num_kv_heads)

    @property
    def global_layers(self) -> tuple[int, ...]:
        """Layers that have global heads, ascending."""
        return tuple(layer for layer, row in enumerate(self.is_global) if any(row))

    @property
    def asking_layers(self) -> int:
        """How many layers find out which documents are wanted: all up to the deepest retrieval head. 0 without such heads."""
        return max((layer + 1 for layer, _ in self.retrieval), default=0)

    @property
    def all_global(self) -> bool:
        """Whether no head is local, so that the map changes nothing about the model's answers."""
        return all(map(all, self.is_global))

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 (64 hex digits) of what decides a model's output: classes, window and sink, and retrieval heads if there are any.

        Model and provenance do not enter: two maps of one fingerprint give one answer on one model.
        """
        decisive: dict[str, Any] = {"layers": self._letters(), "sink": self.sink, "window": self.window}
        if self.retrieval:
            decisive["retrieval"] = self.retrieval
        text = json.dumps(decisive, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(f"{FORMAT}/{VERSION}\n{text}".encode()).hexdigest()

    def compression(self, length: int) -> float:
        """Share of stock SGLang's KV bytes that a cached prefix keeps, 0 to 1.

        length: tokens of the prefix, at least 1.
        It is rho + (1 - rho) * min(1, (S + W) / length): all heads are of one size, so rho is a share of bytes.
        """
        require_int(length, "length", at_least=1)
        rho = self.global_share
        return rho + (1.0 - rho) * min(1.0, (self.sink + self.window) / length)

    def check_model(self, num_layers: int, num_kv_heads: int, model_type: str | None = None) -> None:
        """Raise HeadMapError unless the map fits a model.

        num_layers: layers of the model.
        num_kv_heads: KV heads of each of its layers, on all ranks together.
        model_type: `model_type` of its config.json, or None; compared only if the map names one, too.
        """
        remedy = "make a map for this model with `redknot heads make --model DIR`"
        for what, mine, theirs in (
            ("layers", self.num_layers, num_layers),
            ("KV heads per layer", self.num_kv_heads, num_kv_heads),
            ("model type", self.model.model_type, model_type),
        ):
            if mine is not None and theirs is not None and mine != theirs:
                raise HeadMapError(
                    f"the head map does not fit the model: {what}: {mine} in the map, {theirs} in the model; " + remedy
                )

    def shard(self, tp_rank: int, tp_size: int) -> HeadMap:
        """The map of one tensor-parallel rank: the KV heads that SGLang places there.

        tp_rank: number of the rank, from 0.
        tp_size: number of ranks. A rank owns consecutive heads; with more ranks than heads each head is on several ranks,
            and rank r owns head r * num_kv_heads // tp_size.
        Raises HeadMapError unless one of tp_size and num_kv_heads divides the other.
        """
        require_int(tp_size, "tp_size", at_least=1)
        require_int(tp_rank, "tp_rank", at_least=0)
        if tp_rank >= tp_size:
            raise HeadMapError(f"tp_rank {tp_rank} does not exist with tp_size {tp_size}")
        if self.num_kv_heads % tp_size and tp_size % self.num_kv_heads:
            raise HeadMapError(
                f"{self.num_kv_heads} KV heads cannot be spread over tp_size {tp_size}: one must divide the other"
            )
        if tp_size == 1:
            return self
        width = max(1, self.num_kv_heads // tp_size)
        first = tp_rank * self.num_kv_heads // tp_size
        origin = {"rank": tp_rank, "size": tp_size, "of": self.fingerprint}
        return replace(
            self,
            num_kv_heads=width,
            is_global=tuple(row[first : first + width] for row in self.is_global),
            provenance={**self.provenance, "shard": origin},
            # They are numbered over all query heads, of which a rank has a part.
            retrieval=(),
        )

    def to_dict(self) -> dict[str, Any]:
        """The native JSON document; one string of G and L per layer, so that a diff shows layers."""
        return {
            "format": FORMAT,
            "version": VERSION,
            "model": {
                "num_layers": self.num_layers,
                "num_kv_heads": self.num_kv_heads,
                **self.model.to_dict(),
            },
            "local": {"window": self.window, "sink": self.sink},
            "layers": self._letters(),
            **({"retrieval": [list(pair) for pair in self.retrieval]} if self.retrieval else {}),
            "provenance": _plain_json(self.provenance),
        }

    def save(self, path: StrPath) -> None:
        """Write the native JSON file. Raises HeadMapError if that is impossible."""
        write_bytes(path, (json.dumps(self.to_dict(), indent=2) + "\n").encode())

    def _letters(self) -> list[str]:
        marks = {True: HeadClass.GLOBAL.letter, False: HeadClass.LOCAL.letter}
        return ["".join(marks[value] for value in row) for row in self.is_global]

    def _row(self, layer: int) -> tuple[bool, ...]:
        if not 0 <= layer < self.num_layers:
            raise HeadMapError(f"no layer {layer}: the map has layers 0 to {self.num_layers - 1}")
        return self.is_global[layer]


def load_head_map(
    path: StrPath,
    *,
    threshold: float | None = None,
    window: int | None = None,
    sink: int | None = None,
    share: float | None = None,
) -> HeadMap:
    """Read a head map: native JSON, public RedKnot JSON or DuoAttention TSV, recognised by its content.

    path: the file.
    threshold: DuoAttention only: heads with a larger gate are global; None is 0.5.
    window: tokens, instead of what a foreign file says; a native file has its own.
    sink: tokens, as `window`.
    share: DuoAttention only, instead of `threshold`: the heads with the largest gates, at most this share of all, 0 to 1,
        are global.
    Raises HeadMapError; its message names the path.
    """
    # The readers build HeadMaps and so import this module.
    from redknot_sglang.heads.formats import read_head_map

    try:
        return read_head_map(path, threshold=threshold, window=window, sink=sink, share=share)
    except HeadMapError as error:
        raise HeadMapError(f"{os.fspath(path)}: {error}") from None


def _plain_json(provenance: object) -> dict[str, Any]:
    """A copy that no caller can change, of JSON types only, so that a map that is saved and loaded again is the same."""
    value = require_object(provenance, "provenance")
    require_str(value.get("method"), "provenance.method")
    try:
        copy: dict[str, Any] = json.loads(json.dumps(dict(value), allow_nan=False))
    except (TypeError, ValueError, RecursionError) as error:
        raise HeadMapError(f"provenance cannot be written as JSON: {error}") from None
    return copy
