# SPDX-License-Identifier: Apache-2.0
"""The surface: all that we use of SGLang by name, held against what is installed.

The tables of a version are in its folder. `SURFACE`: modules below `sglang.srt`, in each the names that we use (with dots
for what belongs to a class), and for what is called or hooked the names of its parameters. A parameter with `=` has a
default. `FIELDS`: the same modules, in each classes with the fields that we read or write on their objects.
"""

from __future__ import annotations

import dis
import inspect
import pkgutil
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import cache
from importlib import import_module
from pathlib import Path
from types import CodeType
from typing import Any, TypeVar

from redknot_sglang.versions import version_folder

# By module, then by name. None: not called by us, so that it need only be there.
Surface = Mapping[str, Mapping[str, str | None]]
# By module, then by class: names, with blanks between them.
Fields = Mapping[str, Mapping[str, str]]
Row = TypeVar("Row", str, str | None)
_KINDS: Mapping[object, str] = {inspect.Parameter.VAR_POSITIONAL: "*", inspect.Parameter.VAR_KEYWORD: "**"}


def changed(
    before: Mapping[str, Mapping[str, Row]],
    rows: Mapping[str, Mapping[str, Row]],
    gone: Collection[tuple[str, str]] = (),
) -> dict[str, dict[str, Row]]:
    """The table of a version, by what is different from the table of the version before.

    before: that table.
    rows: rows that are new or have changed.
    gone: module and name of rows that are no longer there. Raises KeyError if the table before has not got one of them.
    """
    table = {module: dict(names) for module, names in before.items()}
    for module, name in gone:
        del table[module][name]
    for module, names in rows.items():
        table.setdefault(module, {}).update(names)
    return {module: names for module, names in table.items() if names}


def surface(folder: str | None = None) -> Surface:
    """The table for the installed SGLang. folder: that of another version, as `versions.folder_of` names it."""
    table: Surface = import_module(f"redknot_sglang.seams.{folder or version_folder()}.surface").SURFACE
    return table


def fields(folder: str | None = None) -> Fields:
    """The other table, of the same."""
    table: Fields = import_module(f"redknot_sglang.seams.{folder or version_folder()}.fields").FIELDS
    return table


def find(name: str) -> Any:
    """What SGLang calls `name`. Raises AttributeError if the table does not have it, or SGLang does not."""
    stand_in = _adapted().get(name)
    if stand_in is not None:
        return getattr(import_module(stand_in), name)
    module = _modules().get(name)
    if module is None:
        # Python itself asks for `__path__` at every import of a name, requests included, so no file may be read here.
        raise AttributeError(f"{name} is not in surface.py, the table in seams/ of what we use of the installed SGLang")
    return getattr(import_module(f"sglang.srt.{module}"), name)


@cache
def _modules() -> Mapping[str, str]:
    """The module of each name without a dot."""
    return {name: module for module, names in surface().items() for name in names if "." not in name}


@cache
def _adapted() -> Mapping[str, str]:
    """Modules of the installed version's folder by the names that stand in for SGLang's there (`adapted/`, where it has one)."""
    folder = f"redknot_sglang.seams.{version_folder()}"
    if not (Path(__file__).parent / version_folder() / "adapted").is_dir():
        return {}
    names: Mapping[str, str] = import_module(f"{folder}.adapted").NAMES
    return {name: f"{folder}.adapted.{module}" for name, module in names.items()}


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
    from msgspec import NODEFAULT

    # Those of the last fields; required ones that are given by name only stand among them.
    defaults = struct.__struct_defaults__
    has = [False] * (len(fields) - len(defaults)) + [default is not NODEFAULT for default in defaults]
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


def missing_fields(table: Fields) -> Iterator[str]:
    """As `differences`, of classes whose objects do not have a field.

    Only of modules that this process has imported: SGLang imports some, such as the model runner, in its schedulers alone.
    """
    for module, classes in table.items():
        if f"sglang.srt.{module}" not in sys.modules:
            continue
        for name, expected in classes.items():
            try:
                found = pkgutil.resolve_name(f"sglang.srt.{module}:{name}")
            except AttributeError:
                yield f"{module}.{name} is missing"
                continue
            yield from (
                f"{module}.{name} has no field {field}" for field in expected.split() if not has_field(found, field)
            )


def has_field(whole: type, name: str) -> bool:
    """Whether objects of a class have a field: one that the class declares, or one that a function of it sets."""
    if hasattr(whole, name) or any(name in vars(base).get("__annotations__", ()) for base in whole.__mro__):
        return True
    # Reading a function's steps takes long, so only those are read that know the name at all.
    return any(name in code.co_names and name in _set_by(code) for code in _functions(whole))


@cache
def _functions(whole: type) -> tuple[CodeType, ...]:
    found = (function for base in whole.__mro__ for function in vars(base).values() if callable(function))
    codes = (getattr(inspect.unwrap(function), "__code__", None) for function in found)
    return tuple(code for code in codes if code is not None)


@cache
def _set_by(code: CodeType) -> frozenset[str]:
    return frozenset(step.argval for step in dis.get_instructions(code) if step.opname == "STORE_ATTR")
