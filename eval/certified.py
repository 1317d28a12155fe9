# SPDX-License-Identifier: Apache-2.0
"""Accuracy of pretrained models through the server, from the certificates under eval/results/real.

Each file is what `redknot certify` wrote for one model and some files of questions (docs/real-models.md says how they are
made); NQ is Natural Questions. Beside the repair policies stand *controls*: the same prompts cut to documents that somebody
else chose, by BM25, by chance, by knowing the answer, or to none. They show that the measure can fail.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FOLDER = "real"
# The policy that README's table shows: the default of a map that has retrieval heads.
DEFAULT = "question:2"
_ORDER = (
    *("exact", "question:1", DEFAULT, "question:4", "boundary:16", "blend:0.08", "none"),
    *("bm25:2", "random:2", "oracle:2", "no-documents"),
)
_FILES = {"nq": "NQ", "musique": "MuSiQue"}


@dataclass(frozen=True)
class Cell:
    """What one policy or control answered to the questions of one file.

    model: as published.
    questions: name of the file, such as `nq_8192`: the source, and tokens of the longest prompt.
    name: of the policy or control.
    n: questions.
    dense: share of stock SGLang's answers that contain an accepted one.
    own: share of this policy's.
    lost: points lost, below 0 if gained. interval: of 95 %, paired.
    rows, flops: computed rows of prompts and FLOPs as shares of those of dense prefill, documents being cached.
    """

    model: str
    questions: str
    name: str
    n: int
    dense: float
    own: float
    lost: float
    interval: tuple[float, float]
    rows: float
    flops: float

    @property
    def place(self) -> tuple[int, int, int]:
        """Sorts questions by source and length, and in them policies and controls as tables show them."""
        source, length = self.questions.split("_")
        if self.name not in _ORDER:
            raise ValueError(f"{self.name!r} has no place in the tables; name it in eval/certified.py")
        return list(_FILES).index(source), int(length), _ORDER.index(self.name)


def cells(results: Path) -> list[Cell]:
    """All that the certificates say, by model and in the order of tables. Raises KeyError, ValueError for another file."""
    found = [cell for path in sorted((results / FOLDER).glob("*.certificate.json")) for cell in _read(path)]
    return sorted(found, key=lambda cell: (cell.model, *cell.place))


def _read(path: Path) -> Iterator[Cell]:
    record = json.loads(path.read_text())
    model = record["model"]["name"].replace("qwen", "Qwen").replace("coder", "Coder").replace("b", "B")
    files = [Path(entry["name"]).stem for entry in record["settings"]["data"]]
    for name, entry in (record["policies"] | record["controls"]).items():
        for cell in entry["cells"]:
            # With one file a certificate calls its questions `data`.
            yield _cell(model, files[0] if len(files) == 1 else cell["task"], name, cell)


def _cell(model: str, questions: str, name: str, cell: dict[str, Any]) -> Cell:
    low, high = cell["loss_interval_95"]
    return Cell(
        *(model, questions, name, cell["n"]),
        *(cell["dense"]["accuracy"], cell["policy"]["accuracy"], cell["loss_points"], (low, high)),
        *(cell["computed"]["rows"], cell["computed"]["flops"]),
    )


def lines(results: Path, name: str = DEFAULT) -> list[tuple[str, str, str, str]]:
    """Cells of README's rows, one row for each model: NQ at all lengths, stock beside a policy."""
    found = [cell for cell in cells(results) if cell.name == name and cell.questions.startswith("nq_")]
    made = []
    for model in dict.fromkeys(cell.model for cell in found):
        own = [cell for cell in found if cell.model == model]
        counts = sorted({cell.n for cell in own})
        made.append((
            f"{model}, NQ, {_each(_tokens(cell) for cell in own)} tokens, n = {_each(map(str, counts))} each: answers that "
            "contain an accepted one",
            f"{_each(f'{100 * cell.dense:.1f}' for cell in own)} %",
            f"{_each(f'{100 * cell.own:.1f}' for cell in own)} % (`{name}`)",
            f"{_each(_points(-cell.lost) for cell in own)} points; "
            f"{_each(f'{100 * cell.flops:.1f}' for cell in own)} % of a dense prefill's FLOPs",
        ))  # fmt: skip
    return made


def table(results: Path) -> str:
    """A table for each model and file of questions, as Markdown."""
    found = cells(results)
    parts = []
    for model, questions in dict.fromkeys((cell.model, cell.questions) for cell in found):
        own = [cell for cell in found if (cell.model, cell.questions) == (model, questions)]
        parts.append("\n".join(_table(model, own)))
    return "\n\n".join(parts)


def _table(model: str, own: Sequence[Cell]) -> Iterator[str]:
    first = own[0]
    source = _FILES[first.questions.split("_")[0]]
    yield f"| {model}, {source}, {_tokens(first)} tokens, n = {first.n} | right | against stock, points (95 %) | rows | FLOPs |"
    yield "|---|---|---|---|---|"
    yield f"| stock SGLang | {100 * first.dense:.1f} % | | 100 % | 100 % |"
    for cell in own:
        low, high = cell.interval
        yield (
            f"| `{cell.name}` | {100 * cell.own:.1f} % | {_points(-cell.lost)} ({-high:+.1f} to {-low:+.1f}) | "
            f"{100 * cell.rows:.1f} % | {100 * cell.flops:.1f} % |"
        )


def _tokens(cell: Cell) -> str:
    return f"{int(cell.questions.split('_')[1]) // 1024}K"


def _points(gained: float) -> str:
    return "0" if round(gained, 1) == 0 else f"{gained:+.1f}"


def _each(texts: Iterable[str]) -> str:
    return " / ".join(texts)
