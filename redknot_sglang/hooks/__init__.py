# SPDX-License-Identifier: Apache-2.0
"""What RedKnot does at SGLang's functions: a folder of hooks for each version of SGLang, one file per area of SGLang.

Hooks call rooms on all floors, so this room stands above them; how they are put in place is in `seams/`. A hook
without `--redknot` passes straight through to SGLang.
"""

from __future__ import annotations

from importlib import import_module

from redknot_sglang.seams import Seam
from redknot_sglang.versions import version_folder


def all_seams() -> tuple[Seam, ...]:
    """Every seam for the installed SGLang, in the order in which a start-up reaches them."""
    seams: tuple[Seam, ...] = import_module(f"redknot_sglang.hooks.{version_folder()}").SEAMS
    return seams


def fill() -> None:
    """Fill what an SGLang has for plugins besides functions to hook, where its folder has a `fill`."""
    folder = import_module(f"redknot_sglang.hooks.{version_folder()}")
    if hasattr(folder, "fill"):
        folder.fill()
