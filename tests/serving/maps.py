# SPDX-License-Identifier: Apache-2.0
"""Head maps for the embedded model, made on the fly."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from redknot_sglang.heads import HeadMap, load_head_map
from tests.serving.harness import HEAD_MAP, MODEL
from tests.serving.oracle import OracleModel

NUM_LAYERS, NUM_KV_HEADS = 6, 4
# Layers without, with one, with several and with only global heads.
GLOBAL_HEADS = ((1, 1), (1, 3), (2, 0), (3, 0), (3, 1), (3, 2), (3, 3), (4, 2))


def make_map(window: int, sink: int) -> HeadMap:
    """A map with `GLOBAL_HEADS` global and all others local."""
    return HeadMap.from_global_heads(NUM_LAYERS, NUM_KV_HEADS, GLOBAL_HEADS, window, sink)


# (layer, query head): heads of global KV heads of the embedded model's map, which has two query heads for each KV head.
RETRIEVAL = ((3, 7), (2, 0), (1, 2))
# Of two tensor-parallel ranks the first has them all, the second none.
ON_FIRST_RANK = ((2, 1), (1, 2), (2, 0))


def save_retrieval_map(folder: Path, retrieval: tuple[tuple[int, int], ...] = RETRIEVAL) -> Path:
    """Write the shipped map with these retrieval heads into `folder`; returns the file."""
    path = folder / "retrieval.json"
    replace(load_head_map(HEAD_MAP), retrieval=retrieval).save(path)
    return path


def save_map(head_map: HeadMap, folder: Path) -> Path:
    """Write the map into `folder`; returns the file."""
    path = folder / f"w{head_map.window}_s{head_map.sink}.json"
    head_map.save(path)
    return path


def oracle_of(head_map: HeadMap) -> OracleModel:
    """The oracle under this map."""
    return OracleModel(MODEL, head_map.to_dict())
