# SPDX-License-Identifier: Apache-2.0
"""What a result file says of its origin: options, hardware, versions; nothing that names a machine or its folders."""

from __future__ import annotations

import argparse
import os
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

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
    options = {name: value.name if isinstance(value, Path) else value for name, value in vars(args).items()}
    return {"options": options, "hardware": hardware, "versions": {name: _version(name) for name in PACKAGES}}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed as a package"
