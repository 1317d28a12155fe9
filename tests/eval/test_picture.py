# SPDX-License-Identifier: Apache-2.0
"""Saved drawings keep what tells their curves apart."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image, ImageDraw, ImageFont

from eval.picture import save

MARKS = [(120, 126, 136), (196, 52, 52), (38, 98, 168), (226, 148, 32), (60, 140, 80)]


@pytest.mark.parametrize("suffix", [".webp", ".png"])
def test_thin_lines_keep_their_colours(tmp_path: Path, suffix: str) -> None:
    drawn = Image.new("RGB", (400, 300), "white")
    pen = ImageDraw.Draw(drawn)
    for number, mark in enumerate(MARKS):
        pen.line((0, 20 * number, 400, 50 * number + 3), fill=mark, width=3)
    for number in range(12):
        # Smoothed letters of several colours are what the few shades go to.
        pen.text((10, 24 * number), "what was measured, " * 2, font=ImageFont.load_default(16), fill=MARKS[number % 2])
    pen.line((0, 290, 400, 290), fill=MARKS[2], width=1)
    path = tmp_path / f"drawing{suffix}"
    save(drawn, path)
    kept = Image.open(path).convert("RGB")
    assert kept.size == drawn.size
    for number, mark in enumerate(MARKS):
        at = kept.getpixel((390, number * (20 + 30 * 390 // 400) + 3))
        assert isinstance(at, tuple) and max(abs(a - b) for a, b in zip(at, mark, strict=True)) < 8, mark
