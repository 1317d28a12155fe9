# SPDX-License-Identifier: Apache-2.0
"""The native file: how it looks, and what it says when it is wrong."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from redknot_sglang.errors import HeadMapError
from redknot_sglang.heads import HeadMap, ModelInfo, load_head_map
from redknot_sglang.heads.files import MAX_BYTES

DOCUMENT: dict[str, Any] = {
    "format": "redknot-head-map",
    "version": 1,
    "model": {"num_layers": 2, "num_kv_heads": 4, "model_type": "llama", "head_dim": 64},
    "local": {"window": 16, "sink": 0},
    "layers": ["GLLL", "LGGL"],
    "provenance": {"method": "manual"},
}


def failure(file: Path, **options: Any) -> str:
    """The one line that loading `file` fails with, without the path it must start with."""
    with pytest.raises(HeadMapError) as caught:
        load_head_map(file, **options)
    path, message = str(caught.value).split(": ", 1)
    assert path == str(file)
    assert "\n" not in message
    return message


def test_document(tmp_path: Path) -> None:
    file = tmp_path / "map.json"
    file.write_text(json.dumps(DOCUMENT))
    head_map = load_head_map(file)
    assert head_map == HeadMap(
        2,
        4,
        ((True, False, False, False), (False, True, True, False)),
        window=16,
        sink=0,
        model=ModelInfo(model_type="llama", head_dim=64),
        provenance={"method": "manual"},
    )
    assert head_map.to_dict() == DOCUMENT


def test_saved_file_has_a_line_per_layer(tmp_path: Path) -> None:
    file = tmp_path / "map.json"
    HeadMap.from_global_heads(2, 4, [(0, 0)], window=16, sink=0).save(file)
    lines = file.read_text().splitlines()
    assert '    "GLLL",' in lines and '    "LLLL"' in lines


def _set(*path: Any) -> Callable[[dict[str, Any]], None]:
    """An edit: put the last argument at the place that the others name."""
    *parents, key, value = path

    def edit(document: Any) -> None:
        for parent in parents:
            document = document[parent]
        document[key] = value

    return edit


def _drop(*path: Any) -> Callable[[dict[str, Any]], None]:
    *parents, key = path

    def edit(document: Any) -> None:
        for parent in parents:
            document = document[parent]
        del document[key]

    return edit


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (_set("format", "other"), "format must be 'redknot-head-map', got str 'other'"),
        (
            _set("version", 2),
            "head map version 2 is unknown, this release reads version 1: upgrade redknot-sglang or make the map again",
        ),
        (_set("version", "1"), "version must be an integer, got str '1'"),
        (_set("version", True), "version must be an integer, got bool True"),
        (_drop("version"), "version must be an integer, got NoneType None"),
        (_drop("layers"), "the head map lacks 'layers'"),
        (_drop("provenance"), "the head map lacks 'provenance'"),
        (
            _set("windows", 3),
            "the head map has unknown key 'windows'; known: format, layers, local, model, provenance, version",
        ),
        (_set("model", []), "model must be an object, got list []"),
        (_drop("model", "num_layers"), "model lacks 'num_layers'"),
        (
            _set("model", "name", "x"),
            "model has unknown key 'name'; "
            "known: architecture, head_dim, hidden_size, model_type, num_kv_heads, num_layers",
        ),
        (_set("model", "num_layers", 3), "layers has 2 entries, model.num_layers is 3"),
        (_set("model", "num_layers", 0), "model.num_layers must be at least 1, got int 0"),
        (_set("model", "num_kv_heads", 8), "layer 0 has 4 heads, model.num_kv_heads is 8"),
        (_set("model", "num_kv_heads", True), "model.num_kv_heads must be an integer, got bool True"),
        (_set("model", "head_dim", 0), "model.head_dim must be at least 1, got int 0"),
        (_set("model", "model_type", 7), "model.model_type must be a non-empty string, got int 7"),
        (_set("local", 5), "local must be an object, got int 5"),
        (_drop("local", "sink"), "local lacks 'sink'"),
        (_set("local", "size", 1), "local has unknown key 'size'; known: sink, window"),
        (_set("local", "window", 0), "local.window must be at least 1, got int 0"),
        (_set("local", "window", -1), "local.window must be at least 1, got int -1"),
        (_set("local", "window", 16.0), "local.window must be an integer, got float 16.0"),
        (_set("local", "sink", -1), "local.sink must be at least 0, got int -1"),
        (_set("local", "sink", False), "local.sink must be an integer, got bool False"),
        (_set("layers", "GLLL"), "layers must be a list, got str 'GLLL'"),
        (_set("layers", 1, "LGG"), "layer 1 has 3 heads, model.num_kv_heads is 4"),
        (_set("layers", 1, "LGXL"), "layer 1, head 2: unknown class 'X', use G (global) or L (local)"),
        (_set("layers", 0, "gLLL"), "layer 0, head 0: unknown class 'g', use G (global) or L (local)"),
        (_set("layers", 0, [1]), "layer 0 must be a string of G and L such as 'GLLL', got list [1]"),
        (_set("provenance", []), "provenance must be an object, got list []"),
        (_set("provenance", {}), "provenance.method must be a non-empty string, got NoneType None"),
    ],
)
def test_wrong_documents(edit: Callable[[dict[str, Any]], None], message: str, tmp_path: Path) -> None:
    document = copy.deepcopy(DOCUMENT)
    edit(document)
    file = tmp_path / "map.json"
    file.write_text(json.dumps(document))
    assert failure(file) == message


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b" \n", "is empty"),
        (b"head map", "is not valid JSON: Expecting value at line 1, column 1"),
        (b'{"format": ', "is not valid JSON: Expecting value at line 1, column 12"),
        (b"[1, 2]", "the top level must be an object, got list [1, 2]"),
        (b"{}", "is not a head map: it has neither 'format'"),
        (b'{"a": 1, "a": 2}', "key str 'a' appears twice in one object"),
        (b'{"version": NaN}', "is not valid JSON: NaN is not a number"),
        (b'{"version": -Infinity}', "is not valid JSON: -Infinity is not a number"),
        (
            b'{"version": ' + b"9" * 5000 + b"}",
            "is not usable JSON: a number is too long or the nesting too deep",
        ),
        (b'{"a": ' + b"[" * 100_000, "is not usable JSON: a number is too long or the nesting too deep"),
        (b"\xff\xfe{}", "is not UTF-8 text (byte 0)"),
        (b" " * (MAX_BYTES + 1), "is larger than 16 MiB, too large for a head map"),
    ],
    ids=range(13),
)
def test_files_that_are_no_head_map(content: bytes, message: str, tmp_path: Path) -> None:
    file = tmp_path / "map.json"
    file.write_bytes(content)
    assert failure(file).startswith(message)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    assert failure(tmp_path / "missing.json") == "no such file; check the path"
    assert failure(tmp_path) == "is a directory, give the file itself"
    (tmp_path / "file").touch()
    assert failure(tmp_path / "file" / "map.json") == "cannot be read: Not a directory"


def test_save_where_there_is_no_directory(tmp_path: Path) -> None:
    file = tmp_path / "missing" / "map.json"
    with pytest.raises(HeadMapError) as caught:
        HeadMap(1, 1, ((True,),), 1, 0).save(file)
    assert str(caught.value) == f"{file}: cannot be written: No such file or directory"


def test_byte_order_mark_is_tolerated(tmp_path: Path) -> None:
    file = tmp_path / "map.json"
    file.write_text(json.dumps(DOCUMENT), encoding="utf-8-sig")
    assert load_head_map(file).to_dict() == DOCUMENT


def test_import_options_do_not_apply(tmp_path: Path) -> None:
    file = tmp_path / "map.json"
    file.write_text(json.dumps(DOCUMENT))
    assert failure(file, window=32).startswith("is a native head map, which has its own window and sink")
    assert failure(file, sink=0).startswith("is a native head map, which has its own window and sink")
    assert failure(file, threshold=0.5).startswith("has classes, not gates")
