# SPDX-License-Identifier: Apache-2.0
"""Step `kernels`: the kernel benchmarks, each in a process of its own, into cells with their raw rows."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

from eval.gpu.results import Cell

MODULES = {
    "attention": "eval.bench_kernels",
    "scattered": "eval.bench_scattered",
    "relocation": "eval.gpu.relocation",
}


def measure(name: str, folder: Path, timeout: float, extra: list[str] | None = None) -> Cell:
    """Run a benchmark of `MODULES`; its time on the wall is the cell's value, its rows are in the details.

    What it prints goes to a log in `folder`. Raises RuntimeError with the last lines of the log if it fails, and
    subprocess.TimeoutExpired.
    """
    out, log = folder / f"kernels-{name}.json", folder / f"kernels-{name}.log"
    out.unlink(missing_ok=True)
    words = [sys.executable, "-m", MODULES[name], f"--json={out}", *(extra or [])]
    begin = time.monotonic()
    with log.open("wb") as output:
        code = subprocess.run(words, stdout=output, stderr=subprocess.STDOUT, timeout=timeout).returncode
    if not out.exists():
        last = "\n".join(log.read_text(errors="replace").splitlines()[-25:])
        raise RuntimeError(f"{MODULES[name]} ended with {code} and no result:\n{last}")
    found = json.loads(out.read_text())
    out.unlink()
    # bench_scattered ends with 1 after writing if a result is too far from the oracle: its rows say which.
    return Cell("kernels", name, "", 0, "s", [time.monotonic() - begin], {**found, "exit_code": code})
