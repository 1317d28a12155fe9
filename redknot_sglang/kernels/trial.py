# SPDX-License-Identifier: Apache-2.0
"""Trial runs: whether a path gives right results on this machine, before a server relies on it.

A library can be installed and still lack the kernels of a head dimension, or the compiler to build them. A
trial costs one tiny batch against the oracle. Where a failing library ends the process instead of raising,
the trial runs in a process of its own.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import cache

import torch
from torch import Tensor

from .batch import CLASSES, ClassSpec, DecodeBatch, ExtendBatch
from .paths import AttentionPath, DecodePath, ExtendPath
from .reference import attend_paged

_TIMEOUT_S = 300
# One long request with a single row, so that libraries which split long lists do split, and one plain
# prefill.
_PREFIXES, _SEQS = [4500, 0], [4501, 70]


def extend_trial_error(build: Callable[[ClassSpec], ExtendPath], spec: ClassSpec) -> str | None:
    """What goes wrong when an extend path runs here; tried once for each shape.

    build: the path's class.
    spec: the shape.
    Returns the reason, or None if the results are right.
    """
    return _tried_extend(build, _small(spec))


def decode_trial_error(build: Callable[[ClassSpec], DecodePath], spec: ClassSpec) -> str | None:
    """As ``extend_trial_error``, for a decode path."""
    return _tried_decode(build, _small(spec))


def extend_trial_error_in_child(build: type[ExtendPath], spec: ClassSpec) -> str | None:
    """As ``extend_trial_error``, in a child process that a broken library may end. The class must be importable."""
    return _tried_in_child(build, _small(spec))


def try_extend(path: ExtendPath, spec: ClassSpec) -> None:
    """Run both classes of ``spec`` over a tiny batch; RuntimeError if a result is far from the oracle."""
    tables, prefix_lens, seq_lens = _requests(spec)
    batch = ExtendBatch(*tables, prefix_lens, seq_lens, _PREFIXES, _SEQS)
    path.plan_extend(batch)
    _compare(path, spec, batch, batch.qo_indptr[-1])


def try_decode(path: DecodePath, spec: ClassSpec) -> None:
    """As ``try_extend``, for a decode path."""
    tables, _, seq_lens = _requests(spec)
    batch = DecodeBatch(*tables, seq_lens, _SEQS)
    path.plan_decode(batch)
    _compare(path, spec, batch, len(_SEQS))


def _requests(spec: ClassSpec) -> tuple[tuple[Tensor, Tensor, Tensor], Tensor, Tensor]:
    """Slot tables of two requests in random slots, their prefixes and their lengths."""
    generator = torch.Generator().manual_seed(0)
    total = sum(_SEQS)
    req_to_token = torch.zeros(2, max(_SEQS), dtype=torch.int32)
    slots = (torch.randperm(total, generator=generator) + 1).int()
    for row, own in zip(req_to_token, slots.split(_SEQS), strict=True):
        row[: len(own)] = own
    device = spec.device
    tables = req_to_token.to(device), torch.arange(2, device=device), torch.arange(total + 1, device=device)
    lens = torch.tensor([_PREFIXES, _SEQS], dtype=torch.int32, device=device)
    return tables, lens[0], lens[1]


def _compare(path: AttentionPath, spec: ClassSpec, batch: ExtendBatch | DecodeBatch, rows: int) -> None:
    # A generator of its own: a trial must not move the random numbers that requests will be sampled with.
    generator = torch.Generator(spec.device).manual_seed(0)

    def random(n: int, heads: int) -> Tensor:
        shape = (n, heads, spec.head_dim)
        return torch.randn(shape, generator=generator, dtype=spec.dtype, device=spec.device)

    slots = sum(_SEQS) + 1
    for head_class in CLASSES:
        for width in spec.widths(head_class):
            q = random(rows, spec.group * width)
            k, v = (random(slots, width).to(spec.kv_dtype(head_class)) for _ in "kv")
            scale = spec.head_dim**-0.5
            out = path.run(head_class, q, k, v, scale).float()
            want, _ = attend_paged(batch, head_class, q, k, v, spec.window, spec.sink, scale)
            error = float((out - want).norm() / want.norm())
            if not error < 2e-2:
                raise RuntimeError(f"{head_class} heads are off by {error:.1e} (relative) from the oracle")


def _small(spec: ClassSpec) -> ClassSpec:
    """One head per class and a short window: kernels are chosen by the other fields."""
    return replace(
        spec,
        global_widths=(1,) if spec.global_widths else (),
        local_widths=(1,) if spec.local_widths else (),
        window=16 if spec.local_widths else 0,
        sink=2 if spec.local_widths else 0,
    )


@cache
def _tried_extend(build: Callable[[ClassSpec], ExtendPath], spec: ClassSpec) -> str | None:
    return _error_of(lambda: try_extend(build(spec), spec), spec)


@cache
def _tried_decode(build: Callable[[ClassSpec], DecodePath], spec: ClassSpec) -> str | None:
    return _error_of(lambda: try_decode(build(spec), spec), spec)


def _error_of(trial: Callable[[], None], spec: ClassSpec) -> str | None:
    # Any error of a foreign library is a reason not to use it; it is reported, not swallowed.
    try:
        trial()
        torch.cuda.synchronize(spec.device)
    except Exception as error:
        return f"a trial run failed with {type(error).__name__}: {_first_line(str(error))}"
    return None


@cache
def _tried_in_child(build: type[ExtendPath], spec: ClassSpec) -> str | None:
    command = [sys.executable, "-m", __name__, pickle.dumps((build, spec)).hex()]
    paths = os.pathsep.join(p for p in sys.path if p)
    try:
        done = subprocess.run(
            command,
            env={**os.environ, "PYTHONPATH": paths},
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_S,
        )
    except subprocess.TimeoutExpired:
        return f"a trial run took longer than {_TIMEOUT_S} s"
    if done.returncode == 0:
        return None
    lines = [line for line in (done.stderr or done.stdout).splitlines() if line.strip()]
    return f"a trial run failed: {lines[-1].strip() if lines else f'exit code {done.returncode}'}"


def _first_line(text: str) -> str:
    return text.strip().splitlines()[0] if text.strip() else "no message"


def main(trial: str) -> None:
    """Entry of the child process: exit code 0 if an extend path gives right results.

    trial: the path's class and the spec, pickled, in hexadecimal.
    """
    build, spec = pickle.loads(bytes.fromhex(trial))
    if spec.device.index is not None:
        torch.cuda.set_device(spec.device)
    try_extend(build(spec), spec)
    torch.cuda.synchronize(spec.device)


if __name__ == "__main__":
    main(sys.argv[1])
