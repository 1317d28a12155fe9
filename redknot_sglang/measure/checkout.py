# SPDX-License-Identifier: Apache-2.0
"""The one place where the package reaches for the repository's `eval/`: by path, when a command needs tasks or the demo.

`eval/` imports the package, and the package never imports `eval`, which a wheel does not carry.
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
    """What `eval/demo/run.py` offers."""

    Settings: Any

    def run_demo(self, settings: Any, out: Path) -> str:
        """Run it, write its files in `out` and return its table."""


def find_checkout() -> Path:
    """Root of the repository this package is used from. Raises CliError if it was installed without one."""
    root = Path(redknot_sglang.__file__).resolve().parent.parent
    if not (root / "eval" / "tasks" / "__init__.py").is_file():
        raise CliError(
            "this needs eval/ of the redknot-sglang repository, which a wheel does not carry; "
            "clone the repository and run `make install` there, or name a task package with --task-dir"
        )
    return root


def import_package(directory: Path) -> ModuleType:
    """Import the package in `directory` under its full dotted name, so that its own imports work.

    The name starts at the outermost parent that is a package; that parent's directory goes on `sys.path`.
    Raises CliError if there is no package, or another one of the same name comes first.
    """
    directory = directory.resolve()
    if not (directory / "__init__.py").is_file():
        raise CliError(f"{directory} is no Python package: it has no __init__.py")
    root = directory
    while (root / "__init__.py").is_file():
        root = root.parent
    if str(root) not in sys.path:
        sys.path.insert(0, str(root))
    name = ".".join(directory.relative_to(root).parts)
    try:
        module = importlib.import_module(name)
    except ImportError as error:
        raise CliError(f"{directory} cannot be imported: {error}") from error
    found = Path(module.__file__ or "").resolve().parent
    if found != directory:
        raise CliError(f"importing {name} gave {found}, not {directory}; rename or uninstall the former")
    return module


def load_demo() -> Demo:
    """The demo of the checkout; imports SGLang's frontend language. Raises CliError if there is no checkout."""
    package = import_package(find_checkout() / "eval" / "demo")
    return cast(Demo, importlib.import_module(package.__name__ + ".run"))
