# SPDX-License-Identifier: Apache-2.0
"""What the modules of kernels/ import: no SGLang, and each other without a circle, inside functions included."""

from __future__ import annotations

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import redknot_sglang

FOLDER = Path(redknot_sglang.__file__).parent / "kernels"


def imports_of(path: Path) -> set[str]:
    """Modules that a file imports anywhere in it; those of its own folder by their bare names."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            found.add(node.module.removeprefix("redknot_sglang.kernels."))
    return found


def test_no_module_imports_sglang() -> None:
    for path in FOLDER.glob("*.py"):
        assert not {name for name in imports_of(path) if name.split(".")[0] == "sglang"}, path.name


def test_modules_import_each_other_without_a_circle() -> None:
    files = {path.stem: path for path in FOLDER.glob("*.py")}
    graph = {name: imports_of(path) & set(files) for name, path in files.items()}
    # static_order raises CycleError, with the circle, if there is one.
    assert set(TopologicalSorter(graph).static_order()) == set(files)
    assert graph["select"] > {"extend_fa3", "decode_triton"}
