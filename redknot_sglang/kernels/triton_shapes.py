# SPDX-License-Identifier: Apache-2.0
"""What our Triton kernels can serve."""

from __future__ import annotations

import torch

from .batch import CLASSES, ClassSpec
from .paths import needs_cuda

MAX_HEAD_DIM = 256
MAX_GROUP = 64


def triton_why_not(spec: ClassSpec) -> str | None:
    """The reason why the Triton paths cannot serve ``spec``, or None."""
    return needs_cuda(spec) or _shape_why_not(spec) or _stored_why_not(spec)


def _shape_why_not(spec: ClassSpec) -> str | None:
    if spec.head_dim > MAX_HEAD_DIM:
        return f"its head_dim is at most {MAX_HEAD_DIM}, the model's is {spec.head_dim}"
    if spec.group > MAX_GROUP:
        return f"it packs at most {MAX_GROUP} query heads per KV head, the model has {spec.group}"
    if spec.dtype not in (torch.float16, torch.bfloat16, torch.float32):
        return f"it serves float16, bfloat16 and float32, not {spec.dtype}"
    return None


def _stored_why_not(spec: ClassSpec) -> str | None:
    stored = {spec.kv_dtype(head_class) for head_class in CLASSES if spec.widths(head_class)}
    if torch.float8_e4m3fn in stored and torch.cuda.get_device_capability(spec.device) < (8, 9):
        return (
            "it converts float8_e4m3fn on GPUs of compute capability 8.9 or more, "
            f"this is {torch.cuda.get_device_name(spec.device)}"
        )
    return None


def check_scale(scale: float) -> None:
    """Raise ValueError unless the scale of the logits is positive: the kernels take the largest logit before they
    scale it.
    """
    if scale <= 0.0:
        raise ValueError(f"scale is {scale}: these kernels take the largest logit before they scale it")
