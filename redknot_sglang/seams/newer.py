# SPDX-License-Identifier: Apache-2.0
"""What another SGLang than the installed one lacks of what we use, found in its files: what would break with it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from redknot_sglang.seams.signatures import has_field_in, parameters_in
from redknot_sglang.seams.source import Source
from redknot_sglang.seams.surface import Fields, Surface, fits


@dataclass(frozen=True)
class Loss:
    """One name that is not as we use it.

    kind: `gone`; `changed`, of a function that takes something else; `unread`, where its files do not say, since it is made when
        SGLang is imported.
    name: of the module below `sglang.srt` and what lies in it.
    said: what there is instead, in words, "" if nothing is known.
    """

    kind: Literal["gone", "changed", "unread"]
    name: str
    said: str = ""

    def __str__(self) -> str:
        return f"{self.kind:8}{self.name}{self.said and ': ' + self.said}"


def losses(source: Source, surface: Surface, fields: Fields) -> Iterator[Loss]:
    """What an SGLang does not have as two tables say it, one for each name, in the tables' order.

    source: its files. surface, fields: the tables of a version (`surface.py`).
    """
    for module, names in surface.items():
        for name, expected in names.items():
            yield from _loss(source, module, name, expected)
    for module, classes in fields.items():
        for name, row in classes.items():
            whole = source.define(module, name)
            if whole is None:
                if name not in surface.get(module, {}):
                    yield _gone(source, module, name)
                continue
            for field in row.split():
                there = has_field_in(source, whole, field)
                if not there:
                    yield Loss("unread" if there is None else "gone", f"{module}.{name}.{field}", "a field")


def _loss(source: Source, module: str, name: str, expected: str | None) -> Iterator[Loss]:
    found = parameters_in(source, module, name) if expected is not None else None
    if found is not None and expected is not None:
        if not fits(found, expected):
            yield Loss("changed", f"{module}.{name}", f"takes ({', '.join(found)}), not {expected}")
        return
    owner = name.removesuffix(".__init__")
    if source.define(module, name) is None and (owner == name or source.define(module, owner) is None):
        yield _gone(source, module, name)
    elif expected is not None:
        yield Loss("unread", f"{module}.{name}", "its parameters are not in its files")


def _gone(source: Source, module: str, name: str) -> Loss:
    """The class or function itself may have moved, with all that it has."""
    whole = name.split(".")[0]
    moved = [] if source.define(module, whole) else source.holders.get(whole, [])
    return Loss("gone", f"{module}.{name}", f"{whole} is in {', '.join(moved)}" if moved else "")
