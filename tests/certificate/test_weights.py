# SPDX-License-Identifier: Apache-2.0
"""What the sampled digest of weights sees, and what it costs."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file

from redknot_sglang.certificate import weights
from redknot_sglang.certificate.weights import BLOCK, file_digests, offsets, sampled_digest, weight_files
from redknot_sglang.errors import CertificateError

RNG = np.random.default_rng(0)
TENSORS: dict[str, Any] = {
    "a": RNG.random((64, 33), np.float32),
    "b": RNG.random((3, 4), np.float32),
    "big": RNG.random(300_000),
}


def save(folder: Path, tensors: dict[str, Any], name: str = "model.safetensors") -> Path:
    folder.mkdir(exist_ok=True)
    save_file(tensors, folder / name)
    return folder


@given(size=st.integers(1, 5_000_000), most=st.integers(2, 64))
def test_samples_lie_inside_and_have_both_ends(size: int, most: int) -> None:
    found = list(offsets(size, most))
    assert found[0] == 0 and len(found) <= most and found == sorted(found)
    assert found[-1] + BLOCK >= size and found[-1] < size
    if size <= BLOCK * most:
        assert found == list(range(0, size, BLOCK)), "what is small is read as a whole"


def test_order_and_cut_into_files_do_not_matter(tmp_path: Path) -> None:
    one = save(tmp_path / "one", TENSORS)
    two = save(tmp_path / "two", {"big": TENSORS["big"]}, "model-1.safetensors")
    save(two, {name: TENSORS[name] for name in ("b", "a")}, "model-2.safetensors")
    assert sampled_digest(one) == sampled_digest(two)


@pytest.mark.parametrize(
    "changed",
    [
        {"b": TENSORS["b"] + np.float32(1e-3)},
        {"a": TENSORS["a"].astype(np.float64)},
        {"a": TENSORS["a"].reshape(33, 64)},
        {"big": TENSORS["big"] * 1.001},
        {"more": TENSORS["b"]},
    ],
    ids=["a small tensor", "another type", "another shape", "a large tensor scaled", "one more tensor"],
)
def test_other_weights_are_noticed(changed: dict[str, Any], tmp_path: Path) -> None:
    assert sampled_digest(save(tmp_path / "x", TENSORS)) != sampled_digest(save(tmp_path / "y", TENSORS | changed))


def test_one_value_between_the_samples_is_not_noticed_but_the_file_digest_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weights, "MOST_BLOCKS", 4)
    places = offsets(TENSORS["big"].nbytes, 4)
    changed = TENSORS["big"].copy()
    changed[(places[1] + 2 * BLOCK) // 8] += 1
    one, two = save(tmp_path / "x", TENSORS), save(tmp_path / "y", TENSORS | {"big": changed})
    assert sampled_digest(one) == sampled_digest(two), "docs/certify.md says so"
    assert file_digests(one) != file_digests(two)


def test_file_digests_are_those_of_the_files(tmp_path: Path) -> None:
    folder, read = save(tmp_path / "x", TENSORS), list[int]()
    content = (folder / "model.safetensors").read_bytes()
    entry = {"name": "model.safetensors", "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    assert file_digests(folder, read.append) == [entry]
    assert sum(read) == len(content)


def test_the_index_says_which_files_count(tmp_path: Path) -> None:
    folder = save(tmp_path / "x", TENSORS, "model-1.safetensors")
    save(folder, {"z": TENSORS["a"]}, "consolidated.safetensors")
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": dict.fromkeys(TENSORS, "model-1.safetensors")}))
    assert [file.name for file in weight_files(folder)] == ["model-1.safetensors"]
    index.write_text(json.dumps({"weight_map": {"a": "model-2.safetensors"}}))
    with pytest.raises(CertificateError, match="lacks model-2.safetensors"):
        weight_files(folder)
    index.write_text("[]")
    with pytest.raises(CertificateError, match="not an index"):
        weight_files(folder)


def test_other_formats_are_sampled_by_file(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"x" * 100_000)
    before = sampled_digest(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"x" * 99_999 + b"y")
    assert sampled_digest(tmp_path) != before


def test_no_weights_and_broken_ones_are_said(tmp_path: Path) -> None:
    with pytest.raises(CertificateError, match="has no weight files"):
        sampled_digest(tmp_path)
    file = save(tmp_path, TENSORS) / "model.safetensors"
    for content in (b"", file.read_bytes()[:5000], b"\xff" * 100):
        file.write_bytes(content)
        with pytest.raises(CertificateError, match="not a complete safetensors file"):
            sampled_digest(tmp_path)
