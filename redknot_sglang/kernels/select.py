# SPDX-License-Identifier: Apache-2.0
"""Which path serves: the requested one, or the best that the device, the shape and the installed libraries
allow.

Libraries are imported only when their path is asked about on a GPU, so that a CPU-only machine needs none of
them.
"""

from __future__ import annotations

import logging
from typing import Any

from .batch import ClassSpec, Path

logger = logging.getLogger(__name__)

# Fastest first.
PATHS = ("fa3", "flashinfer", "triton", "torch")


def available_paths(spec: ClassSpec) -> dict[str, str | None]:
    """Every path by name: None where it can serve ``spec`` on this machine, else the reason why it cannot.

    May launch one tiny kernel per path, the first time only.
    """
    return {name: _why_not(name, spec) for name in PATHS}


def select_path(requested: str | None, spec: ClassSpec) -> Path:
    """Build the path named ``requested``, or with None the fastest one that serves ``spec``; the log says
    which.

    Raises ValueError, with the reason and the alternatives, if the path is unknown or cannot serve ``spec``.
    """
    if requested is None:
        return _build(_fastest(spec), spec)
    if requested not in PATHS:
        raise ValueError(f"unknown attention path {requested!r}: choose one of {', '.join(PATHS)}")
    reason = _why_not(requested, spec)
    if reason is not None:
        others = [name for name, why in available_paths(spec).items() if why is None]
        raise ValueError(
            f"attention path {requested!r} cannot serve here: {reason}. "
            f"Choose {' or '.join(others)}, or leave the choice to the server"
        )
    return _build(requested, spec)


def scattered_path(path: Path, spec: ClassSpec) -> Path:
    """The path that plans a ScatteredBatch beside `path`: libraries know adjacent rows only.

    Raises ValueError if there is none for ``spec``.
    """
    if path.name in ("torch", "triton"):
        return path
    return select_path("triton", spec)


def _fastest(spec: ClassSpec) -> str:
    if spec.device.type == "cpu":
        return "torch"
    for name in PATHS:
        reason = _why_not(name, spec)
        if reason is None:
            return name
        logger.info("attention path %s is left out: %s", name, reason)
    raise ValueError(f"no attention path serves {spec}; see the reasons above")


def _build(name: str, spec: ClassSpec) -> Path:
    path: Path = path_class(name)(spec)
    logger.info(
        "attention path %s on %s: head_dim %d, group %d, %s, window %d, sink %d",
        path.name,
        spec.device,
        spec.head_dim,
        spec.group,
        str(spec.dtype).removeprefix("torch."),
        spec.window,
        spec.sink,
    )
    return path


def _why_not(name: str, spec: ClassSpec) -> str | None:
    if name == "torch":
        return None if spec.device.type == "cpu" else "it serves CPUs; use triton to compare with on a GPU"
    if spec.device.type != "cuda":
        return f"it needs a CUDA device, this is {spec.device.type}"
    reason: str | None = path_class(name).why_not(spec)
    return reason


def path_class(name: str) -> Any:
    """The class of a path: called with a spec to build it, and with a ``why_not(spec)`` on all but torch."""
    if name == "fa3":
        from .fa3 import Fa3Path

        return Fa3Path
    if name == "flashinfer":
        from .flashinfer import FlashInferPath

        return FlashInferPath
    if name == "triton":
        from .triton_path import TritonPath

        return TritonPath
    from .torch_paged import TorchPath

    return TorchPath
