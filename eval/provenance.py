# SPDX-License-Identifier: Apache-2.0
"""What a result file says of its origin: options, hardware, versions, code; nothing that names a machine or its folders.

python -m eval.provenance        # prints the digest of this checkout's code, as results have it
"""

from __future__ import annotations

import argparse
import hashlib
import os
import subprocess
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("sglang", "redknot-sglang", "torch", "flashinfer-python", "triton")


def provenance(args: argparse.Namespace) -> dict[str, Any]:
    """Fields for the head of a result file of a GPU benchmark; of a path among the options the last part.

    Raises subprocess.CalledProcessError or FileNotFoundError if there is no NVIDIA driver.
    """
    words = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader"]
    hardware = subprocess.run(words, check=True, capture_output=True, text=True).stdout.strip()
    return _head(args, hardware)


def origin(args: argparse.Namespace) -> dict[str, Any]:
    """`provenance`, or what can be said without an NVIDIA driver."""
    try:
        return provenance(args)
    except FileNotFoundError:
        return _head(args, f"CPU, {os.cpu_count()} cores")


def _head(args: argparse.Namespace, hardware: str) -> dict[str, Any]:
    return {
        "options": {name: _bare(value) for name, value in vars(args).items()},
        "hardware": hardware,
        "versions": {name: _version(name) for name in PACKAGES},
        "code": {
            "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "commit": _commit(),
            "sources": sources(),
        },
    }


def _bare(value: Any) -> Any:
    """An option without the folders of paths, in lists as well."""
    if isinstance(value, list):
        return [_bare(one) for one in value]
    return value.name if isinstance(value, Path) else value


def sources(root: Path = ROOT) -> str:
    """SHA-256 of the Python files of the package and the benchmarks, by path: tells code apart where git is not."""
    digest = hashlib.sha256()
    for path in sorted(file for folder in ("redknot_sglang", "eval") for file in (root / folder).rglob("*.py")):
        digest.update(f"{path.relative_to(root).as_posix()} {hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return digest.hexdigest()


def _commit() -> str | None:
    """The commit that is checked out, with a plus if files differ from it; None outside of a checkout."""
    try:
        words = [["git", "rev-parse", "HEAD"], ["git", "status", "--porcelain", "--untracked-files=no"]]
        commit, changed = (
            subprocess.run(w, check=True, capture_output=True, text=True, cwd=ROOT).stdout for w in words
        )
    except (FileNotFoundError, subprocess.CalledProcessError):
        return None
    return commit.strip() + "+" * bool(changed)


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed as a package"


if __name__ == "__main__":
    print(sources())
