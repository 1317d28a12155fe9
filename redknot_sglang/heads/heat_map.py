# SPDX-License-Identifier: Apache-2.0
"""The heat map of a head map: layers left to right, KV heads top to bottom, a cell per head, in SVG or PNG.

Both pictures come from one list of rectangles and texts, so they cannot differ.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from html import escape
from io import BytesIO
from typing import Literal

from redknot_sglang.errors import HeadMapError
from redknot_sglang.heads.head_map import HeadMap
from redknot_sglang.heads.summary import model_title

# Dark on light, told apart without colour vision and in black and white print.
GLOBAL_COLOR = "#15446e"
LOCAL_COLOR = "#cfdfec"
INK = "#222222"
PAPER = "#ffffff"

TITLE_SIZE = 14
LABEL_SIZE = 11
LABEL_PITCH = 26
MARGIN_LEFT, MARGIN_TOP, MARGIN_RIGHT, MARGIN_BOTTOM = 58, 62, 18, 66
MIN_WIDTH = 520
PNG_SCALE = 2

Align = Literal["start", "middle", "end"]


@dataclass(frozen=True)
class Rect:
    """A filled rectangle: its upper left corner and its size in pixels, and its colour as #rrggbb."""

    x: int
    y: int
    width: int
    height: int
    color: str


@dataclass(frozen=True)
class Text:
    """One line of text.

    x, y: a point on the baseline in pixels: the text's start, middle or end, as `align` says.
    content: the text.
    size: height of the font in pixels.
    """

    x: int
    y: int
    content: str
    size: int = LABEL_SIZE
    align: Align = "start"


@dataclass
class Drawing:
    """A picture in pixels, origin at the top left."""

    title: str
    width: int
    height: int
    rects: list[Rect] = field(default_factory=list)
    texts: list[Text] = field(default_factory=list)


def draw(head_map: HeadMap) -> Drawing:
    """The picture of a head map; cells are 6 to 18 pixels wide, smaller for models with many layers."""
    layers, heads = head_map.num_layers, head_map.num_kv_heads
    cell = max(6, min(18, 1100 // max(layers, heads)))
    gap = 1
    bottom = MARGIN_TOP + heads * cell
    title = f"{model_title(head_map)}: {layers} layers x {heads} KV heads"
    drawing = Drawing(title, max(MIN_WIDTH, MARGIN_LEFT + layers * cell + MARGIN_RIGHT), bottom + MARGIN_BOTTOM)

    for layer, row in enumerate(head_map.is_global):
        for head, is_global in enumerate(row):
            x, y = MARGIN_LEFT + layer * cell, MARGIN_TOP + head * cell
            color = GLOBAL_COLOR if is_global else LOCAL_COLOR
            drawing.rects.append(Rect(x, y, cell - gap, cell - gap, color))

    totals = f"{head_map.global_share:.1%} global; local heads: window {head_map.window}, sink {head_map.sink}"
    drawing.texts += [Text(MARGIN_LEFT, 24, title, TITLE_SIZE), Text(MARGIN_LEFT, 46, totals)]
    for layer in range(0, layers, _label_step(cell)):
        drawing.texts.append(Text(MARGIN_LEFT + layer * cell + cell // 2, bottom + 15, str(layer), align="middle"))
    for head in range(0, heads, _label_step(cell + 8)):
        y = MARGIN_TOP + head * cell + cell // 2 + LABEL_SIZE // 3
        drawing.texts.append(Text(MARGIN_LEFT - 6, y, str(head), align="end"))
    drawing.texts += [
        Text(MARGIN_LEFT - 6, MARGIN_TOP - 4, "KV head", align="end"),
        Text(MARGIN_LEFT, bottom + 32, "layer"),
    ]
    for x, color, name in ((MARGIN_LEFT, GLOBAL_COLOR, "global"), (MARGIN_LEFT + 80, LOCAL_COLOR, "local")):
        drawing.rects.append(Rect(x, bottom + 44, 12, 12, color))
        drawing.texts.append(Text(x + 18, bottom + 54, name))
    return drawing


def to_svg(drawing: Drawing) -> str:
    """The picture as an SVG document."""
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {drawing.width} {drawing.height}" '
        f'width="{drawing.width}" height="{drawing.height}" font-family="sans-serif" role="img">',
        f"<title>{escape(drawing.title)}</title>",
        f'<rect width="100%" height="100%" fill="{PAPER}"/>',
    ]
    lines += [
        f'<rect x="{r.x}" y="{r.y}" width="{r.width}" height="{r.height}" fill="{r.color}"/>' for r in drawing.rects
    ]
    lines += [
        f'<text x="{t.x}" y="{t.y}" font-size="{t.size}" text-anchor="{t.align}" fill="{INK}">'
        f"{escape(t.content)}</text>"
        for t in drawing.texts
    ]
    return "\n".join([*lines, "</svg>", ""])


def to_png(drawing: Drawing) -> bytes:
    """The picture as a PNG of `PNG_SCALE` pixels per unit. Raises HeadMapError where Pillow is missing."""
    try:
        from PIL import Image, ImageDraw, ImageFont
    except ImportError:
        raise HeadMapError("a PNG needs the package pillow: install it, or ask for an SVG") from None
    scale = PNG_SCALE
    image = Image.new("RGB", (drawing.width * scale, drawing.height * scale), PAPER)
    canvas = ImageDraw.Draw(image)
    for r in drawing.rects:
        # Pillow's second corner is the last pixel inside.
        corner = ((r.x + r.width) * scale - 1, (r.y + r.height) * scale - 1)
        canvas.rectangle(((r.x * scale, r.y * scale), corner), fill=r.color)
    anchors: dict[Align, str] = {"start": "ls", "middle": "ms", "end": "rs"}
    for t in drawing.texts:
        font = ImageFont.load_default(t.size * scale)
        canvas.text((t.x * scale, t.y * scale), t.content, fill=INK, font=font, anchor=anchors[t.align])
    buffer = BytesIO()
    image.save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def _label_step(pitch: int) -> int:
    """Every how many cells a label fits, as a power of two."""
    step = 1
    while step * pitch < LABEL_PITCH:
        step *= 2
    return step
