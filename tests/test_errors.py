# SPDX-License-Identifier: Apache-2.0
"""One base error, and one place where errors are found."""

from __future__ import annotations

import argparse
import ast
from pathlib import Path

import pytest

import redknot_sglang
from redknot_sglang import errors
from redknot_sglang.cli import doctor
from redknot_sglang.cli.main import main

PACKAGE = Path(redknot_sglang.__file__).parent
CLASSES = [value for value in vars(errors).values() if isinstance(value, type)]


def test_all_derive_from_one() -> None:
    assert len(CLASSES) > 5 and all(issubclass(found, errors.RedKnotError) for found in CLASSES)


def test_no_other_file_has_errors_of_its_own() -> None:
    elsewhere = [
        f"{path.relative_to(PACKAGE)}:{node.lineno} {node.name}"
        for path in PACKAGE.rglob("*.py")
        if path != PACKAGE / "errors.py"
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ClassDef) and node.name.endswith(("Error", "Exception", "Refused"))
    ]
    assert elsewhere == []


@pytest.mark.parametrize("kind", CLASSES)
def test_a_command_that_raises_one_prints_it_and_exits_with_2(
    kind: type[Exception], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(args: argparse.Namespace) -> int:
        raise kind("the cable is not plugged in")

    monkeypatch.setattr(doctor, "run", broken)
    assert main(["doctor"]) == 2
    assert capsys.readouterr().err == "redknot doctor: error: the cable is not plugged in\n"
