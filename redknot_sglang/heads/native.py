# SPDX-License-Identifier: Apache-2.0
"""Reader of the native head map, the JSON document that `HeadMap.to_dict` describes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from redknot_sglang.errors import HeadMapError
from redknot_sglang.heads.checks import require_int, require_keys, require_list, require_object, shown
from redknot_sglang.heads.head_map import FORMAT, VERSION, HeadClass, HeadMap
from redknot_sglang.heads.model_info import ModelInfo

_IS_GLOBAL = {HeadClass.GLOBAL.letter: True, HeadClass.LOCAL.letter: False}


def decode_native(document: Mapping[str, Any]) -> HeadMap:
    """Head map of a native file.

    document: the file's JSON object.
    Raises HeadMapError, which names the first thing that is wrong in it.
    """
    if document.get("format") != FORMAT:
        raise HeadMapError(f"format must be {FORMAT!r}, got {shown(document.get('format'))}")
    # Before the keys: another version may well have other keys.
    if require_int(document.get("version"), "version", at_least=1) != VERSION:
        raise HeadMapError(
            f"head map version {document['version']} is unknown, this release reads version {VERSION}: "
            "upgrade redknot-sglang or make the map again"
        )
    require_keys(document, "the head map", ("format", "version", "model", "local", "layers", "provenance"))

    model = require_object(document["model"], "model")
    info_names = [item.name for item in fields(ModelInfo)]
    require_keys(model, "model", ("num_layers", "num_kv_heads"), info_names)
    num_layers = require_int(model["num_layers"], "model.num_layers", at_least=1)
    num_kv_heads = require_int(model["num_kv_heads"], "model.num_kv_heads", at_least=1)

    local = require_object(document["local"], "local")
    require_keys(local, "local", ("window", "sink"))
    return HeadMap(
        num_layers,
        num_kv_heads,
        _decode_layers(document["layers"], num_layers, num_kv_heads),
        window=require_int(local["window"], "local.window", at_least=1),
        sink=require_int(local["sink"], "local.sink", at_least=0),
        model=ModelInfo(**{name: model[name] for name in info_names if name in model}),
        provenance=require_object(document["provenance"], "provenance"),
    )


def _decode_layers(value: object, num_layers: int, num_kv_heads: int) -> tuple[tuple[bool, ...], ...]:
    layers = require_list(value, "layers")
    if len(layers) != num_layers:
        raise HeadMapError(f"layers has {len(layers)} entries, model.num_layers is {num_layers}")
    for layer, letters in enumerate(layers):
        if not isinstance(letters, str):
            raise HeadMapError(f"layer {layer} must be a string of G and L such as 'GLLL', got {shown(letters)}")
        if len(letters) != num_kv_heads:
            raise HeadMapError(f"layer {layer} has {len(letters)} heads, model.num_kv_heads is {num_kv_heads}")
        for head, letter in enumerate(letters):
            if letter not in _IS_GLOBAL:
                raise HeadMapError(f"layer {layer}, head {head}: unknown class {letter!r}, use G (global) or L (local)")
    return tuple(tuple(_IS_GLOBAL[letter] for letter in letters) for letters in layers)
