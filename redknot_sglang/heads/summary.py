# SPDX-License-Identifier: Apache-2.0
"""A head map in a few numbers: as data for a status page, as text for a terminal."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from redknot_sglang.heads.head_map import HeadMap

DEFAULT_LENGTHS = (4096, 32768, 131072)

GLOBAL_MARK = "#"
LOCAL_MARK = "."

# K and V of one head and token in a 16-bit type take 4 bytes per element of the head.
BYTES_PER_ELEMENT = 4
GIB = 1 << 30


def summary_dict(head_map: HeadMap, lengths: Iterable[int] = DEFAULT_LENGTHS) -> dict[str, Any]:
    """A head map in a few numbers, as JSON types.

    lengths: tokens of prefixes; under `kv_kept` stands for each the share of stock's KV bytes that it keeps.
    """
    return {
        "fingerprint": head_map.fingerprint,
        "num_layers": head_map.num_layers,
        "num_kv_heads": head_map.num_kv_heads,
        "num_global": sum(map(sum, head_map.is_global)),
        "global_share": head_map.global_share,
        "window": head_map.window,
        "sink": head_map.sink,
        "kv_kept": {str(length): head_map.compression(length) for length in _ascending(lengths)},
        "method": head_map.provenance["method"],
    }


def one_line(head_map: HeadMap) -> str:
    """Shape, share of global heads, window, sink and the start of the fingerprint."""
    return (
        f"{head_map.num_layers} layers x {head_map.num_kv_heads} KV heads, "
        f"{head_map.global_share:.1%} global, window {head_map.window}, sink {head_map.sink}, "
        f"fingerprint {head_map.fingerprint[:12]}"
    )


def summary_text(head_map: HeadMap, lengths: Iterable[int] = DEFAULT_LENGTHS) -> str:
    """A table of all layers, and one of what cached prefixes keep. Ends with a newline.

    lengths: tokens of these prefixes. The capacity gain is of KV memory alone: how many such prefixes fit into the bytes
        that stock SGLang needs for one.
    """
    return "\n".join([*_header(head_map), "", *_layer_table(head_map), "", *_length_table(head_map, lengths), ""])


def model_title(head_map: HeadMap) -> str:
    """The best name the map has for its model, at most 60 printable characters."""
    names = (head_map.model.architecture, head_map.model.model_type, head_map.provenance.get("source_model"))
    return next((printable(name)[:60] for name in names if isinstance(name, str)), "unnamed model")


def printable(text: str) -> str:
    """`text`, which may come from anybody's file, without what moves a cursor or breaks XML or UTF-8."""
    return "".join(char if char.isprintable() else "?" for char in text)


def _header(head_map: HeadMap) -> list[str]:
    head_dim = "" if head_map.model.head_dim is None else f", head_dim {head_map.model.head_dim}"
    made_by = [head_map.provenance.get(key) for key in ("method", "format", "source", "tool")]
    return [
        f"model        {model_title(head_map)}, "
        f"{head_map.num_layers} layers x {head_map.num_kv_heads} KV heads{head_dim}",
        f"local heads  window {head_map.window}, sink {head_map.sink}",
        f"made by      {printable(', '.join(part for part in made_by if isinstance(part, str)))}",
        *([f"retrieval    {retrieval_heads(head_map)} (layer.query head)"] if head_map.retrieval else []),
        f"fingerprint  {head_map.fingerprint}",
    ]


def retrieval_heads(head_map: HeadMap) -> str:
    """The map's retrieval heads as layer.head, the best one first."""
    return ", ".join(f"{layer}.{head}" for layer, head in head_map.retrieval)


def _layer_table(head_map: HeadMap) -> list[str]:
    width = max(head_map.num_kv_heads, len("heads"))
    lines = [f"layer  {'heads':<{width}}  global  local   ({GLOBAL_MARK} global, {LOCAL_MARK} local)"]
    for layer, row in enumerate(head_map.is_global):
        marks = "".join(GLOBAL_MARK if is_global else LOCAL_MARK for is_global in row)
        lines.append(f"{layer:>5}  {marks:<{width}}  {head_map.num_global(layer):>6}  {head_map.num_local(layer):>5}")
    num_global = sum(map(sum, head_map.is_global))
    num_local = head_map.num_layers * head_map.num_kv_heads - num_global
    lines.append(f"  all  {head_map.global_share:<{width}.1%}  {num_global:>6}  {num_local:>5}")
    return lines


def _length_table(head_map: HeadMap, lengths: Iterable[int]) -> list[str]:
    head_dim = head_map.model.head_dim
    lines = ["prefix tokens  KV bytes kept  capacity gain" + ("" if head_dim is None else "  GiB (16-bit KV)")]
    for length in _ascending(lengths):
        kept = head_map.compression(length)
        line = f"{length:>13}  {kept:>13.1%}  {1 / kept:>12.2f}x"
        if head_dim is not None:
            stock = length * head_map.num_layers * head_map.num_kv_heads * head_dim * BYTES_PER_ELEMENT / GIB
            line += f"  {kept * stock:.2f} of {stock:.2f}"
        lines.append(line)
    return lines


def _ascending(lengths: Iterable[int]) -> list[int]:
    return sorted(set(lengths))
