# SPDX-License-Identifier: Apache-2.0
"""SGLang read from its files, without importing it: where a name is defined, also one that a module imports or a class inherits.

An import would need all that the SGLang in question needs, beside all that the installed one needs.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from redknot_sglang.errors import SeamError

_VERSION = "__version__"
_DEFINED = re.compile(r"^ *(?:class|(?:async )?def) (\w+)", re.MULTILINE)
_BLOCKS = (ast.If, ast.Try, ast.With)


@dataclass(frozen=True)
class Definition:
    """One definition in SGLang's files.

    module: where it stands, below `sglang.srt`.
    node: a function, a class, or an assignment.
    made_anew: whether the module makes the class once more when it is imported, and may give it more than stands in `node`.
    """

    module: str
    node: ast.stmt
    made_anew: bool = False


class Source:
    """One SGLang, as files.

    path: a virtual environment, a folder of packages, an unpacked wheel or a checkout.
    Raises SeamError if there is no SGLang in it.
    """

    def __init__(self, path: Path) -> None:
        # The last two are those of a virtual environment and of a checkout.
        for pattern in ("srt", "sglang/srt", "python/sglang/srt", "lib/python3*/site-packages/sglang/srt"):
            for found in sorted(path.glob(pattern)):
                if (found / "server_args.py").is_file():
                    self.root = found
                    self._trees: dict[str, ast.Module | None] = {}
                    return
        raise SeamError(
            f"there is no SGLang in {path}; name a virtual environment, a folder that a wheel was unpacked to, or a checkout"
        )

    @cached_property
    def version(self) -> str | None:
        """What its files say, None for a checkout, which does not say it."""
        package = self.root.parent
        installed = [path.name.split("-")[1] for path in package.parent.glob("sglang-*.dist-info")]
        if len(installed) == 1:
            return installed[0].removesuffix(".dist")
        path = package / "_version.py"
        for node in ast.walk(ast.parse(path.read_text())) if path.is_file() else ():
            if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant) and _names(node, _VERSION):
                return str(node.value.value)
        return None

    def tree(self, module: str) -> ast.Module | None:
        """The file of a module below `sglang.srt`; None if there is no such module."""
        if module not in self._trees:
            path = self.root.joinpath(*module.split(".")) if module else self.root
            files = [file for file in (path.with_suffix(".py"), path / "__init__.py") if file.is_file()]
            self._trees[module] = ast.parse(files[0].read_text(encoding="utf-8")) if files else None
        return self._trees[module]

    def define(self, module: str, name: str) -> Definition | None:
        """What a name of a module is, wherever that is defined; with dots what belongs to a class. None if it is not there."""
        first, *rest = name.split(".")
        found = self._top(module, first, frozenset())
        for part in rest:
            found = None if found is None else self.member(found, part)
        return found

    def member(self, owner: Definition, name: str) -> Definition | None:
        """What a class, or the class of an object that a module makes, has under a name, inherited or not."""
        whole = self.class_of(owner)
        for base in [] if whole is None else self.bases(whole):
            assert isinstance(base.node, ast.ClassDef)
            found = [node for node in _statements(base.node.body) if _names(node, name)]
            if found:
                return Definition(base.module, found[-1])
        return None

    def class_of(self, found: Definition) -> Definition | None:
        """A class itself; of `object = Class()` that class; None for all else."""
        if isinstance(found.node, ast.ClassDef):
            return found
        value = found.node.value if isinstance(found.node, ast.Assign | ast.AnnAssign) else None
        called = value.func if isinstance(value, ast.Call) else None
        made = self.define(found.module, called.id) if isinstance(called, ast.Name) else None
        return made if made is not None and isinstance(made.node, ast.ClassDef) else None

    def bases(self, whole: Definition) -> Iterator[Definition]:
        """A class and all of SGLang's that it derives from, itself first."""
        assert isinstance(whole.node, ast.ClassDef)
        yield whole
        for base in whole.node.bases:
            name = base.value if isinstance(base, ast.Subscript) else base
            found = self.define(whole.module, ast.unparse(name)) if isinstance(name, ast.Name | ast.Attribute) else None
            if found is not None and isinstance(found.node, ast.ClassDef):
                yield from self.bases(found)

    @cached_property
    def holders(self) -> Mapping[str, Sequence[str]]:
        """Modules by the classes and functions that they define, at any depth: where one may have gone."""
        found: dict[str, list[str]] = {}
        for path in sorted(self.root.rglob("*.py")):
            parts = path.relative_to(self.root).with_suffix("").parts
            module = ".".join(parts).removesuffix(".__init__")
            # Parsing all files would take minutes.
            for name in dict.fromkeys(_DEFINED.findall(path.read_text(encoding="utf-8"))):
                found.setdefault(name, []).append(module)
        return found

    def _top(self, module: str, name: str, seen: frozenset[str]) -> Definition | None:
        """A name of a module. seen: modules that have been asked already, for imports go in circles."""
        tree = self.tree(module)
        if tree is None or module in seen:
            return None
        found = None
        for node in _statements(tree.body):
            if _names(node, name):
                found = (
                    replace(found, made_anew=True) if found and _makes_anew(node, found) else Definition(module, node)
                )
            elif isinstance(node, ast.ImportFrom):
                for alias in node.names:
                    if name == (alias.asname or alias.name) or alias.name == "*":
                        wanted = name if alias.name == "*" else alias.name
                        found = self._top(self._from(module, node), wanted, seen | {module}) or found
        return found

    def _from(self, module: str, node: ast.ImportFrom) -> str:
        """The module below `sglang.srt` that an import names; one that is not there if it is not SGLang's."""
        if not node.level:
            return (node.module or "").removeprefix("sglang.srt.")
        package = (
            module.split(".")
            if self.root.joinpath(*module.split("."), "__init__.py").is_file()
            else module.split(".")[:-1]
        )
        above = package[: len(package) - node.level + 1]
        return ".".join([*above, *([node.module] if node.module else [])])


def _makes_anew(node: ast.stmt, before: Definition) -> bool:
    """Whether a statement makes a class out of itself, and so leaves it all that it has."""
    if not isinstance(node, ast.Assign) or not isinstance(before.node, ast.ClassDef):
        return False
    return any(isinstance(part, ast.Name) and part.id == before.node.name for part in ast.walk(node.value))


def _statements(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """Statements of a block and of those in it that hold for it: of `if`, `try` and `with`."""
    for node in body:
        yield node
        if isinstance(node, _BLOCKS):
            for part in ("body", "handlers", "orelse", "finalbody"):
                for inner in getattr(node, part, []):
                    yield from _statements(inner.body if isinstance(inner, ast.ExceptHandler) else [inner])


def _names(node: ast.AST, name: str) -> bool:
    """Whether a statement defines a name."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return node.name == name
    if isinstance(node, ast.AnnAssign):
        return isinstance(node.target, ast.Name) and node.target.id == name
    if isinstance(node, ast.Assign):
        parts = (part for target in node.targets for part in ast.walk(target) if isinstance(part, ast.Name))
        # In `whole.part = 1` the name `whole` is only read.
        return any(part.id == name and isinstance(part.ctx, ast.Store) for part in parts)
    return False
