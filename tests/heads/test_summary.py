# SPDX-License-Identifier: Apache-2.0
"""The summary as text, as data and as a picture."""

from __future__ import annotations

import builtins
import json
import xml.etree.ElementTree as ElementTree
from collections import Counter
from dataclasses import replace
from io import BytesIO
from typing import Any

import pytest
from PIL import Image

from redknot_sglang.errors import HeadMapError
from redknot_sglang.heads import HeadMap, ModelInfo
from redknot_sglang.heads.heat_map import GLOBAL_COLOR, LOCAL_COLOR, PNG_SCALE, draw, to_png, to_svg
from redknot_sglang.heads.summary import one_line, summary_dict, summary_text

SVG = "{http://www.w3.org/2000/svg}"
MAP = HeadMap.from_global_heads(
    2,
    4,
    [(0, 0), (1, 2)],
    window=252,
    sink=4,
    model=ModelInfo(architecture="LlamaForCausalLM", head_dim=128),
    provenance={"method": "import", "format": "RedKnot JSON", "source": "public.json"},
)


def test_text() -> None:
    # rho = 1/4: 4096 tokens keep 1/4 + 3/4/16; stock's KV is 2 layers x 4 heads x 128 x 4 bytes a token.
    assert summary_text(MAP, [131072, 4096]).splitlines() == [
        "model        LlamaForCausalLM, 2 layers x 4 KV heads, head_dim 128",
        "local heads  window 252, sink 4",
        "made by      import, RedKnot JSON, public.json",
        f"fingerprint  {MAP.fingerprint}",
        "",
        "layer  heads  global  local   (# global, . local)",
        "    0  #...        1      3",
        "    1  ..#.        1      3",
        "  all  25.0%       2      6",
        "",
        "prefix tokens  KV bytes kept  capacity gain  GiB (16-bit KV)",
        "         4096          29.7%          3.37x  0.00 of 0.02",
        "       131072          25.1%          3.98x  0.13 of 0.50",
    ]


def test_text_names_retrieval_heads() -> None:
    lines = summary_text(replace(MAP, retrieval=((1, 8), (0, 3)))).splitlines()
    assert lines[3] == "retrieval    1.8, 0.3 (layer.query head)" and lines[4].startswith("fingerprint")


def test_text_without_a_head_size_says_nothing_of_bytes() -> None:
    text = summary_text(HeadMap(1, 1, ((True,),), window=1, sink=0))
    assert "GiB" not in text and "head_dim" not in text
    assert "unnamed model" in text and text.endswith("1.00x\n")


def test_dict_is_json_and_agrees_with_the_map() -> None:
    summary = json.loads(json.dumps(summary_dict(MAP, [8192])))
    assert summary == {
        "fingerprint": MAP.fingerprint,
        "num_layers": 2,
        "num_kv_heads": 4,
        "num_global": 2,
        "global_share": 0.25,
        "window": 252,
        "sink": 4,
        "kv_kept": {"8192": MAP.compression(8192)},
        "method": "import",
    }


def test_one_line() -> None:
    assert one_line(MAP) == (
        f"2 layers x 4 KV heads, 25.0% global, window 252, sink 4, fingerprint {MAP.fingerprint[:12]}"
    )


def test_svg_has_a_cell_per_head_in_its_colour() -> None:
    root = ElementTree.fromstring(to_svg(draw(MAP)))
    fills = Counter(rect.get("fill") for rect in root.iter(f"{SVG}rect"))
    assert (fills[GLOBAL_COLOR], fills[LOCAL_COLOR]) == (2 + 1, 6 + 1)  # one more of each in the legend
    assert root.findtext(f"{SVG}title") == "LlamaForCausalLM: 2 layers x 4 KV heads"


def test_png_shows_the_classes() -> None:
    drawing = draw(MAP)
    image = Image.open(BytesIO(to_png(drawing))).convert("RGB")
    assert image.size == (drawing.width * PNG_SCALE, drawing.height * PNG_SCALE)
    cells = iter(drawing.rects)  # layer by layer, as the map
    for row in MAP.is_global:
        for is_global in row:
            cell = next(cells)
            middle = (cell.x + cell.width // 2) * PNG_SCALE, (cell.y + cell.height // 2) * PNG_SCALE
            red, green, blue = image.getpixel(middle)  # type: ignore[misc]
            assert f"#{red:02x}{green:02x}{blue:02x}" == (GLOBAL_COLOR if is_global else LOCAL_COLOR)


@pytest.mark.parametrize(("layers", "heads"), [(1, 1), (4, 64), (36, 8), (80, 8), (128, 128)])
def test_everything_lies_inside_the_picture_and_labels_do_not_touch(layers: int, heads: int) -> None:
    drawing = draw(HeadMap(layers, heads, ((True,) * heads,) * layers, window=128, sink=4))
    assert all(0 <= r.x and r.x + r.width <= drawing.width for r in drawing.rects)
    assert all(0 <= r.y and r.y + r.height <= drawing.height for r in drawing.rects)
    assert all(0 <= t.x <= drawing.width and 0 <= t.y <= drawing.height for t in drawing.texts)
    columns = [t.x for t in drawing.texts if t.align == "middle"]
    assert all(right - left >= 26 for left, right in zip(columns, columns[1:], strict=False))


def test_names_from_a_file_cannot_break_terminal_or_svg() -> None:
    name = "<b>\x1b[31m\ud800&" + "x" * 200
    head_map = HeadMap(1, 1, ((True,),), 1, 0, ModelInfo(architecture=name), {"method": "\x1b[2J"})
    root = ElementTree.fromstring(to_svg(draw(head_map)).encode())
    shown = f"<b>?[31m?&{'x' * 50}"
    assert root.findtext(f"{SVG}title") == f"{shown}: 1 layers x 1 KV heads"
    assert "\x1b" not in summary_text(head_map)


def test_png_without_pillow_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    real_import = builtins.__import__

    def no_pillow(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "PIL":
            raise ImportError(name)
        return real_import(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", no_pillow)
    with pytest.raises(HeadMapError, match="a PNG needs the package pillow: install it, or ask for an SVG"):
        to_png(draw(MAP))
