# SPDX-License-Identifier: Apache-2.0
"""The source distribution and the wheel of this checkout, built through the interface that `python -m build` and pip use."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def copy_tracked(target: Path) -> Path:
    """Copy what git tracks, as it lies in the working tree, into the folder `target`, which it returns. Results are left out."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout
    for name in listed.decode().split("\0"):
        if name and not name.startswith("eval/results/") and (ROOT / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target / name)
    return target


def build(kind: str, source: Path, out: Path) -> Path:
    """Build an `sdist` or a `wheel` of the folder `source` into the folder `out`. Returns the file."""
    out.mkdir(parents=True, exist_ok=True)
    code = f"import sys; from setuptools import build_meta; print(build_meta.build_{kind}(sys.argv[1]))"
    made = subprocess.run([sys.executable, "-c", code, str(out)], cwd=source, capture_output=True, text=True)
    assert made.returncode == 0, made.stderr
    return out / made.stdout.splitlines()[-1]


def unpacked(sdist: Path, target: Path) -> Path:
    """Unpack a source distribution into the folder `target`. Returns the one folder that it holds."""
    with tarfile.open(sdist) as archive:
        archive.extractall(target, filter="data")
    (folder,) = target.iterdir()
    return folder
