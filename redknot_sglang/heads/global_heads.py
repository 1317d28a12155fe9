# SPDX-License-Identifier: Apache-2.0
"""The notation in which a person names global heads on the command line."""

from __future__ import annotations

import re

from redknot_sglang.errors import HeadMapError

_RANGE = re.compile(r"(?P<first>\d{1,6})(-(?P<last>\d{1,6}))?", re.ASCII)


def parse_global_heads(text: str, num_layers: int, num_kv_heads: int) -> frozenset[tuple[int, int]]:
    """The (layer, KV head) pairs that a text names.

    text: a comma-separated list of LAYER:HEAD. Each side is a number from 0, a range with both ends (`0-2`), or `*` for
        all, e.g. `0:1,3:*,5-7:0-2`. A head that is named twice counts once.
    num_layers: layers of the model.
    num_kv_heads: KV heads of each layer.
    Raises HeadMapError, which names the item.
    """
    chosen: set[tuple[int, int]] = set()
    for number, item in enumerate(text.split(","), start=1):
        where = f"global heads, item {number} {item.strip()!r}"
        layers, separator, heads = item.strip().partition(":")
        if not separator:
            raise HeadMapError(f"{where}: expected LAYER:HEAD, as in 0:1, 3:* or 5:0-2")
        layer_range = _parse_range(layers, num_layers, "layer", where)
        head_range = _parse_range(heads, num_kv_heads, "KV head", where)
        chosen.update((layer, head) for layer in layer_range for head in head_range)
    return frozenset(chosen)


def _parse_range(text: str, count: int, what: str, where: str) -> range:
    if text == "*":
        return range(count)
    match = _RANGE.fullmatch(text)
    if match is None:
        raise HeadMapError(f"{where}: {what} {text!r} is neither a number nor a range such as 0-2 nor *")
    first = int(match["first"])
    last = first if match["last"] is None else int(match["last"])
    if last < first:
        raise HeadMapError(f"{where}: {what} range {text} runs backwards; write {last}-{first}")
    if last >= count:
        raise HeadMapError(f"{where}: no {what} {last}, the model has {what}s 0 to {count - 1}")
    return range(first, last + 1)
