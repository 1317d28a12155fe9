# SPDX-License-Identifier: Apache-2.0
"""Saving the drawings of benchmarks: without loss, in few bytes, since results are committed with them."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

_SHADES = 12


def save(image: Image.Image, path: Path) -> None:
    """Write a drawing in the format that the suffix names; .webp is half as long as .png.

    Lines and text have few colors; what smooths their edges needs a few more.
    """
    # Median cut, the default, mixes the colors of thin lines.
    few = image.quantize(_SHADES, method=Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)
    few.convert("RGB").save(path, lossless=True, quality=100, method=6)
