# SPDX-License-Identifier: Apache-2.0
"""Loads what commands need of the repository's `eval/`, tasks and the demo, by its path.

`eval/` imports the package, but a wheel does not carry it, so the package never imports it by name.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol, cast

import redknot_sglang
from redknot_sglang.errors import CliError


class Demo(Protocol):
    """The part of `eval/demo/run.py` that `redknot demo` uses."""

    Settings: Any

    def run_demo(self, settings: Any, out: Path) -> str:
        """Run the demo, write its files in the folder `out`, and return its table as text."""


def find_checkout() -> Path:
    """Root of the repository that this package runs from. Raises CliError if it was installed from a wheel."""
    root = Path(redknot_sglang.__file__).resolve().parent.parent
    if not (root / "eval" / "tasks" / "__init__.py").is_file():
        raise CliError(
            "this needs eval/ of the redknot-sglang repository, which a wheel does not carry; "
            "clone the repository and run `make install` there, or name a task package with --task-dir"
        )
    return root


def import_package(directory: Path) -> ModuleType:
    """Import a Python package from its folder, under its full dotted name, so that its own imports work.

    directory: the package's folder. Its name begins at the outermost parent that is a package, too; the folder of that one
        goes on `sys.path`.
    Raises CliError if there is no package, or another one of the same name is found first.
    """
    directory = directory.resolve()
    if not (directory / "__init__.py").is_file():
        raise CliError(f"{directory} is no Python package: it has no __init__.py; name the folder that has it")
    root = directory
    while (root / "__init__.py").is_file():
        root = root.parent
    if str(root) not in sys.path:
        sys.path.insert(0, str(root))
    name = ".".join(directory.relative_to(root).parts)
    try:
        module = importlib.import_module(name)
    except ImportError as error:
        raise CliError(f"{directory} cannot be imported: {error}; install what it needs") from error
    found = Path(module.__file__ or "").resolve().parent
    if found != directory:
        raise CliError(f"importing {name} gave {found}, not {directory}; rename or uninstall the former")
    return module


def load_demo() -> Demo:
    """The demo of the repository. Imports SGLang's frontend language. Raises CliError if there is no repository."""
    package = import_package(find_checkout() / "eval" / "demo")
    return cast(Demo, importlib.import_module(package.__name__ + ".run"))
