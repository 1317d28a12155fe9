# SPDX-License-Identifier: Apache-2.0
"""Repair policies: their names, how many rows they repair and which, and that nobody else need know of a new one."""

from __future__ import annotations

import argparse
import ast
import sys
from pathlib import Path

import pytest

import redknot_sglang
from redknot_sglang.errors import RedKnotError
from redknot_sglang.flags import add_cli_args
from redknot_sglang.plan import policies
from redknot_sglang.plan.policies import POLICIES, WITH_WINDOWS, WITHOUT_PROBES, largest, parse_repair

PACKAGE = Path(redknot_sglang.__file__).resolve().parent
# A row for each policy: name as users may write it, as it is kept, rows that are repaired of a segment of 100 rows, those
# of it that are known by position, and whether local heads keep all of it.
ROWS = [
    ("none", "none", 0, [], False),
    ("boundary:1", "boundary:1", 1, [0], False),
    ("boundary:064", "boundary:64", 64, list(range(64)), False),
    ("boundary:200", "boundary:200", 100, list(range(100)), False),
    ("blend:0.05", "blend:0.05", 5, [], True),
    ("blend:.5", "blend:0.5", 50, [], True),
    ("blend:1", "blend:1", 100, [], True),
    ("blend:0.00005", "blend:0.00005", 1, [], True),
    ("question:02", "question:2", 0, [], False),
]


@pytest.mark.parametrize(("text", "name", "count", "repaired", "whole"), ROWS)
def test_policies_by_name(text: str, name: str, count: int, repaired: list[int], whole: bool) -> None:
    policy = parse_repair(text)
    assert policy.name == name and parse_repair(name) == policy
    assert policy.count(100) == count and policy.count(1) == min(1, count)
    rows = [row for start, end in policy.repaired(7, 107) for row in range(start - 7, end - 7)]
    assert rows == repaired and policy.keeps_whole is whole
    assert policy.probes or len(rows) == count, "rows that no probe chooses are known by position"
    assert policy.keeps_whole or not policy.probes, "probes look at rows that have local slots"


def test_every_policy_has_a_row() -> None:
    assert {policy.kind for policy in POLICIES} == {text.partition(":")[0] for text, *_ in ROWS}


@pytest.mark.parametrize("text", ["", "x", "boundary", "blend", "question", "none:", "none:3", "None"])
@pytest.mark.parametrize("argument", ["", ":", ":0", ":-1", ":2.5", ":nan", ":1e-3", ":1048576", ":x"])
def test_unknown_policies_are_refused_with_those_there_are(text: str, argument: str) -> None:
    with pytest.raises(RedKnotError, match="is not known; use one of none, boundary:K") as refusal:
        parse_repair(text + argument)
    assert all(policy.pattern in str(refusal.value) and policy.meaning in str(refusal.value) for policy in POLICIES)


def test_help_lists_all_policies_and_messages_those_that_would_do() -> None:
    parser = argparse.ArgumentParser()
    add_cli_args(parser)
    text = " ".join(parser.format_help().split())
    assert all(policy.pattern in text and policy.meaning in text for policy in POLICIES)
    assert WITHOUT_PROBES == WITH_WINDOWS == "boundary:K or none"


def test_nobody_asks_for_a_policy_by_its_class() -> None:
    classes = {policy.__name__ for policy in POLICIES}
    modules = {policy.__module__ for policy in POLICIES}
    for path in PACKAGE.rglob("*.py"):
        if path.parent.name == "policies":
            continue
        names = {node.id for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Name)}
        imported = {node.module for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ImportFrom)}
        assert not names & classes and not imported & modules, path


NEW = """
from dataclasses import dataclass
from redknot_sglang.plan.policies.base import Policy


@dataclass(frozen=True)
class Everything(Policy):
    kind = pattern = name = "everything"
    meaning = "all rows"

    @classmethod
    def parse(cls, argument):
        return cls() if argument is None else None

    def count(self, rows):
        return rows

    def repaired(self, start, end):
        return [(start, end)]
"""


def test_a_file_in_the_folder_is_a_policy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "everything.py").write_text(NEW)
    monkeypatch.setattr(policies, "__path__", [*policies.__path__, str(tmp_path)])
    try:
        found = policies._found()
    finally:
        sys.modules.pop("redknot_sglang.plan.policies.everything", None)
    assert [policy.kind for policy in found] == ["none", "boundary", "everything", "blend", "question"], (
        "those that probe come behind those that do not, and those that select last"
    )
    monkeypatch.setattr(policies, "POLICIES", found)
    monkeypatch.setattr(policies, "_BY_KIND", {policy.kind: policy for policy in found})
    assert parse_repair("everything").repaired(2, 5) == [(2, 5)] and "everything (all rows)" in policies.listed()


def test_pools_are_sized_for_the_policy_that_keeps_most() -> None:
    assert largest(["none", "blend:0.05", "boundary:4"]) == "blend:0.05"
    assert largest(["question:2", "boundary:4"]) == "question:2"
    with pytest.raises(RedKnotError, match="'magic' is not known"):
        largest(["magic"])
