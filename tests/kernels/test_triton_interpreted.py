# SPDX-License-Identifier: Apache-2.0
"""Runs the files interpreted_*.py in a process of their own: the interpreter has to be chosen before Triton is imported."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import pytest

FOLDER = Path(__file__).parent
NAMES = sorted(path.name for path in FOLDER.glob("interpreted_*.py") if path.name != "interpreter_rounding.py")


@dataclass(frozen=True)
class Ran:
    """What the process printed, and how many cases of each file passed and did not."""

    said: str
    passed: Counter[str]
    failed: Counter[str]


@pytest.fixture(scope="module")
def ran(full: bool, tmp_path_factory: pytest.TempPathFactory) -> Ran:
    """One process for all files, since imports take longer than most of them."""
    report = tmp_path_factory.mktemp("interpreted") / "report.xml"
    size = ["--full"] if full else []
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={report}", *size]
    done = subprocess.run(
        [*command, "-o", "junit_family=xunit1", *(str(FOLDER / name) for name in NAMES)],
        env={**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        cwd=FOLDER.parents[1],
        capture_output=True,
        text=True,
        timeout=2400 if full else 900,
    )
    said = done.stdout + done.stderr
    # Anything else than cases that pass and cases that fail: a file that cannot be imported, for example.
    assert done.returncode in (0, 1), said
    found = Ran(said, Counter(), Counter())
    for case in ElementTree.parse(report).iter("testcase"):
        wrong = any(case.find(kind) is not None for kind in ("failure", "error", "skipped"))
        (found.failed if wrong else found.passed)[Path(case.attrib["file"]).name] += 1
    assert (done.returncode == 0) == (not found.failed), said
    return found


@pytest.mark.parametrize("name", NAMES)
def test_through_the_interpreter(name: str, ran: Ran) -> None:
    assert not ran.failed[name], ran.said
    assert ran.passed[name], ran.said
