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


def save_retrieval_map(folder: Path, retrieval: tuple[tuple[int, int], ...] = RETRIEVAL) -> Path:
    """Write the shipped map with these retrieval heads into `folder`; returns the file."""
    path = folder / "retrieval.json"
    replace(load_head_map(HEAD_MAP), retrieval=retrieval).save(path)
    return path


# Global heads which in the checkpoint's order are all on the first of two ranks, two of them in the layer that is
# probed.
LOPSIDED = ((1, 0), (1, 1), (2, 0), (3, 0), (3, 1), (4, 0))
# Query heads of theirs, which come to lie on both ranks, and one alone, so that a rank has none.
RETRIEVAL_OF_LOPSIDED, ALONE = ((1, 1), (2, 0), (3, 3), (4, 1)), ((2, 1),)


def lopsided_map(retrieval: tuple[tuple[int, int], ...]) -> HeadMap:
    """A map with the global heads `LOPSIDED`, and the shipped map's window and sink."""
    shipped = load_head_map(HEAD_MAP)
    found = HeadMap.from_global_heads(NUM_LAYERS, NUM_KV_HEADS, LOPSIDED, shipped.window, shipped.sink)
    return replace(found, retrieval=retrieval)


def save_map(head_map: HeadMap, folder: Path) -> Path:
    """Write the map into `folder`; returns the file."""
    path = folder / f"w{head_map.window}_s{head_map.sink}.json"
    head_map.save(path)
    return path


def oracle_of(head_map: HeadMap) -> OracleModel:
    """The oracle under this map."""
    return OracleModel(MODEL, head_map.to_dict())
