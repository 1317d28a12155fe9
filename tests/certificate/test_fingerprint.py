# SPDX-License-Identifier: Apache-2.0
"""Which models are the same to a certificate."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from redknot_sglang.certificate.fingerprint import config_digest, fingerprint_model, fingerprint_served, model_folder
from redknot_sglang.errors import CertificateError
from tests.serving.harness import MODEL

CONFIG = json.loads((MODEL / "config.json").read_text())


@pytest.mark.parametrize("name", ["torch_dtype", "dtype", "_name_or_path", "transformers_version", "use_cache"])
def test_what_does_not_change_the_model_does_not_count(name: str) -> None:
    assert config_digest(CONFIG | {name: "other"}) == config_digest(CONFIG)
    nested = CONFIG | {"text_config": {"hidden_size": 1, name: "other"}}
    assert config_digest(nested) == config_digest(CONFIG | {"text_config": {"hidden_size": 1}})


@pytest.mark.parametrize("name", ["rope_theta", "num_hidden_layers", "rms_norm_eps", "a_field_of_the_future"])
def test_everything_else_counts(name: str) -> None:
    assert config_digest(CONFIG | {name: 12345}) != config_digest(CONFIG)


def served(**arguments: Any) -> dict[str, Any]:
    return {"model_path": str(MODEL), "load_format": "auto", "quantization": None, **arguments}


def test_server_arguments_give_the_fingerprint_of_the_folder() -> None:
    plain = fingerprint_served(served())
    assert plain == fingerprint_model(MODEL)
    assert plain.difference(fingerprint_served(served(json_model_override_args="{}", torchao_config=""))) is None


@pytest.mark.parametrize(
    ("arguments", "clause"),
    [
        ({"load_format": "dummy"}, "this server has dummy weights"),
        ({"json_model_override_args": '{"rope_theta": 1}'}, "config.json differs"),
        ({"quantization": "fp8"}, "loaded with --quantization fp8, certified with no quantization"),
        ({"torchao_config": "int8wo"}, "--torchao-config int8wo"),
    ],
)
def test_arguments_that_change_the_model_count(arguments: dict[str, Any], clause: str) -> None:
    difference = fingerprint_model(MODEL).difference(fingerprint_served(served(**arguments)))
    assert difference is not None and clause in difference


def test_kv_of_8_bits_is_certified_on_its_own(tmp_path: Path) -> None:
    """Figures of KV in 16 bits say nothing of it, nor the other way round; scales count by what the file says."""
    plain = fingerprint_served(served())
    for dtype in ("auto", "bf16", "bfloat16"):
        assert fingerprint_served(served(kv_cache_dtype=dtype)) == plain
    scales, copy, others = (tmp_path / name for name in ("scales.json", "copy.json", "others.json"))
    for file, text in ((scales, "1"), (copy, "1"), (others, "2")):
        file.write_text(text)
    e4m3, e5m2, scaled, copied, other = (
        fingerprint_served(served(kv_cache_dtype=dtype, quantization_param_path=path))
        for dtype, path in (
            ("fp8_e4m3", None),
            ("fp8_e5m2", None),
            ("fp8_e4m3", str(scales)),
            ("fp8_e4m3", str(copy)),
            ("fp8_e4m3", str(others)),
        )
    )
    assert plain.difference(e4m3) == "KV is stored as fp8_e4m3, certified in 16 or 32 bits"
    assert e4m3.difference(plain) == "KV is stored in 16 or 32 bits, certified as fp8_e4m3"
    assert "as fp8_e5m2, certified as fp8_e4m3" in str(e4m3.difference(e5m2))
    assert "with the scales of a file" in str(e4m3.difference(scaled)) and scaled.difference(copied) is None
    assert scaled.difference(other) is not None
    # Of other dtypes SGLang reads no scales.
    assert fingerprint_served(served(kv_cache_dtype="fp8_e5m2", quantization_param_path=str(scales))) == e5m2
    with pytest.raises(CertificateError, match="cannot be read"):
        fingerprint_served(served(kv_cache_dtype="fp8_e4m3", quantization_param_path=str(tmp_path / "none")))


def test_dummy_weights_equal_dummy_weights_only() -> None:
    dummy, real = fingerprint_model(MODEL, dummy=True), fingerprint_model(MODEL)
    assert dummy.difference(fingerprint_model(MODEL, dummy=True)) is None
    assert "about dummy weights" in str(dummy.difference(real))
    assert real.weights not in ("dummy", dummy.weights)


def test_a_model_that_is_not_here_is_said(tmp_path: Path) -> None:
    with pytest.raises(CertificateError, match="somebody/model is not on this disk"):
        model_folder("somebody/model", download_dir=str(tmp_path))
    with pytest.raises(CertificateError, match="no config.json"):
        fingerprint_model(tmp_path)
    (tmp_path / "config.json").write_text("[1]")
    with pytest.raises(CertificateError, match="not a JSON object"):
        fingerprint_model(tmp_path)
