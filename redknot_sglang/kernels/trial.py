# SPDX-License-Identifier: Apache-2.0
"""Trial runs: whether a path gives right results on this machine, before a server relies on it.

A library can be installed and still lack the kernels of a head dimension, or the compiler to build them. A
trial costs one tiny batch against the oracle. Where a failing library ends the process instead of raising,
the trial runs in a process of its own.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import cache

import torch
from torch import Tensor

from .batch import ClassSpec, DecodeBatch, ExtendBatch, HeadClass, Path
from .reference import attend_paged

_TIMEOUT_S = 300
# One long request with a single row, so that libraries which split long lists do split, and one plain
# prefill.
_PREFIXES, _SEQS = [4500, 0], [4501, 70]


def trial_error(build: Callable[[ClassSpec], Path], spec: ClassSpec, extend: bool = True) -> str | None:
    """What went wrong when the path ran extend and decode here, or decode alone, or None; remembered per shape."""
    return _remembered(build, _small(spec), extend)


def extend_trial_error_in_child(name: str, spec: ClassSpec) -> str | None:
    """The same for extend alone, in a child process that a broken library may end; remembered."""
    return _remembered_child(name, _small(spec))


def run_trial(path: Path, spec: ClassSpec, extend: bool, decode: bool) -> None:
    """Run both classes of ``spec`` over tiny batches; RuntimeError if a result is far from the oracle."""
    generator = torch.Generator().manual_seed(0)
    total = sum(_SEQS)
    req_to_token = torch.zeros(2, max(_SEQS), dtype=torch.int32)
    slots = (torch.randperm(total, generator=generator) + 1).int()
    for row, own in zip(req_to_token, slots.split(_SEQS), strict=True):
        row[: len(own)] = own
    device = spec.device
    shared = req_to_token.to(device), torch.arange(2, device=device), torch.arange(total + 1, device=device)
    seq_lens = torch.tensor(_SEQS, dtype=torch.int32, device=device)
    prefix_lens = torch.tensor(_PREFIXES, dtype=torch.int32, device=device)
    if extend:
        rows = ExtendBatch(*shared, prefix_lens, seq_lens, _PREFIXES, _SEQS)
        path.plan_extend(rows)
        _compare(path, spec, rows, rows.qo_indptr[-1], total)
    if decode:
        step = DecodeBatch(*shared, seq_lens, _SEQS)
        path.plan_decode(step)
        _compare(path, spec, step, 2, total)


def _compare(path: Path, spec: ClassSpec, batch: ExtendBatch | DecodeBatch, rows: int, slots: int) -> None:
    # A generator of its own: a trial must not move the random numbers that requests will be sampled with.
    generator = torch.Generator(spec.device).manual_seed(0)

    def random(n: int, heads: int) -> Tensor:
        shape = (n, heads, spec.head_dim)
        return torch.randn(shape, generator=generator, dtype=spec.dtype, device=spec.device)

    classes: tuple[HeadClass, ...] = ("global", "local")
    for head_class in classes:
        for width in spec.widths(head_class):
            q = random(rows, spec.group * width)
            k, v = random(slots + 1, width), random(slots + 1, width)
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
def _remembered(build: Callable[[ClassSpec], Path], spec: ClassSpec, extend: bool) -> str | None:
    # Any error of a foreign library is a reason not to use it; it is reported, not swallowed.
    try:
        run_trial(build(spec), spec, extend, decode=True)
        torch.cuda.synchronize(spec.device)
    except Exception as error:
        return f"a trial run failed with {type(error).__name__}: {_first_line(str(error))}"
    return None


@cache
def _remembered_child(name: str, spec: ClassSpec) -> str | None:
    fields = {
        "group": spec.group,
        "head_dim": spec.head_dim,
        "global_widths": spec.global_widths,
        "local_widths": spec.local_widths,
        "window": spec.window,
        "sink": spec.sink,
        "dtype": str(spec.dtype).removeprefix("torch."),
        "device": str(spec.device),
    }
    command = [sys.executable, "-m", __name__, name, json.dumps(fields)]
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


def main(name: str, fields: str) -> None:
    """Entry of the child process: exit code 0 if the path named ``name`` extends rightly."""
    from .select import path_class

    values = json.loads(fields)
    values["dtype"] = getattr(torch, values["dtype"])
    values["device"] = torch.device(values["device"])
    values["global_widths"], values["local_widths"] = (
        tuple(values["global_widths"]),
        tuple(values["local_widths"]),
    )
    spec = ClassSpec(**values)
    if spec.device.index is not None:
        torch.cuda.set_device(spec.device)
    run_trial(path_class(name)(spec), spec, extend=True, decode=False)
    torch.cuda.synchronize(spec.device)


if __name__ == "__main__":
    main(*sys.argv[1:3])
