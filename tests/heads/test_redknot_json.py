# SPDX-License-Identifier: Apache-2.0
"""Import of the public RedKnot JSON."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from redknot_sglang.errors import HeadMapError
from redknot_sglang.heads import HeadMap, load_head_map

DOCUMENT: dict[str, Any] = {
    "model": "Some-Model-7B",
    "model_type": "mistral",
    "rationale": "free text",
    "num_layers": 3,
    "num_kv_heads": 2,
    "retrieval_top_p": 0.9,
    "dense_prefix_layers": 1,
    "kv_head_classification": [["local", "local"], ["retrieval", "local"], ["dense", "local_full"]],
    "kv_head_max_distance": [[9999, 9999], [-1, 3000], [0, 512]],
    "kv_head_sink_size": [[64, 64], [4, 4], [4, 8]],
}


def imported(tmp_path: Path, options: dict[str, Any] | None = None, **changes: Any) -> HeadMap:
    """The map that DOCUMENT gives with top-level keys replaced, or left out where the change is `...`."""
    document = {key: value for key, value in {**DOCUMENT, **changes}.items() if value is not ...}
    file = tmp_path / "public.json"
    file.write_text(json.dumps(document))
    return load_head_map(file, **(options or {}))


def test_import(tmp_path: Path) -> None:
    head_map = imported(tmp_path)
    # Layer 0 is dense by dense_prefix_layers, so its windows and sinks count for nothing.
    assert head_map.is_global == ((True, True), (True, False), (True, False))
    assert (head_map.window, head_map.sink) == (3000, 8)
    assert head_map.model.model_type == "mistral"
    digest = hashlib.sha256((tmp_path / "public.json").read_bytes()).hexdigest()
    record = dict(head_map.provenance)
    assert record.pop("tool").startswith("redknot-sglang ")
    assert record == {
        "method": "import",
        "format": "RedKnot JSON",
        "source": "public.json",
        "source_sha256": digest,
        "source_model": "Some-Model-7B",
        "classes": {"dense": 1, "local": 3, "local_full": 1, "retrieval": 1},
        "dense_prefix_layers": 1,
        "kv_head_max_distance": {"smallest": 512, "largest": 3000},
        "kv_head_sink_size": {"smallest": 4, "largest": 8},
    }


def test_imported_map_survives_saving(tmp_path: Path) -> None:
    head_map = imported(tmp_path)
    head_map.save(tmp_path / "native.json")
    assert load_head_map(tmp_path / "native.json") == head_map


def test_what_the_file_leaves_out_is_recorded(tmp_path: Path) -> None:
    head_map = imported(
        tmp_path,
        kv_head_sink_size=...,
        kv_head_max_distance=[[-1, -1], [-1, 300], [-1, -1]],
        dense_prefix_layers=...,
    )
    assert (head_map.window, head_map.sink) == (512, 4)
    assert head_map.provenance["kv_head_max_distance"] == {
        "smallest": 300,
        "largest": 512,
        "heads_with_format_default": 3,
        "format_default": 512,
    }
    assert head_map.provenance["kv_head_sink_size"] == {
        "smallest": 4,
        "largest": 4,
        "heads_with_format_default": 4,
        "format_default": 4,
    }


def test_sink_zero_is_a_sink_not_a_gap(tmp_path: Path) -> None:
    assert imported(tmp_path, kv_head_sink_size=[[0, 0]] * 3).sink == 0


def test_all_global_map_takes_our_defaults(tmp_path: Path) -> None:
    head_map = imported(tmp_path, dense_prefix_layers=3, kv_head_max_distance=...)
    assert head_map.all_global
    assert (head_map.window, head_map.sink) == (128, 4)


def test_options_replace_and_are_recorded(tmp_path: Path) -> None:
    head_map = imported(tmp_path, {"window": 256, "sink": 0})
    assert (head_map.window, head_map.sink) == (256, 0)
    assert head_map.provenance["replaced_by_option"] == ["window", "sink"]
    assert head_map.provenance["kv_head_max_distance"] == {"smallest": 512, "largest": 3000}
    assert imported(tmp_path, {"sink": 1}).provenance["replaced_by_option"] == ["sink"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_layers": ...}, "the RedKnot JSON lacks 'num_layers'"),
        ({"num_layers": 4}, "kv_head_classification has 3 layers, num_layers is 4"),
        ({"num_kv_heads": 4}, "kv_head_classification, layer 0 has 2 heads, num_kv_heads is 4"),
        ({"num_kv_heads": 2.0}, "num_kv_heads must be an integer, got float 2.0"),
        (
            {"kv_head_classification": [["local"] * 2, ["local", "lokal"], ["local"] * 2]},
            "kv_head_classification, layer 1, head 1: unknown class str 'lokal'; known: dense, global, "
            "limited, local, local_full, retrieval, sink_dominant, streaming",
        ),
        (
            {"kv_head_classification": [["local"] * 2, ["local", ["local"]], ["local"] * 2]},
            "kv_head_classification, layer 1, head 1: unknown class list ['local']; known: dense, global, "
            "limited, local, local_full, retrieval, sink_dominant, streaming",
        ),
        ({"kv_head_classification": [["local"] * 2, None, []]}, "layer 1 must be a list, got NoneType None"),
        ({"kv_head_max_distance": [[1, 1]] * 2}, "kv_head_max_distance has 2 layers, num_layers is 3"),
        (
            {"kv_head_max_distance": [[1, 1], [1, True], [1, 1]]},
            "kv_head_max_distance, layer 1, head 1 must be an integer, got bool True",
        ),
        (
            {"kv_head_max_distance": [[1, 1], [1, -2], [1, 1]]},
            "kv_head_max_distance, layer 1, head 1 must be at least -1, got int -2",
        ),
        (
            {"kv_head_sink_size": [[4, 4], [4, "4"], [4, 4]]},
            "kv_head_sink_size, layer 1, head 1 must be an integer, got str '4'",
        ),
        ({"dense_prefix_layers": -1}, "dense_prefix_layers must be at least 0, got int -1"),
    ],
)
def test_wrong_documents(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(HeadMapError) as caught:
        imported(tmp_path, **changes)
    assert str(caught.value).startswith(f"{tmp_path / 'public.json'}: ")
    assert str(caught.value).endswith(message)


def test_wrong_options(tmp_path: Path) -> None:
    with pytest.raises(HeadMapError, match="window must be at least 1, got int 0"):
        imported(tmp_path, {"window": 0})
    with pytest.raises(HeadMapError, match="has classes, not gates"):
        imported(tmp_path, {"threshold": 0.5})
