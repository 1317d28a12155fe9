# SPDX-License-Identifier: Apache-2.0
"""The model's fingerprint, by which a server knows whether a certificate is about the model that it serves."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from redknot_sglang.certificate.weights import sampled_digest
from redknot_sglang.errors import CertificateError

# Of config.json these say how the file was written or how tokens are chosen, not what the model computes. Everything else
# counts, fields of the future included. The number format is left out on purpose: a certificate holds for float32 and
# bfloat16 alike and records which of them was measured.
IRRELEVANT = frozenset({"_name_or_path", "transformers_version", "torch_dtype", "dtype", "use_cache", "_commit_hash"})
REAL, DUMMY = "checkpoint", "dummy"
# Arguments of SGLang that change weights while they are loaded.
LOADING = ("quantization", "torchao_config", "modelopt_quant", "rl_quant_profile")
# Arguments of SGLang that round KV to 8-bit floats, by which a model answers otherwise; other dtypes of KV do not count.
_KV, _KV_SCALES = "kv_cache_dtype", "quantization_param_path"


@dataclass(frozen=True)
class ModelFingerprint:
    """What identifies a model.

    kind: `checkpoint`, or `dummy` for weights that SGLang makes up under `--load-format dummy`.
    config: SHA-256 of the fields of config.json that decide what the model computes, overrides applied; 64 hex digits.
    weights: `weights.sampled_digest`, or the word `dummy`.
    loading: SGLang's arguments among `LOADING` that are set: they change weights while these are loaded. And how KV is stored, if
        as 8-bit floats: `kv_cache_dtype`, and the SHA-256 of the file of scales in the place of its path.
    """

    kind: str
    config: str
    weights: str
    loading: Mapping[str, str]

    def difference(self, served: ModelFingerprint) -> str | None:
        """How a served model differs from this, the certified one: the end of a sentence, or None if it is the same."""
        if self.kind != served.kind:
            return f"the certificate is about {_KINDS[self.kind]}, and this server has {_KINDS[served.kind]}"
        if self.config != served.config:
            return f"config.json differs from the certified one ({served.config[:12]}, certified {self.config[:12]})"
        (loading, kv), (served_loading, served_kv) = _parted(self.loading), _parted(served.loading)
        if kv != served_kv:
            return f"KV is stored {_stored(served_kv)}, certified {_stored(kv)}"
        if loading != served_loading:
            return f"weights are loaded with {_flags(served_loading)}, certified with {_flags(loading)}"
        if self.weights != served.weights:
            return f"the weights differ from the certified ones ({served.weights[:12]}, certified {self.weights[:12]})"
        return None


_KINDS = {REAL: "the weights of a checkpoint", DUMMY: "dummy weights (--load-format dummy)"}


def fingerprint_served(arguments: Mapping[str, Any]) -> ModelFingerprint:
    """Fingerprint of the model that a server serves.

    arguments: SGLang's server arguments by name, as `/server_info` shows them.
    Raises CertificateError if the model is not on this disk, or files of it are missing.
    """
    overrides = arguments.get("json_model_override_args") or {}
    return fingerprint_model(
        model_folder(str(arguments["model_path"]), arguments.get("revision"), arguments.get("download_dir")),
        dummy=arguments.get("load_format") == DUMMY,
        overrides=json.loads(overrides) if isinstance(overrides, str) else overrides,
        loading={name: str(arguments[name]) for name in LOADING if arguments.get(name)} | _kv_of(arguments),
    )


def _kv_of(arguments: Mapping[str, Any]) -> dict[str, str]:
    """How KV is stored, for `loading`. Raises CertificateError if the file of scales cannot be read."""
    name, scales = str(arguments.get(_KV) or "auto"), arguments.get(_KV_SCALES)
    if not name.startswith("fp8"):
        return {}
    # SGLang reads the file for this dtype alone.
    if scales is None or name != "fp8_e4m3":
        return {_KV: name}
    try:
        return {_KV: name, _KV_SCALES: hashlib.sha256(Path(scales).read_bytes()).hexdigest()}
    except OSError as error:
        raise CertificateError(f"--quantization-param-path {scales} cannot be read ({error.strerror})") from None


def fingerprint_model(
    folder: Path,
    *,
    dummy: bool = False,
    overrides: Mapping[str, Any] | None = None,
    loading: Mapping[str, str] | None = None,
) -> ModelFingerprint:
    """Fingerprint of the model in a folder.

    folder: has config.json and the weights.
    dummy: whether the weights are not read, since SGLang makes them up.
    overrides: fields that replace those of config.json, as `--json-model-override-args`.
    loading: SGLang's arguments among `LOADING` that are set.
    Raises CertificateError if a file is missing.
    """
    config = read_config(folder)
    return ModelFingerprint(
        kind=DUMMY if dummy else REAL,
        config=config_digest({**config, **(overrides or {})}),
        weights=DUMMY if dummy else sampled_digest(folder),
        loading=dict(loading or {}),
    )


def model_folder(model_path: str, revision: str | None = None, download_dir: str | None = None) -> Path:
    """The folder with a model's files. Downloads nothing.

    model_path: a folder, or the model's name on a model hub, whose download is then looked for.
    revision: of the hub's model, or None.
    download_dir: where downloads lie, or None for the hub's own place.
    Raises CertificateError if the model is not on this disk.
    """
    folder = Path(model_path)
    if folder.is_dir():
        return folder
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(model_path, revision=revision, cache_dir=download_dir, local_files_only=True))
    except (LocalEntryNotFoundError, HFValidationError):
        raise CertificateError(
            f"the model {model_path} is not on this disk, so it cannot be compared with the certified one: "
            "give its folder, or download it first"
        ) from None


def read_config(folder: Path) -> dict[str, Any]:
    """The content of config.json in a model's folder. Raises CertificateError if there is none, or it is not JSON."""
    file = folder / "config.json"
    try:
        config = json.loads(file.read_bytes())
    except OSError:
        raise CertificateError(f"{folder} has no config.json; give a model's folder") from None
    except ValueError:
        raise CertificateError(f"{file} is not JSON; download the model again") from None
    if not isinstance(config, dict):
        raise CertificateError(f"{file} is not a JSON object; download the model again")
    return config


def config_digest(config: Mapping[str, Any]) -> str:
    """SHA-256, in hex, of a configuration in canonical JSON. Fields of IRRELEVANT do not count, at any depth."""
    return hashlib.sha256(canonical(_relevant(config))).hexdigest()


def canonical(value: Any) -> bytes:
    """A JSON value in a spelling that is always the same, for digests. Raises ValueError for NaN and infinities."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False).encode()


def _relevant(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _relevant(item) for name, item in value.items() if name not in IRRELEVANT}
    return [_relevant(item) for item in value] if isinstance(value, list) else value


def _parted(loading: Mapping[str, str]) -> tuple[dict[str, str], dict[str, str]]:
    """What `loading` says of weights, and what of KV."""
    kv = {name: value for name, value in loading.items() if name in (_KV, _KV_SCALES)}
    return {name: value for name, value in loading.items() if name not in kv}, kv


def _stored(kv: Mapping[str, str]) -> str:
    if not kv:
        return "in 16 or 32 bits"
    scales = kv.get(_KV_SCALES)
    return f"as {kv[_KV]}" + (f" with the scales of a file ({scales[:12]})" if scales else "")


def _flags(loading: Mapping[str, str]) -> str:
    named = (f"--{name.replace('_', '-')} {value}" for name, value in sorted(loading.items()))
    return ", ".join(named) or "no quantization"
