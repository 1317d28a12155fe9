# SPDX-License-Identifier: Apache-2.0
"""Import of the head map JSON that the public RedKnot repository publishes for its models.

Its fields: `num_layers`, `num_kv_heads`, `kv_head_classification` [L][H], `kv_head_max_distance` [L][H]
(the window in tokens; -1 or 0: not given), optional `kv_head_sink_size` [L][H] (the sink in tokens; -1: not given) and
`dense_prefix_layers` (so many first layers have global heads only). `model` and `model_type` are recorded, other keys are
comments. A value that a file leaves out is taken as the format's own reader takes it: FORMAT_WINDOW, FORMAT_SINK.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from redknot_sglang.errors import HeadMapError
from redknot_sglang.heads.checks import require_int, require_keys, require_matrix, shown
from redknot_sglang.heads.head_map import DEFAULT_SINK, DEFAULT_WINDOW, HeadMap
from redknot_sglang.heads.model_info import ModelInfo
from redknot_sglang.heads.provenance import provenance

CLASSES_KEY = "kv_head_classification"
WINDOWS_KEY = "kv_head_max_distance"
SINKS_KEY = "kv_head_sink_size"
DENSE_KEY = "dense_prefix_layers"

FORMAT_WINDOW = 512
FORMAT_SINK = 4

# Retrieval heads keep all KV and choose from it, dense ones are full attention: both need the whole context.
_GLOBAL_CLASSES = frozenset({"global", "retrieval", "dense"})
_LOCAL_CLASSES = frozenset({"local", "local_full", "limited", "streaming", "sink_dominant"})


def decode_redknot_json(
    document: Mapping[str, Any], source: Mapping[str, str], window: int | None, sink: int | None
) -> HeadMap:
    """Head map of a file in that format.

    The format has a window and a sink for each head, a head map has one of each for all local heads: the largest, so that
    every head sees at least what the file gives it. The provenance records the range, and how many heads had no value.

    document: the file's JSON object.
    source: `source` and `source_sha256` of the file, for the provenance.
    window: tokens, instead of what the file says; None for what it says.
    sink: tokens, as `window`.
    Raises HeadMapError, which names the first thing that is wrong in the file.
    """
    require_keys(document, "the RedKnot JSON", ("num_layers", "num_kv_heads", CLASSES_KEY), document)
    num_layers = require_int(document["num_layers"], "num_layers", at_least=1)
    num_kv_heads = require_int(document["num_kv_heads"], "num_kv_heads", at_least=1)
    dense_layers = require_int(document.get(DENSE_KEY, 0), DENSE_KEY, at_least=0)
    classes = require_matrix(document[CLASSES_KEY], CLASSES_KEY, num_layers, num_kv_heads)
    is_global = tuple(
        tuple(_is_global(name, layer, head) or layer < dense_layers for head, name in enumerate(row))
        for layer, row in enumerate(classes)
    )
    local_heads = [(la, h) for la, row in enumerate(is_global) for h, whole in enumerate(row) if not whole]

    record: dict[str, Any] = {
        "format": "RedKnot JSON",
        **source,
        "classes": dict(sorted(Counter(name for row in classes for name in row).items())),
    }
    if DENSE_KEY in document:
        record[DENSE_KEY] = dense_layers
    if isinstance(document.get("model"), str):
        record["source_model"] = document["model"]

    shape = (num_layers, num_kv_heads)
    if local_heads:
        windows = _asked(document, WINDOWS_KEY, shape, local_heads, none_below=1, default=FORMAT_WINDOW, record=record)
        sinks = _asked(document, SINKS_KEY, shape, local_heads, none_below=0, default=FORMAT_SINK, record=record)
    else:
        windows, sinks = [DEFAULT_WINDOW], [DEFAULT_SINK]
    if window is not None or sink is not None:
        record["replaced_by_option"] = [n for n, v in (("window", window), ("sink", sink)) if v is not None]
    model_type = document.get("model_type")
    return HeadMap(
        num_layers,
        num_kv_heads,
        is_global,
        window=max(windows) if window is None else window,
        sink=max(sinks) if sink is None else sink,
        model=ModelInfo(model_type=model_type if isinstance(model_type, str) else None),
        provenance=provenance("import", **record),
    )


def _is_global(name: object, layer: int, head: int) -> bool:
    if isinstance(name, str) and name in _GLOBAL_CLASSES | _LOCAL_CLASSES:
        return name in _GLOBAL_CLASSES
    known = ", ".join(sorted(_GLOBAL_CLASSES | _LOCAL_CLASSES))
    raise HeadMapError(f"{CLASSES_KEY}, layer {layer}, head {head}: unknown class {shown(name)}; known: {known}")


def _asked(
    document: Mapping[str, Any],
    key: str,
    shape: tuple[int, int],
    local_heads: list[tuple[int, int]],
    none_below: int,
    default: int,
    record: dict[str, Any],
) -> list[int]:
    """Values of `key` in tokens, one for each local head; their range is also noted in `record`.

    Entries below `none_below`, and all of them where the key is absent, mean `default`.
    """
    values = []
    num_defaults = 0
    matrix = require_matrix(document[key], key, *shape) if document.get(key) is not None else None
    for layer, head in local_heads:
        value = -1
        if matrix is not None:
            value = require_int(matrix[layer][head], f"{key}, layer {layer}, head {head}", at_least=-1)
        num_defaults += value < none_below
        values.append(default if value < none_below else value)
    record[key] = {"smallest": min(values), "largest": max(values)}
    if num_defaults:
        record[key] |= {"heads_with_format_default": num_defaults, "format_default": default}
    return values
