# SPDX-License-Identifier: Apache-2.0
"""A digest of a checkpoint's weights that takes seconds however large they are, since it reads blocks of every tensor only.

A server has to know at start whether its weights are the ones that were measured, and reading 140 GB to find out would
double the time to load them. So the digest is over each tensor's name, type, shape, and up to `MOST_BLOCKS` blocks of 4 KiB,
evenly spread, the first and the last one among them; smaller tensors are read as a whole. docs/certify.md says which
changes that notices. The order of tensors, and how they are cut into files, do not matter.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from redknot_sglang.errors import CertificateError

BLOCK = 4096
MOST_BLOCKS, FEWEST_BLOCKS = 64, 4
# Bytes that are read of a checkpoint at most, unless even `FEWEST_BLOCKS` of every tensor are more.
BUDGET = 256 << 20
READERS = 8
_CHUNK = 8 << 20
# A header describes thousands of tensors in a few MB.
_MAX_HEADER = 100 << 20
# In the order in which SGLang looks for them.
_OTHER_PATTERNS = ("*.bin", "*.pt", "*.gguf")
_NOT_WEIGHTS = frozenset(
    {"training_args.bin", "optimizer.bin", "optimizer.pt", "scheduler.pt", "scaler.pt", "rng_state.pt"}
)


class Region(NamedTuple):
    """A tensor, or a whole file of a format that we do not read.

    label: its name, type and shape, over which the digest is taken.
    file: where it is.
    start: its first byte.
    end: the byte behind its last one.
    """

    label: str
    file: Path
    start: int
    end: int


def weight_files(folder: Path) -> list[Path]:
    """The files that SGLang would load from a model's folder, by name. Raises CertificateError if there are none."""
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        try:
            named = sorted(set(json.loads(index.read_bytes())["weight_map"].values()))
        except (ValueError, KeyError, AttributeError, TypeError):
            raise CertificateError(f"{index} is not an index of safetensors files; download the model again") from None
        files = [folder / name for name in named]
        missing = [file.name for file in files if not file.is_file()]
        if missing:
            raise CertificateError(f"{folder} lacks {missing[0]}, which its index names; download the model again")
        return files
    files = sorted(folder.glob("*.safetensors"))
    if len(files) > 1 and (folder / "model.safetensors").is_file():
        files = [file for file in files if not file.name.startswith("consolidated")]
    for pattern in _OTHER_PATTERNS:
        files = files or sorted(file for file in folder.glob(pattern) if file.name not in _NOT_WEIGHTS)
    if not files:
        raise CertificateError(
            f"{folder} has no weight files, so nothing can be said of its weights; give a folder with *.safetensors"
        )
    return files


def sampled_digest(folder: Path) -> str:
    """SHA-256 of the names, types, shapes and sampled blocks of all tensors in a model's folder.

    Files of other formats than safetensors are sampled like one tensor each, under their name.
    Raises CertificateError for files that are missing or broken.
    """
    regions = sorted(region for file in weight_files(folder) for region in _regions(file))
    most = max(FEWEST_BLOCKS, min(MOST_BLOCKS, BUDGET // (BLOCK * max(1, len(regions)))))
    with ThreadPoolExecutor(READERS) as pool:
        digests = list(pool.map(lambda region: _region_digest(region, most), regions))
    whole = hashlib.sha256(b"redknot-weights/1\n")
    for region, digest in zip(regions, digests, strict=True):
        whole.update(region.label.encode() + b"\0" + digest)
    return whole.hexdigest()


def file_digests(folder: Path, on_bytes: Callable[[int], object] = lambda count: None) -> list[dict[str, Any]]:
    """Name, size in bytes and SHA-256 of every weight file, which is read to its last byte.

    folder: the model's.
    on_bytes: called with the number of bytes read, as they are.
    """

    def one(file: Path) -> dict[str, Any]:
        digest, size = hashlib.sha256(), 0
        with file.open("rb") as opened:
            while chunk := opened.read(_CHUNK):
                digest.update(chunk)
                size += len(chunk)
                on_bytes(len(chunk))
        return {"name": file.name, "bytes": size, "sha256": digest.hexdigest()}

    # hashlib lets other threads run, so files are hashed on several cores.
    with ThreadPoolExecutor(min(READERS, os.cpu_count() or 1)) as pool:
        return list(pool.map(one, weight_files(folder)))


def offsets(size: int, most: int) -> Sequence[int]:
    """Where the blocks begin that are read of a tensor: all, or evenly spread ones, the first and the last among them.

    size: bytes of the tensor.
    most: blocks to read at most.
    """
    count = -(-size // BLOCK)
    if count <= most:
        return range(0, size, BLOCK)
    return [round(i * (size - BLOCK) / (most - 1)) for i in range(most)]


def _region_digest(region: Region, most: int) -> bytes:
    digest = hashlib.sha256()
    with region.file.open("rb") as file:
        for offset in offsets(region.end - region.start, most):
            file.seek(region.start + offset)
            digest.update(file.read(min(BLOCK, region.end - region.start - offset)))
    return digest.digest()


def _regions(file: Path) -> list[Region]:
    size = file.stat().st_size
    if file.suffix != ".safetensors":
        return [Region(f"{file.name}\0file\0{size}", file, 0, size)]
    try:
        return _tensors(file, size)
    except (ValueError, KeyError, TypeError, AttributeError):
        raise CertificateError(f"{file} is not a complete safetensors file; download it again") from None


def _tensors(file: Path, size: int) -> list[Region]:
    """Tensors of a safetensors file: 8 bytes of header length, a JSON header, data. Raises ValueError and others."""
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        if length > min(size, _MAX_HEADER):
            raise ValueError("header")
        header = json.loads(opened.read(length))
    found = []
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        start, end = (8 + length + int(offset) for offset in entry["data_offsets"])
        if not 8 + length <= start <= end <= size:
            raise ValueError("offsets")
        found.append(Region(f"{name}\0{entry['dtype']}\0{entry['shape']}", file, start, end))
    return found
