# SPDX-License-Identifier: Apache-2.0
"""The table of what we use of SGLang is what the code uses, and what the installed SGLang has."""

from __future__ import annotations

import inspect
import pkgutil
import re
from collections.abc import Callable
from importlib import import_module
from typing import Any

import msgspec
import pytest

from redknot_sglang import seams
from redknot_sglang.errors import SeamError
from redknot_sglang.seams import sglang
from redknot_sglang.seams.surface import (
    Fields,
    Surface,
    differences,
    fields,
    fits,
    has_field,
    missing_fields,
    parameters,
    surface,
)
from redknot_sglang.versions import sglang_version, version_folder
from tests.seams import usage
from tests.versions import IS_ADAPTED

ROOT = usage.PACKAGE.parent
TABLE = {(module, name): takes for module, names in surface().items() for name, takes in names.items()}


@pytest.fixture(autouse=True)
def without_stand_ins(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests before these may have put earlier names on SGLang's classes, which are not SGLang's."""
    if IS_ADAPTED:
        for whole, name in import_module("redknot_sglang.seams.v0_5_23.adapted.requests")._ours:
            monkeypatch.delattr(whole, name)


def test_the_table_has_all_that_is_used_and_nothing_else() -> None:
    used = usage.uses()
    missing, idle = sorted(set(used) - set(TABLE)), sorted(set(TABLE) - set(used))
    assert not missing, f"used, but not in {version_folder()}/surface.py: {missing}"
    assert not idle, f"in {version_folder()}/surface.py, but not used: {idle}"


def test_the_table_says_what_is_taken_by_all_that_is_called_or_hooked() -> None:
    for (module, name), keywords in usage.uses().items():
        takes = TABLE[module, name]
        if keywords is None:
            assert takes is None, f"{module}.{name} is not called: its row says nothing of parameters"
            continue
        if takes is None:
            # What wraps them takes anything, on a GPU without a signature.
            found = parameters(pkgutil.resolve_name(f"sglang.srt.{module}:{name}"))
            assert found == ["*args", "**kwargs"], f"{module}.{name} is called: its row must say ({', '.join(found)})"
        else:
            assert keywords <= usage.names_of(takes), f"{module}.{name} is called with {keywords}, its row says {takes}"


def test_classes_that_derive_from_sglang_s_are_all_looked_at() -> None:
    assert usage.deriving() <= set(usage.DERIVING)


def test_the_table_of_fields_is_what_is_read_and_written_on_objects() -> None:
    found = {(module, name): set(row.split()) for module, classes in fields().items() for name, row in classes.items()}
    assert found == usage.fields_used()


def test_the_installed_sglang_has_it() -> None:
    for module in fields():
        import_module(f"sglang.srt.{module}")
    assert seams.differing() == []


def test_only_the_names_and_stand_ins_of_a_version_import_sglang() -> None:
    found = {path for path, _, _ in usage.sglang_imports()}
    assert set(usage.NAMES) <= found <= {*usage.NAMES, *usage.ITSELF}


def test_only_the_border_knows_where_something_lies() -> None:
    room = usage.PACKAGE / "seams"
    paths = [path for path in usage.PACKAGE.rglob("*.py") if room not in path.parents]
    assert [str(path) for path in paths if "sglang.srt" in path.read_text()] == []


def test_names_are_asked_for_and_those_asked_for_are_there() -> None:
    for file in usage.NAMES:
        known = [name for path, _, name in usage.sglang_imports() if path == file]
        assert len(known) == len(set(known)), "two names of SGLang's are the same: one of them needs another way"
    # What stands in for a name is asked for as the name is.
    assert {name for _, name in usage.asked()} - set(usage.ADAPTED) == set(usage.module_of()) - set(usage.ADAPTED)


def test_a_name_is_found_where_the_table_has_it() -> None:
    from sglang.srt.mem_cache.radix_cache import RadixKey

    assert sglang.RadixKey is RadixKey
    with pytest.raises(AttributeError, match="Wheel is not in surface.py"):
        sglang.Wheel  # type: ignore[attr-defined]  # noqa: B018


def test_an_import_while_serving_reads_no_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """Functions that serve requests import names late, and the installed version is a file of some 10 KB."""

    def taken() -> object:
        from redknot_sglang.seams.sglang import RadixKey

        return RadixKey

    first = taken()

    def read(name: str) -> str:
        raise AssertionError(f"the metadata of {name} were read")

    monkeypatch.setattr("redknot_sglang.versions.version", read)
    assert taken() is first


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (
            {"managers.wheels": {}},
            r"^managers.wheels cannot be imported \(No module named 'sglang.srt.managers.wheels'\)$",
        ),
        ({"environ": {"envs": None, "wheels": None}}, r"^environ.wheels is missing$"),
        (
            {"mem_cache.radix_cache": {"RadixKey.match_all": "()"}},
            r"^mem_cache.radix_cache.RadixKey.match_all is missing$",
        ),
        (
            {"mem_cache.radix_cache": {"RadixKey.match": "(self, other)"}},
            r"^mem_cache.radix_cache.RadixKey.match takes \(self, other, page_size=\), not \(self, other\)$",
        ),
    ],
)
def test_what_is_different_is_said(table: Surface, message: str) -> None:
    (found,) = differences(table)
    assert re.search(message, found)


@pytest.mark.parametrize(
    ("table", "messages"),
    [
        ({"managers.schedule_batch": {"ReqKvInfo": "kv_allocated_len"}}, []),
        (
            {"managers.schedule_batch": {"Req": "kv wheels output_ids axles finished"}},
            ["managers.schedule_batch.Req has no field wheels", "managers.schedule_batch.Req has no field axles"],
        ),
        (
            {"managers.schedule_batch": {"Wheel": "kv"}},
            ["managers.schedule_batch.Wheel is missing"],
        ),
    ],
)
def test_fields_that_objects_do_not_have_are_said(table: Fields, messages: list[str]) -> None:
    import_module("sglang.srt.managers.schedule_batch")
    assert list(missing_fields(table)) == messages


def test_fields_are_not_looked_at_in_a_process_that_does_without_the_module() -> None:
    assert list(missing_fields({"managers.wheels": {"Wheel": "axles"}})) == []


class _Base:
    declared: int

    def __init__(self) -> None:
        self.set_below = 1


class _Object(_Base):
    given = 2

    def later(self, other: Any) -> None:
        self.set_later = other.read_only


@pytest.mark.parametrize(
    ("name", "there"),
    [
        ("declared", True),
        ("set_below", True),
        ("given", True),
        ("set_later", True),
        ("later", True),
        ("read_only", False),
    ],
)
def test_fields_are_those_that_a_class_declares_or_its_functions_set(name: str, there: bool) -> None:
    assert has_field(_Object, name) is there


def test_a_start_ends_in_one_line_with_all_that_is_different(monkeypatch: pytest.MonkeyPatch) -> None:
    import_module("sglang.srt.managers.schedule_batch")
    monkeypatch.setattr(seams, "surface", lambda: {"environ": {"wheels": None}})
    monkeypatch.setattr(seams, "fields", lambda: {"managers.schedule_batch": {"Req": "axles"}})
    with pytest.raises(
        SeamError,
        match=rf"^SGLang {re.escape(sglang_version() or '')} is not as .*: environ.wheels is missing; managers.+ no field axles. ",
    ) as found:
        seams.verify()
    assert "\n" not in str(found.value)


def _plain(self: Any, req: Any, chunked: bool = False, *, size: int, room: int = 0, **kwargs: Any) -> None: ...


def _any(*args: Any, key: int) -> None: ...


def _nothing() -> None: ...


class _Made:
    def __init__(self, first: int, second: int = 2) -> None: ...


@pytest.mark.parametrize(
    ("function", "takes"),
    [
        (_plain, "(self, req, chunked=, *, size, room=, **kwargs)"),
        (_any, "(*args, key)"),
        (_nothing, "()"),
        (_Made, "(first, second=)"),
    ],
)
def test_parameters_are_written_as_in_the_table(function: Callable[..., Any], takes: str) -> None:
    assert f"({', '.join(parameters(function))})" == takes
    assert fits(parameters(function), takes) and not fits(parameters(function), takes[:-1] + ", more)")


def test_parameters_of_structures_are_known_without_their_annotations() -> None:
    kind = msgspec.defstruct(
        "Kind", [("first", int), ("second", "Wheel", 2), ("third", list, msgspec.field(default_factory=list))]
    )
    assert parameters(kind) == ["first", "second=", "third="]
    named = msgspec.defstruct("Named", [("first", int, 1), ("second", int)], kw_only=True)
    assert parameters(named) == ["first=", "second"]
    with pytest.raises(NameError):
        inspect.signature(kind)


@pytest.mark.parametrize(
    ("found", "expected", "fit"),
    [
        (["a", "b=", "c="], "(a, c=, ...)", True),
        (["a", "b", "c="], "(a, c=, ...)", False),
        (["a", "c="], "(a, c=, ...)", True),
        (["c=", "a="], "(a=, c=, ...)", False),
        (["a", "*", "b=", "c="], "(a, c=, ...)", True),
        (["a", "b="], "(a, c=, ...)", False),
        (["a", "c"], "(a, c=, ...)", False),
    ],
)
def test_others_may_stand_between_only_with_defaults(found: list[str], expected: str, fit: bool) -> None:
    assert fits(found, expected) is fit
