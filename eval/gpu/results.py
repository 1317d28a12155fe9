# SPDX-License-Identifier: Apache-2.0
"""The result file: runs (command, device, versions, flags of the servers) and the cells that they measured.

It is written after every cell, since a run on a lent GPU may be cut at any time; a later run adds its own to it. A name
that ends in .xz makes it a compressed one: the samples of a few load tests are hundreds of kilobytes of digits.
"""

from __future__ import annotations

import json
import lzma
import re
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from redknot_sglang.errors import CliError

BENCHMARK = "bench_gpu"
# Text without alignment: 3 % smaller than with the defaults.
_XZ = [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "lc": 2, "pb": 0, "nice_len": 273}]


@dataclass(frozen=True)
class Cell:
    """One measured figure. Its value is the median of the samples.

    step: what was measured, e.g. `cold` (docs/serving.md lists the steps).
    side: `stock`, or the name of a head map.
    case: tells cells of one step and length apart, e.g. the repair policy.
    length: tokens of the prompt or of the request; 0 if there is none.
    unit: of the samples, e.g. `s`.
    samples: at least one.
    details: what else was found, JSON types.
    """

    step: str
    side: str
    case: str
    length: int
    unit: str
    samples: Sequence[float]
    details: dict[str, Any] = field(default_factory=dict)

    @property
    def median(self) -> float:
        """Of the samples."""
        return statistics.median(self.samples)

    def as_json(self) -> dict[str, Any]:
        """Fields, median and n; floats have seven digits."""
        found: dict[str, Any] = rounded({**asdict(self), "n": len(self.samples), "median": self.median})
        return found


class Results:
    """A file that grows. `start_run` comes before the first cell."""

    def __init__(self, path: Path, append: bool) -> None:
        """append: keep what the file has. Raises CliError if it has something else, or exists and is not to be kept."""
        self.path = path
        self.data: dict[str, Any] = {"benchmark": BENCHMARK, "runs": [], "cells": []}
        if not path.exists():
            return
        if not append:
            raise CliError(f"{path} exists; add to it with --append, or name another file with --json")
        found = read(path)
        if found is None:
            raise CliError(f"{path} is not a result of {BENCHMARK}; name another file with --json")
        self.data = found

    def start_run(self, head: dict[str, Any]) -> None:
        """Cells from here on belong to a run with this head."""
        self.data["runs"].append({**head, "servers": {}, "errors": []})
        self.write()

    @property
    def run(self) -> dict[str, Any]:
        """The run under way."""
        return dict(self.data["runs"][-1])

    @property
    def errors(self) -> list[dict[str, str]]:
        """What went wrong in the run under way."""
        found: list[dict[str, str]] = self.data["runs"][-1]["errors"]
        return found

    def add_server(self, side: str, told: dict[str, Any]) -> None:
        """What a server of this run was started with."""
        self.data["runs"][-1]["servers"][side] = told
        self.write()

    def add(self, cell: Cell) -> None:
        """Note and write a cell."""
        self.data["cells"].append({"run": len(self.data["runs"]) - 1, **cell.as_json()})
        self.write()

    def fail(self, what: str, error: str) -> None:
        """Note and write what could not be measured."""
        self.errors.append({"what": what, "error": anonymous(error)})
        self.write()

    def write(self) -> None:
        """Runs and cells have a line each, so that a reader and a diff see them side by side."""
        lines = {key: ",\n".join(map(json.dumps, self.data[key])) for key in ("runs", "cells")}
        parts = [f'"benchmark": {json.dumps(self.data["benchmark"])}']
        parts += [f'"{key}": [\n{text}\n]' for key, text in lines.items()]
        text = "{" + ",\n".join(parts) + "}"
        # A run that is cut while it writes must not take the earlier cells with it.
        part = self.path.with_name(self.path.name + ".part")
        content = (text + "\n").encode()
        part.write_bytes(
            lzma.compress(content, check=lzma.CHECK_CRC32, filters=_XZ) if _is_compressed(self.path) else content
        )
        part.replace(self.path)


def rounded(value: Any) -> Any:
    """JSON data with seven significant digits of each float: no clock here is better, and the files are a third shorter."""
    if isinstance(value, float):
        return float(f"{value:.7g}")
    if isinstance(value, dict):
        return {key: rounded(entry) for key, entry in value.items()}
    return [rounded(entry) for entry in value] if isinstance(value, (list, tuple)) else value


def read(path: Path) -> dict[str, Any] | None:
    """Content of a result file; None if it is JSON of another kind. Raises CliError if it is not JSON."""
    try:
        content = path.read_bytes()
        found = json.loads(lzma.decompress(content) if _is_compressed(path) else content)
    except (OSError, ValueError, lzma.LZMAError) as error:
        raise CliError(f"{path} cannot be read: {error}") from error
    is_ours = isinstance(found, dict) and found.get("benchmark") == BENCHMARK
    return found if is_ours else None


def chart_path(path: Path) -> Path:
    """Where the picture of a result file is: x.webp for x.json and x.json.xz."""
    return (path.with_suffix("") if _is_compressed(path) else path).with_suffix(".webp")


def _is_compressed(path: Path) -> bool:
    return path.suffix == ".xz"


def anonymous(text: str) -> str:
    """`text` with the last part only of every absolute path, so that no result names a machine's folders."""
    return re.sub(r"(?<![\w.:/])/(?:[\w.+-]+/)+", "", text)
