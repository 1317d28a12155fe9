# SPDX-License-Identifier: Apache-2.0
"""What every method works with: a model, examples and settings, and the loss of the model under any map."""

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
from redknot_sglang.profile.objective import GivenAnswers, Objective
from redknot_sglang.profile.record import Matrix
from redknot_sglang.work_file import WorkFile

Head = tuple[int, int]
"""(layer, KV head)."""
T = TypeVar("T")


@dataclass(frozen=True)
class Evidence:
    """What a method found.

    harm: by window in tokens, [layers][KV heads], higher where a head needs the whole context.
    unit: what the numbers are, in words.
    source: where the method comes from, in words.
    detail: more of what it found, see `record.py`.
    """

    harm: dict[int, Matrix]
    unit: str
    source: str
    detail: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Study:
    """Model, examples and settings of a run.

    model: the model.
    data: the examples.
    work: the work file, which keeps finished measurements.
    sink: tokens of the sink.
    windows: windows, in tokens, that the map may have.
    curve: windows, in tokens, for which mass and distortion are measured, those of `windows` among them.
    rows: rows of an example that mass and distortion look at.
    goal: how many heads the map may have local at most; `greedy` orders no more than these.
    seed: of all that is drawn at random.
    gate_steps: steps of the optimiser of `gates`.
    gate_l1: weight of the mean gate in its loss.
    gate_rate: its learning rate.
    gate_tokens: tokens of the longest example that it takes.
    objective: what a map is judged by; "loss" always means its number.
    """

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
    objective: Objective = field(default_factory=GivenAnswers)

    @property
    def heads(self) -> list[Head]:
        """All (layer, KV head), ascending."""
        return [(layer, head) for layer in range(self.model.layers) for head in range(self.model.kv_heads)]

    def with_goal(self, goal: int) -> Study:
        """The same study, work file included, with another goal."""
        return replace(self, goal=goal)

    def each(self, label: str, measure: Callable[[int, Example], T], what: object) -> list[T]:
        """Measure every example, or take what the work file knows.

        label: shown on stderr.
        measure: called with number and example; returns JSON types.
        what: names the measurement in the work file.
        """
        found = []
        for number, example in self.progress(label, enumerate(self.data.examples), len(self.data.examples)):
            found.append(self.work.once([what, number], partial(measure, number, example)))
        return found

    def progress(self, label: str, items: Iterable[T], total: int) -> Iterator[T]:
        """Yield `items` and count them on stderr; if that is no terminal, only every 30 s."""
        pause = 0.0 if sys.stderr.isatty() else 30.0
        options = {"leave": False, "delay": pause, "mininterval": max(0.1, pause)}
        yield from tqdm(items, desc=label, total=total, file=sys.stderr, **options)

    def loss(self, local: Iterable[Head], window: int) -> tuple[float, float | None]:
        """Mean loss in nats per token under a map, and the share of examples answered exactly, None if none can be.

        Under `own` exactly means: as dense attention does, token for token.

        local: the local heads.
        window: in tokens.
        """
        heads = sorted(local)
        attend = under_map(heads, window, self.sink)

        def measure(_: int, example: Example) -> tuple[float, bool]:
            x, tables = self.model.embed(example.ids)
            return self.objective.loss(self.model, self.model.run(x, tables, attend), example)

        # All maps without local heads are one, whatever the window.
        what = ["loss", heads, window if heads else 0, self.sink if heads else 0]
        found = self.each(f"map with {len(self.heads) - len(heads)} global heads, window {window}", measure, what)
        exact = [
            right
            for (_, right), example in zip(found, self.data.examples, strict=True)
            if self.objective.counts(example)
        ]
        return sum(loss for loss, _ in found) / len(found), sum(exact) / len(exact) if exact else None

    def rises(self, label: str, base: Iterable[Head], candidates: Iterable[Head], window: int) -> dict[Head, float]:
        """Mean loss in nats per token for each candidate, when it is local beside the heads of `base`.

        label: shown on stderr.
        base: heads that are local in any case.
        candidates: heads to try, one at a time.
        window: in tokens.
        A candidate in layer l changes nothing below l, so on average half of a pass over the model is saved.
        """
        fixed, wanted = sorted(base), sorted(candidates)

        def measure(_: int, example: Example) -> list[float]:
            x, tables = self.model.embed(example.ids)
            below = under_map(fixed, window, self.sink)
            losses = []
            for layer in range(self.model.layers):
                for head in (head for head in wanted if head[0] == layer):
                    y = self.model.run(x.clone(), tables, under_map([*fixed, head], window, self.sink), first=layer)
                    losses.append(self.objective.loss(self.model, y, example)[0])
                self.model.run_layer(layer, x, tables, below)
            return losses

        found = self.each(label, measure, ["rises", fixed, wanted, window, self.sink])
        return {head: sum(row[i] for row in found) / len(found) for i, head in enumerate(wanted)}

    def matrix(self, values: Sequence[float] | Tensor) -> Matrix:
        """Numbers in the order of `heads` as [layers][KV heads]."""
        flat: Matrix = torch.as_tensor(values, dtype=torch.float64).view(self.model.layers, -1).tolist()
        return flat


def under_map(local: Iterable[Head], window: int, sink: int) -> Attend:
    """An attention function under a head map.

    local: heads that see sink and window; all others see everything.
    window: in tokens.
    sink: in tokens.
    """
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
    """Positions of a prompt, evenly spaced and ascending, the last one among them: int64.

    length: tokens of the prompt.
    count: positions at most.
    """
    if count >= length:
        return torch.arange(length)
    return length - 1 - (torch.arange(count) * length // count).flip(0)


def in_chunk(positions: Tensor, rows: Rows) -> tuple[Tensor, Tensor]:
    """The positions that lie in a chunk, R of them, and the chunk's queries there, [Q, R, D]."""
    inside = positions[(positions >= rows.begin) & (positions < rows.begin + rows.q.shape[1])]
    return inside, rows.q[:, inside - rows.begin]
