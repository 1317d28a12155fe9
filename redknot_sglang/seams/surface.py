# SPDX-License-Identifier: Apache-2.0
"""The surface: all that we use of SGLang by name, held against what is installed.

The table of a version is `SURFACE` in its folder: modules below `sglang.srt`, in each the names that we use (with dots for
what belongs to a class), and for what is called or hooked the names of its parameters. A parameter with `=` has a default.
"""

from __future__ import annotations

import inspect
import pkgutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from importlib import import_module
from typing import Any

from redknot_sglang.versions import version_folder

# By module, then by name. None: not called by us, so that it need only be there.
Surface = Mapping[str, Mapping[str, str | None]]
_KINDS: Mapping[object, str] = {inspect.Parameter.VAR_POSITIONAL: "*", inspect.Parameter.VAR_KEYWORD: "**"}


def surface() -> Surface:
    """The table for the installed SGLang."""
    table: Surface = import_module(f"redknot_sglang.seams.{version_folder()}.surface").SURFACE
    return table


def find(name: str) -> Any:
    """What SGLang calls `name`. Raises AttributeError if the table does not have it, or SGLang does not."""
    module = _modules().get(name)
    if module is None:
        raise AttributeError(
            f"{name} is not in seams/{version_folder()}/surface.py, the table of what we use of SGLang"
        )
    return getattr(import_module(f"sglang.srt.{module}"), name)


@cache
def _modules() -> Mapping[str, str]:
    """The module of each name without a dot."""
    return {name: module for module, names in surface().items() for name in names if "." not in name}


def parameters(function: Callable[..., Any]) -> list[str]:
    """Those of a function, or of a class's constructor, as the table writes them: `self`, `chunked=`, `*`, `size`, `**kwargs`."""
    fields = getattr(function, "__struct_fields__", None)
    if fields is not None:
        return _fields(function, fields)
    found, only_by_name = list[str](), False
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY and not only_by_name:
            found.append("*")
        only_by_name = parameter.kind in (inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.VAR_POSITIONAL)
        default = "" if parameter.default is inspect.Parameter.empty else "="
        found.append(f"{_KINDS.get(parameter.kind, '')}{parameter.name}{default}")
    return found


def _fields(struct: Any, fields: tuple[str, ...]) -> list[str]:
    """Those of a msgspec structure, whose signature cannot be asked for where its annotations are for type checkers only."""
    defaults = struct.__struct_defaults__
    required = len(fields) - len(defaults)
    has = [False] * required + [type(default).__name__ != "NoDefault" for default in defaults]
    return [name + "=" * given for name, given in zip(fields, has, strict=True)]


def fits(found: Sequence[str], expected: str) -> bool:
    """Whether these parameters are the expected ones. With `...` at the end others may stand between them, with defaults."""
    names = expected.strip("()").split(", ") if expected != "()" else []
    if names[-1:] != ["..."]:
        return list(found) == names
    known, rest = iter(found), [name for name in found if name not in names]
    return all(name in known for name in names[:-1]) and all(name == "*" or name.endswith("=") for name in rest)


def differences(table: Surface) -> Iterator[str]:
    """What the installed SGLang does not have as the table says, one sentence for each; imports all modules of the table."""
    for module, names in table.items():
        try:
            import_module(f"sglang.srt.{module}")
        except ImportError as error:
            yield f"{module} cannot be imported ({error})"
            continue
        for name, expected in names.items():
            try:
                found = pkgutil.resolve_name(f"sglang.srt.{module}:{name}")
            except AttributeError:
                yield f"{module}.{name} is missing"
                continue
            if expected is not None and not fits(taken := parameters(found), expected):
                yield f"{module}.{name} takes ({', '.join(taken)}), not {expected}"
