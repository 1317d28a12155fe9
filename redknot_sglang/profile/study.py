# SPDX-License-Identifier: Apache-2.0
"""What every method works with: a model, examples, the sizes that are asked about, and the loss under any map."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor
from tqdm import tqdm

from redknot_sglang.profile.attention import full, grouped, windowed
from redknot_sglang.profile.data import Data, Example
from redknot_sglang.profile.model import Attend, ProfiledModel, Rows
from redknot_sglang.profile.record import Matrix
from redknot_sglang.work_file import WorkFile

Head = tuple[int, int]
"""(layer, KV head)."""
T = TypeVar("T")


@dataclass(frozen=True)
class Evidence:
    """What a method found: for each window a matrix [layers][KV heads], higher where a head needs the whole context.

    unit, source, detail: as in `record.py`.
    """

    harm: dict[int, Matrix]
    unit: str
    source: str
    detail: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Study:
    """windows: candidates for the map; curve: of methods that give whole curves, candidates included; rows: of an
    example that mass and distortion look at; goal: how many heads are to be local at most; seed: of what is drawn."""

    model: ProfiledModel
    data: Data
    work: WorkFile
    sink: int
    windows: tuple[int, ...]
    curve: tuple[int, ...]
    rows: int
    goal: int
    seed: int = 0
    gate_steps: int = 300
    gate_l1: float = 0.05
    gate_rate: float = 0.02
    gate_tokens: int = 16384

    @property
    def heads(self) -> list[Head]:
        """All (layer, KV head), ascending."""
        return [(layer, head) for layer in range(self.model.layers) for head in range(self.model.kv_heads)]

    def with_goal(self, goal: int) -> Study:
        """The same study, work file included, with another goal."""
        return replace(self, goal=goal)

    def each(self, label: str, measure: Callable[[int, Example], T], what: object) -> list[T]:
        """`measure` of every example (its number and itself), JSON, kept in the work file under `what`."""
        found = []
        for number, example in self.progress(label, enumerate(self.data.examples), len(self.data.examples)):
            found.append(self.work.once([what, number], partial(measure, number, example)))
        return found

    def progress(self, label: str, items: Iterable[T], total: int) -> Iterator[T]:
        """`items`, counted on stderr; in a log only what takes long, and seldom."""
        pause = 0.0 if sys.stderr.isatty() else 30.0
        options = {"leave": False, "delay": pause, "mininterval": max(0.1, pause)}
        yield from tqdm(items, desc=label, total=total, file=sys.stderr, **options)

    def loss(self, local: Iterable[Head], window: int) -> tuple[float, float | None]:
        """Mean loss with the heads `local` windowed, and the share of examples answered exactly (None: no answers)."""
        heads = sorted(local)
        attend = under_map(heads, window, self.sink)

        def measure(_: int, example: Example) -> tuple[float, bool]:
            x, tables = self.model.embed(example.ids)
            return self.model.loss(self.model.run(x, tables, attend), example.ids, example.first)

        # All maps without local heads are one, whatever the window.
        what = ["loss", heads, window if heads else 0, self.sink if heads else 0]
        found = self.each(f"map with {len(self.heads) - len(heads)} global heads, window {window}", measure, what)
        exact = [right for (_, right), example in zip(found, self.data.examples, strict=True) if example.has_answer]
        return sum(loss for loss, _ in found) / len(found), sum(exact) / len(exact) if exact else None

    def rises(self, label: str, base: Iterable[Head], candidates: Iterable[Head], window: int) -> dict[Head, float]:
        """Mean loss with `base` and one candidate windowed, for each candidate.

        A candidate of layer l shares the layers below l with `base`, so on average half of a pass is saved.
        """
        fixed, wanted = sorted(base), sorted(candidates)

        def measure(_: int, example: Example) -> list[float]:
            x, tables = self.model.embed(example.ids)
            below = under_map(fixed, window, self.sink)
            losses = []
            for layer in range(self.model.layers):
                for head in (head for head in wanted if head[0] == layer):
                    y = self.model.run(x.clone(), tables, under_map([*fixed, head], window, self.sink), first=layer)
                    losses.append(self.model.loss(y, example.ids, example.first)[0])
                self.model.run_layer(layer, x, tables, below)
            return losses

        found = self.each(label, measure, ["rises", fixed, wanted, window, self.sink])
        return {head: sum(row[i] for row in found) / len(found) for i, head in enumerate(wanted)}

    def matrix(self, values: Sequence[float] | Tensor) -> Matrix:
        """Numbers in the order of `heads` as [layers][KV heads]."""
        flat: Matrix = torch.as_tensor(values, dtype=torch.float64).view(self.model.layers, -1).tolist()
        return flat


def under_map(local: Iterable[Head], window: int, sink: int) -> Attend:
    """Attention in which the heads `local` see sink + window and all others everything."""
    by_layer: dict[int, list[int]] = {}
    for layer, head in sorted(local):
        by_layer.setdefault(layer, []).append(head)

    def attend(rows: Rows) -> Tensor:
        near = by_layer.get(rows.layer, [])
        if not near:
            return full(rows.q, rows.k, rows.v, rows.scale)
        far = [head for head in range(len(rows.k)) if head not in near]
        if not far:
            return windowed(rows.q, rows.k, rows.v, rows.scale, window, sink)
        q = grouped(rows.q, len(rows.k))
        out = torch.empty_like(q)
        for heads, is_far in ((far, True), (near, False)):
            at = torch.tensor(heads, device=q.device)
            own = (q[at].flatten(0, 1), rows.k[at], rows.v[at], rows.scale)
            out[at] = grouped(full(*own) if is_far else windowed(*own, window, sink), len(heads))
        return out.flatten(0, 1)

    return attend


def sample_rows(length: int, count: int) -> Tensor:
    """At most `count` positions of a prompt, evenly spaced, the last one among them, ascending int64."""
    if count >= length:
        return torch.arange(length)
    return length - 1 - (torch.arange(count) * length // count).flip(0)


def in_chunk(positions: Tensor, rows: Rows) -> tuple[Tensor, Tensor]:
    """Those of the positions that lie in the chunk, and the chunk's queries [Q, R, D] there."""
    inside = positions[(positions >= rows.begin) & (positions < rows.begin + rows.q.shape[1])]
    return inside, rows.q[:, inside - rows.begin]
