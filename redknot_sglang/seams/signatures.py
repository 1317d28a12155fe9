# SPDX-License-Identifier: Apache-2.0
"""Parameters and fields, read from SGLang's files as `surface.py` reads them from what is imported."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from redknot_sglang.seams.source import Definition, Source

_Function = ast.FunctionDef | ast.AsyncFunctionDef
_CONSTRUCTOR = "__init__"
# What named tuples have besides their fields, as Python itself says.
_REPLACE = "_replace"


def parameters_in(source: Source, module: str, name: str) -> list[str] | None:
    """Those of a function, or of a class's constructor, written as `surface.parameters` does; None if files do not say.

    They do not of what is made when SGLang is imported, such as a class that a function puts together.
    """
    owner, _, last = name.rpartition(".")
    found = source.define(module, name)
    whole = source.define(module, owner) if owner else None
    if whole is not None and last == _REPLACE and found is None:
        return _of_replace(whole)
    if whole is not None and last == _CONSTRUCTOR and (found is None or not isinstance(found.node, _Function)):
        made = _made_of(source, whole)
        return None if made is None else ["self", *made]
    if found is None:
        return None
    if isinstance(found.node, ast.ClassDef):
        return _made_of(source, found)
    if not isinstance(found.node, _Function):
        return None
    bound = any(isinstance(mark, ast.Name) and mark.id == "classmethod" for mark in found.node.decorator_list)
    return _written(found.node)[1 if bound else 0 :]


def has_field_in(source: Source, whole: Definition, name: str) -> bool | None:
    """Whether objects of a class have a field: one that the class declares, or one that a function of it sets.

    None if files do not say, since the class gets more when it is made anew, or answers for names in a function of its own.
    """
    if source.member(whole, name) is not None:
        return True
    made = source.class_of(whole)
    found = made is not None and any(name in _set_in(base.node) for base in source.bases(made))
    says_all = not whole.made_anew and source.member(whole, "__getattr__") is None
    return found or (False if says_all else None)


def _of_replace(whole: Definition) -> list[str] | None:
    if not isinstance(whole.node, ast.ClassDef) or "NamedTuple" not in map(ast.unparse, whole.node.bases):
        return None
    return ["self", "**kwds"]


def _set_in(whole: ast.AST) -> Iterator[str]:
    for node in ast.walk(whole):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.attr
        elif isinstance(node, ast.Assign) and "__slots__" in map(ast.unparse, node.targets):
            yield from (str(part.value) for part in ast.walk(node.value) if isinstance(part, ast.Constant))


def _written(function: _Function) -> list[str]:
    """The parameters of a function as the surface writes them."""
    given, found = function.args, list[str]()
    plain = [*given.posonlyargs, *given.args]
    required = len(plain) - len(given.defaults)
    found += [part.arg + ("=" if index >= required else "") for index, part in enumerate(plain)]
    if given.vararg is not None:
        found.append("*" + given.vararg.arg)
    elif given.kwonlyargs:
        found.append("*")
    found += [
        part.arg + ("" if default is None else "=")
        for part, default in zip(given.kwonlyargs, given.kw_defaults, strict=True)
    ]
    if given.kwarg is not None:
        found.append("**" + given.kwarg.arg)
    return found


def _made_of(source: Source, whole: Definition) -> list[str] | None:
    """What a class's constructor takes, without `self`."""
    made = source.member(whole, _CONSTRUCTOR)
    if made is not None:
        return _written(made.node)[1:] if isinstance(made.node, _Function) else None
    kind = source.class_of(whole)
    if kind is None or kind.made_anew or not isinstance(kind.node, ast.ClassDef):
        return None
    # Fields by name, those of the lowest base first; a class that declares one again keeps its place.
    found = dict[str, tuple[str, bool]]()
    for base in reversed(list(source.bases(kind))):
        assert isinstance(base.node, ast.ClassDef)
        only_by_name = _is_by_name(base.node)
        for node in base.node.body:
            if not isinstance(node, ast.AnnAssign) or not isinstance(node.target, ast.Name):
                continue
            kind_of = ast.unparse(node.annotation)
            if kind_of.endswith("KW_ONLY"):
                only_by_name = True
            elif "ClassVar" not in kind_of and not _is_left_out(node.value):
                name = node.target.id
                given = "" if node.value is None or _has_no_default(node.value) else "="
                found[name] = name + given, only_by_name or _is_field_by_name(node.value)
    plain = [text for text, by_name in found.values() if not by_name]
    named = [text for text, by_name in found.values() if by_name]
    # Only dataclasses mark in their signature where names begin.
    is_struct = not any("dataclass" in ast.unparse(mark) for mark in kind.node.decorator_list)
    return [*plain, *([] if is_struct or not named else ["*"]), *named]


def _is_by_name(whole: ast.ClassDef) -> bool:
    calls = [mark for mark in whole.decorator_list if isinstance(mark, ast.Call)]
    given = [*whole.keywords, *(keyword for call in calls for keyword in call.keywords)]
    return any(_is_true(keyword, "kw_only") for keyword in given)


def _is_true(keyword: ast.keyword, name: str, value: bool = True) -> bool:
    return keyword.arg == name and isinstance(keyword.value, ast.Constant) and keyword.value.value is value


def _keywords(value: ast.expr | None) -> list[ast.keyword]:
    is_field = isinstance(value, ast.Call) and ast.unparse(value.func).split(".")[-1] == "field"
    return value.keywords if is_field and isinstance(value, ast.Call) else []


def _is_field_by_name(value: ast.expr | None) -> bool:
    return any(_is_true(keyword, "kw_only") for keyword in _keywords(value))


def _is_left_out(value: ast.expr | None) -> bool:
    return any(_is_true(keyword, "init", False) for keyword in _keywords(value))


def _has_no_default(value: ast.expr) -> bool:
    is_field = isinstance(value, ast.Call) and ast.unparse(value.func).split(".")[-1] == "field"
    return is_field and not any(keyword.arg in ("default", "default_factory") for keyword in _keywords(value))
