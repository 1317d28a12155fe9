# SPDX-License-Identifier: Apache-2.0
"""The tables and seams of all versions that we know, whichever is installed, and how one is made from the one before."""

from __future__ import annotations

import inspect
from importlib import import_module
from typing import Any

import pytest

from redknot_sglang.seams import Seam, changed_seams
from redknot_sglang.seams.surface import Surface, changed
from redknot_sglang.versions import SUPPORTED_SGLANG, folder_of
from tests.seams import usage

FOLDERS = [folder_of(version) for version in SUPPORTED_SGLANG]


def of(room: str, folder: str, module: str = "") -> Any:
    """What a version has in a room."""
    return import_module(f"redknot_sglang.{room}.{folder}{module and '.' + module}")


@pytest.mark.parametrize("folder", FOLDERS)
def test_what_is_hooked_is_in_the_version_s_table_with_its_parameters(folder: str) -> None:
    surface = of("seams", folder, "surface").SURFACE
    seams = of("hooks", folder).SEAMS
    assert len({seam.target for seam in seams}) == len(seams)
    for seam in seams:
        module, name = usage.split(seam.target)
        # SGLang wraps this one on a GPU, where its parameters cannot be asked for.
        wrapped = name == "breakable_unified_attention_with_output"
        assert name in surface[module] and (surface[module][name] is None) == wrapped, seam.target


@pytest.mark.parametrize("folder", FOLDERS)
def test_arguments_that_are_refused_are_in_the_version_s_table(folder: str) -> None:
    # One that SGLang has renamed would never be refused again.
    rows = of("seams", folder, "surface").SURFACE["server_args"]
    known = usage.names_of(rows.get("ServerArgs.__init__") or rows["ServerArgs"])
    hooks = {seam.target: seam.hook for seam in of("hooks", folder).SEAMS}
    refused = of("hooks", folder, "refusals").ARGUMENTS
    if "server_args.ServerArgs.__init__" in hooks:
        (held,) = (cell.cell_contents for cell in hooks["server_args.ServerArgs.__init__"].__closure__)
        assert held is refused
    assert {name for name, _, _ in refused} <= known
    assert len(refused) >= 21


@pytest.mark.parametrize("folder", FOLDERS)
def test_hooks_take_what_a_version_calls_their_functions_with(folder: str) -> None:
    surface = of("seams", folder, "surface").SURFACE
    for seam in of("hooks", folder).SEAMS:
        module, name = usage.split(seam.target)
        row = surface[module][name]
        if row is None:
            continue
        # Parameters without a default, in order, and those behind the star by name.
        parameters = [part for part in row.strip("()").split(", ") if part != "..." and not part.endswith("=")]
        plain, _, named = ",".join(parameters).partition("*")
        given = [part for part in plain.split(",") if part]
        before = [] if seam.kind == "before" else ["the result, or the function"]
        # The table has methods of a class without it.
        before += ["the class"] if name in ("ServerArgs.from_cli_args", "ForwardBatch.init_new") else []
        by_name = dict.fromkeys(part for part in named.split(",") if part.isidentifier() and named.startswith(","))
        try:
            inspect.signature(seam.hook).bind(*before, *given, **by_name)
        except TypeError as error:
            pytest.fail(f"{seam.target}{row}: {error}")


BEFORE: Surface = {"one": {"kept": "(a)", "other": None, "lost": None}, "two": {"lost": "()"}}


def test_a_table_is_made_by_what_is_different() -> None:
    rows: Surface = {"one": {"other": "(b)", "new": None}, "three": {"new": "()"}}
    table = changed(BEFORE, rows, gone=[("one", "lost"), ("two", "lost")])
    assert table == {"one": {"kept": "(a)", "other": "(b)", "new": None}, "three": {"new": "()"}}
    assert BEFORE["one"] == {"kept": "(a)", "other": None, "lost": None}, "the version before stays as it is"


@pytest.mark.parametrize("row", [("one", "never"), ("never", "lost")])
def test_a_row_that_was_not_there_cannot_go(row: tuple[str, str]) -> None:
    with pytest.raises(KeyError):
        changed(BEFORE, {}, gone=[row])


def seam(target: str, why: str) -> Seam:
    return Seam(target, print, "after", why)


def test_seams_are_made_by_what_is_different() -> None:
    before = [seam(target, "before") for target in ("a", "b", "c")]
    after = changed_seams(before, [seam("d", "new"), seam("b", "other")], gone=["a"])
    assert [(made.target, made.why) for made in after] == [("b", "other"), ("c", "before"), ("d", "new")]


def test_a_seam_that_was_not_there_cannot_go() -> None:
    with pytest.raises(ValueError, match="no seam for b to leave out"):
        changed_seams([seam("a", "before")], [], gone=["b"])
