# SPDX-License-Identifier: Apache-2.0
"""Head maps by name: a file beside the model's configuration, or one with a given share of global heads."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from redknot_sglang.errors import CliError, HeadMapError
from redknot_sglang.heads.head_map import HeadMap, load_head_map
from redknot_sglang.heads.model_info import read_model_shape

SINK = 4
_GENERATED = re.compile(r"rho(?P<rho>0?\.\d+)-w(?P<window>\d+)", re.ASCII)


def find_map(name: str, model: Path, folder: Path) -> Path:
    """The file of a head map; written into `folder` for names such as `rho.25-w1024`.

    model: folder with config.json and head maps. Raises CliError for a name that is neither.
    """
    beside = model / f"{name}.json"
    match = _GENERATED.fullmatch(name)
    if match is None:
        if name == "config" or not beside.is_file():
            raise CliError(f"--maps {name}: neither a head map in {model.name}/ nor of the form rho.25-w1024")
        return beside
    made = make_map(model, float(match["rho"]), int(match["window"]))
    path = folder / f"{name}.json"
    made.save(path)
    return path


def make_map(model: Path, rho: float, window: int) -> HeadMap:
    """A map whose global heads lie evenly over all heads of all layers, with `SINK` first positions.

    rho: share of global heads; the nearest whole number of heads is taken. Raises CliError if that is none.
    """
    shape = read_model_shape(model)
    heads = shape.num_layers * shape.num_kv_heads
    count = round(rho * heads)
    if not 1 <= count <= heads or window < 1:
        raise CliError(
            f"rho {rho} and window {window} make no map of {heads} heads; both must be over 0, rho at most 1"
        )
    # The last head of each stretch, so that .125 of 8 heads is one in every layer.
    chosen = [divmod((number + 1) * heads // count - 1, shape.num_kv_heads) for number in range(count)]
    return HeadMap.from_global_heads(
        shape.num_layers,
        shape.num_kv_heads,
        chosen,
        window=window,
        sink=SINK,
        model=shape.info,
        provenance={"method": "manual", "tool": "eval.bench_gpu", "choice": f"{count} of {heads}, evenly"},
    )


def heads(text: str) -> tuple[tuple[int, int], ...]:
    """'12.0,20.7' as (layer, query head) pairs. Raises ValueError."""
    pairs = (word.split(".") for word in text.split(","))
    return tuple((int(layer), int(head)) for layer, head in pairs)


def with_retrieval(path: Path, chosen: Sequence[tuple[int, int]], folder: Path) -> Path:
    """The map of a file with these retrieval heads, (layer, query head), written into `folder`; the file itself if there are none.

    Raises CliError for heads that the map cannot have.
    """
    if not chosen:
        return path
    try:
        made = replace(load_head_map(path), retrieval=tuple(chosen))
    except HeadMapError as error:
        raise CliError(f"--retrieval: {error}") from error
    found = folder / f"{path.stem}-retrieval.json"
    made.save(found)
    return found


def describe(path: Path) -> dict[str, float | int]:
    """What a result file says of a map."""
    head_map = load_head_map(path)
    return {"rho": round(head_map.global_share, 4), "window": head_map.window, "sink": head_map.sink}
