# SPDX-License-Identifier: Apache-2.0
"""Reads a head map in any of the three known formats, which are told apart by the file's content, not by its name."""

from __future__ import annotations

import hashlib
from pathlib import Path

from redknot_sglang.errors import HeadMapError
from redknot_sglang.heads.duo_attention import decode_duo_attention, looks_like_gates
from redknot_sglang.heads.files import StrPath, parse_json_object, read_text
from redknot_sglang.heads.head_map import FORMAT, HeadMap
from redknot_sglang.heads.native import decode_native
from redknot_sglang.heads.redknot_json import CLASSES_KEY, decode_redknot_json


def read_head_map(
    path: StrPath, threshold: float | None, window: int | None, sink: int | None, share: float | None = None
) -> HeadMap:
    """As `head_map.load_head_map`, except that messages are the end of a sentence: the caller puts the path before them."""
    file = Path(path)
    text = read_text(file)
    source = {"source": file.name, "source_sha256": hashlib.sha256(text.encode()).hexdigest()}
    if not text.strip():
        raise HeadMapError("is empty; make a map with `redknot heads make`")
    if looks_like_gates(text):
        return decode_duo_attention(text, file.parent / "config.json", source, threshold, window, sink, share)

    document = parse_json_object(text)
    if threshold is not None:
        raise HeadMapError("has classes, not gates: a threshold applies to DuoAttention tables only, leave it out")
    if share is not None:
        raise HeadMapError(
            "has classes, not gates: a share of global heads applies to DuoAttention tables only, leave it out"
        )
    if "format" in document:
        if window is not None or sink is not None:
            raise HeadMapError(
                "is a native head map, which has its own window and sink: edit 'local' in it to change them"
            )
        return decode_native(document)
    if CLASSES_KEY in document:
        return decode_redknot_json(document, source, window, sink)
    raise HeadMapError(
        f"is not a head map: it has neither 'format': {FORMAT!r} (native) nor {CLASSES_KEY!r} (RedKnot JSON); make one "
        "with `redknot heads make`"
    )
