# SPDX-License-Identifier: Apache-2.0
"""What a work file knows again, and what it does not."""

from __future__ import annotations

from pathlib import Path

from redknot_sglang.work_file import WorkFile


def test_other_inputs_are_measured_anew(tmp_path: Path) -> None:
    file = tmp_path / "work"
    assert WorkFile(file, "weights A").once("x", lambda: 1) == 1
    assert WorkFile(file, "weights B").once("x", lambda: 2) == 2
    assert WorkFile(file, "weights A").once("y", lambda: 3) == 3
    assert WorkFile(file, "weights A").once("x", lambda: 4) == 1


def test_a_line_that_a_kill_cut_short_is_measured_again_and_spoils_no_other(tmp_path: Path) -> None:
    file = tmp_path / "work"
    assert WorkFile(file, 0).once("x", lambda: [1.5, {"a": None}]) == [1.5, {"a": None}]
    whole = file.read_text()
    file.write_text(whole + whole[:20])
    again = WorkFile(file, 0)
    assert again.once("x", lambda: 2) == [1.5, {"a": None}] and again.measured == 0
    assert again.once("y", lambda: 3) == 3
    assert WorkFile(file, 0).known("y") == 3
