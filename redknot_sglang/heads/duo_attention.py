# SPDX-License-Identifier: Apache-2.0
"""Import of DuoAttention's patterns: `full_attention_heads.tsv`, with `config.json` beside it.

The table has a row per layer and a column per KV head. An entry is the head's trained gate, nominally 0 to 1:
how much it needs full attention. `sink_size` and `recent_size` in config.json are tokens.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from redknot_sglang.errors import HeadMapError
from redknot_sglang.heads.checks import require_int, shown
from redknot_sglang.heads.files import parse_json_object, read_text
from redknot_sglang.heads.head_map import HeadMap
from redknot_sglang.heads.provenance import provenance

DEFAULT_THRESHOLD = 0.5


def looks_like_gates(text: str) -> bool:
    """Whether a file's text is such a table: its first cell is a number, as in no other format that is known here."""
    first_line = text.lstrip().split("\n", 1)[0]
    try:
        float(first_line.split("\t", 1)[0])
    except ValueError:
        return False
    return True


def decode_duo_attention(
    text: str,
    config_path: Path,
    source: Mapping[str, str],
    threshold: float | None,
    window: int | None,
    sink: int | None,
    share: float | None = None,
) -> HeadMap:
    """Head map of a table of gates.

    text: the table, layers down, KV heads across.
    config_path: DuoAttention's config.json, read for what `window` and `sink` leave open.
    source: `source` and `source_sha256` of the file, for the provenance.
    threshold: heads whose gate is larger are global; None is 0.5.
    window: tokens of the window, or None for `recent_size` of config.json.
    sink: tokens of the sink, or None for `sink_size` of config.json.
    share: instead of a threshold, 0 to 1: the heads with the largest gates, at most this share of all, are global; of
        equal gates the first. DuoAttention calls 1 - share the sparsity. Its published tables of GQA models need it, since
        81 to 95 % of their heads have a gate above 0.5.
    Raises HeadMapError if the table is broken, or window or sink is said nowhere.
    """
    if share is not None and threshold is not None:
        raise HeadMapError("a threshold and a share of global heads exclude each other: give one of them")
    threshold = DEFAULT_THRESHOLD if threshold is None else threshold
    if not 0.0 <= threshold <= 1.0:  # false for NaN, too
        raise HeadMapError(f"threshold must be within 0 to 1, got {threshold}")
    # Training may leave a gate a little outside 0 to 1; the clipped value is meant.
    gates = [[min(1.0, max(0.0, gate)) for gate in row] for row in _parse_gates(text)]
    chosen = {"threshold": threshold} if share is None else {"global_share": share}
    record: dict[str, Any] = {"format": "DuoAttention TSV", **source, **chosen}
    if window is None or sink is None:
        config = _read_config(config_path)
        window = _size(config, "recent_size", "window", 1) if window is None else window
        sink = _size(config, "sink_size", "sink", 0) if sink is None else sink
        if isinstance(config.get("model_name"), str):
            # Training wrote the model's path there: the last part is its name, the rest somebody's disk.
            record["source_model"] = config["model_name"].rstrip("/").rsplit("/", 1)[-1]
    return HeadMap(
        num_layers=len(gates),
        num_kv_heads=len(gates[0]),
        is_global=_largest(gates, share)
        if share is not None
        else tuple(tuple(g > threshold for g in row) for row in gates),
        window=window,
        sink=sink,
        provenance=provenance("import", **record),
    )


def _largest(gates: list[list[float]], share: float) -> tuple[tuple[bool, ...], ...]:
    if not 0.0 <= share <= 1.0:  # false for NaN, too
        raise HeadMapError(f"the share of global heads must be within 0 to 1, got {share}")
    heads = [(layer, head) for layer, row in enumerate(gates) for head in range(len(row))]
    heads.sort(key=lambda h: -gates[h[0]][h[1]])
    # A share written as a decimal means the heads it names: 0.29 of 100 are 29, though the product is below.
    taken = set(heads[: math.floor(share * len(heads) + 1e-9)])
    return tuple(tuple((layer, head) in taken for head in range(len(row))) for layer, row in enumerate(gates))


def _parse_gates(text: str) -> list[list[float]]:
    gates: list[list[float]] = []
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        layer = len(gates)
        row = [_gate(cell, f"line {number} (layer {layer}), head {head}") for head, cell in enumerate(line.split("\t"))]
        if gates and len(row) != len(gates[0]):
            raise HeadMapError(f"line {number} (layer {layer}) has {len(row)} heads, layer 0 has {len(gates[0])}")
        gates.append(row)
    return gates


def _gate(cell: str, where: str) -> float:
    try:
        gate = float(cell)
    except ValueError:
        raise HeadMapError(f"{where}: {shown(cell)} is not a number; cells are separated by tabs") from None
    if not math.isfinite(gate):
        raise HeadMapError(f"{where}: the gate is {gate}, it must be a finite number; export the table again")
    return gate


def _read_config(path: Path) -> dict[str, Any]:
    if not path.exists():
        raise HeadMapError(
            "is a DuoAttention table without its config.json, so window and sink are unknown: put that file beside it, "
            "or convert it with `redknot heads import SRC --window W --sink S --out F`"
        )
    try:
        return parse_json_object(read_text(path))
    except HeadMapError as error:
        raise HeadMapError(f"{path.name} beside it: {error}") from None


def _size(config: Mapping[str, Any], key: str, option: str, at_least: int) -> int:
    if key not in config:
        raise HeadMapError(
            f"config.json beside it has no {key!r}: give it with `redknot heads import SRC --{option} N --out F`"
        )
    return require_int(config[key], f"{key} in config.json beside it", at_least)
