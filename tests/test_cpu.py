# SPDX-License-Identifier: Apache-2.0
"""The import-only stand-in for sgl_kernel."""

from __future__ import annotations

import subprocess
import sys

from redknot_sglang.cpu import STAND_IN


def run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": STAND_IN}, capture_output=True, text=True)


def test_everything_imports() -> None:
    done = run(
        "import sgl_kernel; from sgl_kernel.flash_attn import anything; from sgl_kernel import x; sgl_kernel.y.z"
    )
    assert done.returncode == 0, done.stderr


def test_calling_a_kernel_says_what_is_missing() -> None:
    done = run("import sgl_kernel; sgl_kernel.rmsnorm(1)")
    assert done.returncode != 0
    assert "sgl_kernel.rmsnorm needs a CUDA GPU" in done.stderr
