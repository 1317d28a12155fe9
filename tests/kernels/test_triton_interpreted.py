# SPDX-License-Identifier: Apache-2.0
"""Runs interpreted_triton.py in a process of its own: the interpreter has to be chosen before Triton is
imported.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize(
    "name",
    [
        "interpreted_triton.py",
        "interpreted_split.py",
        "interpreted_paths.py",
        "interpreted_relocate.py",
        "interpreted_heads.py",
        "interpreted_document_sums.py",
    ],
)
def test_through_the_interpreter(name: str, full: bool) -> None:
    cases = Path(__file__).with_name(name)
    root, size = cases.parents[2], ["--full"] if full else []
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *size, str(cases)],
        env={**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        cwd=root,
        capture_output=True,
        text=True,
        timeout=600 if size else 300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
