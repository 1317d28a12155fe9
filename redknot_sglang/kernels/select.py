# SPDX-License-Identifier: Apache-2.0
"""Which paths serve: those asked for, or the fastest that the device, the shape and the installed libraries allow.

An extend path and a decode path are chosen as a pair. ``PAIRS`` has them all; to add one, write its file and put it
here. The modules of paths import their libraries only when a path is built, so that a machine without a GPU needs none
of the libraries.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

from .batch import CLASSES, ClassSpec
from .decode_flashinfer import FlashInferDecode
from .decode_torch import TorchDecode
from .decode_triton import TritonDecode
from .extend_fa3 import Fa3Extend
from .extend_flashinfer import FlashInferExtend
from .extend_torch import TorchExtend
from .extend_triton import TritonExtend
from .paths import DecodePath, ExtendPath, RecordedExtendPath

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Pair:
    """Classes of paths that are chosen together.

    extend: the extend path.
    decodes: decode paths to go with it, fastest first; the first that can serve is taken.
    """

    extend: type[ExtendPath]
    decodes: tuple[type[DecodePath], ...]

    def decode_for(self, spec: ClassSpec) -> type[DecodePath] | None:
        """The decode path that serves ``spec``, or None. May run a trial, the first time only."""
        return next((decode for decode in self.decodes if decode.why_not(spec) is None), None)

    def why_not(self, spec: ClassSpec) -> str | None:
        """Why the pair cannot serve ``spec``, or None. May run trials, the first time only."""
        reason = self.extend.why_not(spec)
        if reason is None and self.decode_for(spec) is None:
            reasons = (f"{decode.name}: {decode.why_not(spec)}" for decode in self.decodes)
            return f"it has nothing to decode by ({'; '.join(reasons)})"
        return reason


# By the name that `--redknot-attention` calls it, fastest first.
PAIRS = {
    "fa3": Pair(Fa3Extend, (FlashInferDecode, TritonDecode)),
    "flashinfer": Pair(FlashInferExtend, (FlashInferDecode,)),
    "triton": Pair(TritonExtend, (TritonDecode,)),
    "torch": Pair(TorchExtend, (TorchDecode,)),
}


@dataclass(frozen=True)
class Paths:
    """A pair of paths, built.

    name: the pair's, as in ``PAIRS``.
    extend: serves requests that append rows.
    decode: serves requests of one row each.
    """

    name: str
    extend: ExtendPath
    decode: DecodePath


def available_paths(spec: ClassSpec) -> dict[str, str | None]:
    """Every pair by name: None where it can serve ``spec`` on this machine, else the reason why it cannot.

    May launch tiny kernels, the first time only.
    """
    return {name: pair.why_not(spec) for name, pair in PAIRS.items()}


def select_paths(requested: str | None, spec: ClassSpec) -> Paths:
    """Build the pair that serves; the log says which, and why faster ones were left out.

    requested: a name in ``PAIRS``; None for the fastest that can serve.
    spec: what to serve.
    Raises ValueError, with the reason and the alternatives, if the name is unknown or the pair cannot serve ``spec``.
    """
    if requested is None:
        return _build(_fastest(spec), spec)
    if requested not in PAIRS:
        raise ValueError(f"unknown attention path {requested!r}: choose one of {', '.join(PAIRS)}")
    reason = PAIRS[requested].why_not(spec)
    if reason is not None:
        others = [name for name, why in available_paths(spec).items() if why is None]
        raise ValueError(
            f"attention path {requested!r} cannot serve here: {reason}. "
            f"Choose {' or '.join(others)}, or leave the choice to the server"
        )
    return _build(requested, spec)


def scattered_extend(extend: ExtendPath, spec: ClassSpec) -> ExtendPath:
    """The path that plans a ScatteredBatch.

    extend: the path that plans other batches; returned if it plans these too.
    spec: what to serve.
    Raises ValueError, with the reasons, if there is no such path for ``spec``.
    """
    if extend.scattered:
        return extend
    reasons = []
    for name, pair in PAIRS.items():
        if not pair.extend.scattered:
            continue
        reason = pair.extend.why_not(spec)
        if reason is None:
            logger.info("attention path %s serves rows at scattered positions", name)
            return pair.extend(spec)
        reasons.append(f"{name}: {reason}")
    raise ValueError(f"no attention path serves rows at scattered positions here: {'; '.join(reasons)}")


def recorded_extend(extend: ExtendPath, spec: ClassSpec) -> ExtendPath:
    """A path of its own for extends that decode graphs record, as they do where drafts are verified.

    extend: the path of other extends; another one of its class, if that can be recorded, or if there are no graphs.
    spec: what to serve.
    """
    if isinstance(extend, RecordedExtendPath) or spec.device.type == "cpu":
        return type(extend)(spec)
    reason = TritonExtend.why_not(spec)
    if reason is not None:
        raise ValueError(f"no attention path verifies drafts here: {extend.name} cannot be recorded, triton: {reason}")
    logger.info("attention path %s verifies drafts", TritonExtend.name)
    return TritonExtend(spec)


def _fastest(spec: ClassSpec) -> str:
    for name, pair in PAIRS.items():
        reason = pair.why_not(spec)
        if reason is None:
            return name
        # A CPU has one pair; that the others need a GPU is no news there.
        if spec.device.type != "cpu":
            logger.info("attention path %s is left out: %s", name, reason)
    raise ValueError(f"no attention path serves {spec}; see the reasons above")


def _build(name: str, spec: ClassSpec) -> Paths:
    pair = PAIRS[name]
    decode = pair.decode_for(spec)
    assert decode is not None, f"built {name}, which cannot serve {spec}"
    logger.info(
        "attention path %s on %s: head_dim %d, group %d, %s, window %d, sink %d",
        name,
        spec.device,
        spec.head_dim,
        spec.group,
        ", KV ".join(dict.fromkeys(str(x).removeprefix("torch.") for x in (spec.dtype, spec.kv_dtype(CLASSES[0])))),
        spec.window,
        spec.sink,
    )
    for faster in pair.decodes[: pair.decodes.index(decode)]:
        reason = faster.why_not(spec)
        logger.info("attention path %s decodes by %s; %s is left out: %s", name, decode.name, faster.name, reason)
    return Paths(name, pair.extend(spec), decode(spec))
