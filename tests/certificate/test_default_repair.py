# SPDX-License-Identifier: Apache-2.0
"""The repair policy of requests that name none is one that was measured, or there is none."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from redknot_sglang.certificate.default_repair import default_repair
from redknot_sglang.heads import load_head_map
from tests.certificate.made import certified_map
from tests.serving.harness import HEAD_MAP

ASKED = replace(load_head_map(HEAD_MAP), retrieval=((0, 0),))


@pytest.mark.parametrize(
    ("policies", "lead", "expected"),
    [
        ({"exact": "pass", "boundary:16": "pass", "blend:0.08": "pass"}, False, "boundary:16"),
        ({"exact": "pass", "boundary:16": "fail", "blend:0.08": "pass"}, False, "blend:0.08"),
        ({"exact": "pass", "blend:0.08+lead": "pass", "none": "pass"}, True, "blend:0.08"),
        ({"exact": "pass", "blend:0.08+lead": "pass"}, False, "question:2"),
        ({"exact": "pass", "blend:0.08": "fail"}, False, "question:2"),
    ],
)
def test_it_is_the_first_that_passed(policies: dict[str, str], lead: bool, expected: str, tmp_path: Path) -> None:
    assert default_repair(ASKED, certified_map(tmp_path, policies=policies), lead) == expected


def test_without_a_certificate_retrieval_heads_decide(tmp_path: Path) -> None:
    path = tmp_path / "map.json"
    assert default_repair(ASKED, path, False) == "question:2"
    assert default_repair(replace(ASKED, retrieval=()), path, False) is None
    path.with_name("map.certificate.json").write_text("{}")
    assert default_repair(replace(ASKED, retrieval=()), path, False) is None
