# SPDX-License-Identifier: Apache-2.0
"""The GPU tables of docs/measurements.md, from the result files of eval/bench_gpu.py.

    python -m eval.gpu.table eval/results/gpu_*.json.xz                                # print them
    python -m eval.gpu.table eval/results/gpu_*.json.xz --page docs/measurements.md    # write them between its markers

One table for each model shape and device, since figures of different devices do not compare. A ratio is stock's median
over the map's for times, the map's over stock's for counts and rates, both from the same run. Rates under load are searched
in coarse steps: there the ratio is what the map served over the lowest rate at which stock broke the limit, which is a bound.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from eval.gpu.results import read
from eval.marked import with_block
from eval.servers import STOCK
from redknot_sglang.errors import CliError

PART = "bench-gpu"
"""Name of the page's generated part."""
ORDER = ("cold", "prefix", "segments", "decode", "concurrency", "serving", "load")
# Stock's cell has no case where the case is RedKnot's repair policy.
_POLICY_STEPS = ("segments", "load")
_MORE_IS_BETTER = ("concurrency", "serving", "load")

Cells = dict[str, dict[str, Any]]
"""Cells of one row by side."""


def tables(results: Sequence[dict[str, Any]]) -> str:
    """All tables of these result files as Markdown; empty where there is nothing to compare."""
    parts = []
    for shape, device in dict.fromkeys(group for data in results for group in map(_group, data["runs"])):
        found = rows(results, shape, device)
        parts += [part for part in (_named(found, shape, device), _generated(found, shape, device)) if part]
    return "\n\n".join(parts)


def rows(results: Iterable[dict[str, Any]], shape: str, device: str) -> dict[tuple[str, int, str], Cells]:
    """Cells by (step, length, case) and side, with stock's of the same run in each; later runs replace earlier ones."""
    found: dict[tuple[str, int, str], dict[str, tuple[dict[str, Any], dict[str, Any]]]] = {}
    for data in results:
        for number, run in enumerate(data["runs"]):
            if _group(run) != (shape, device):
                continue
            cells = [cell for cell in data["cells"] if cell["run"] == number and cell["step"] in ORDER]
            # Kept for the record: measured in a way, or of code, that a later run has put right.
            cells = [cell for cell in cells if "superseded" not in cell]
            stock = {_stock_key(cell): cell for cell in cells if cell["side"] == STOCK}
            for cell in cells:
                beside = stock.get(_stock_key(cell))
                if cell["side"] != STOCK and beside is not None:
                    key = cell["step"], cell["length"], cell["case"]
                    found.setdefault(key, {})[cell["side"]] = (cell, beside)
    ordered = sorted(found, key=lambda key: (ORDER.index(key[0]), key[1], _natural(key[2])))
    return {key: {side: {**cell, "stock": beside} for side, (cell, beside) in found[key].items()} for key in ordered}


def ratio(cell: dict[str, Any]) -> float:
    """How many times better than stock a cell of `rows` is."""
    ours, stock = cell["median"], cell["stock"]["median"]
    if cell["step"] == "load":
        stock = cell["stock"]["details"]["failed_rate"] or stock
    return float(ours / stock if cell["step"] in _MORE_IS_BETTER else stock / ours)


def times(cell: dict[str, Any]) -> str:
    """`ratio` in three digits; in two, as a bound, for `load`, whose rates are searched coarsely."""
    found, is_load = ratio(cell), cell["step"] == "load"
    shown = f"{found:.{max(0, (2 if is_load else 3) - len(str(int(found))))}f}x"
    return f"at least {shown}" if is_load and cell["stock"]["details"]["failed_rate"] else shown


def _group(run: dict[str, Any]) -> tuple[str, str]:
    return run["shape"], run["hardware"].split(",")[0]


def _stock_key(cell: dict[str, Any]) -> tuple[str, int, str]:
    return cell["step"], cell["length"], "" if cell["step"] in _POLICY_STEPS else cell["case"]


def _natural(text: str) -> list[tuple[int, str]]:
    """Sorts `batch 8` before `batch 64`."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", text)]


def is_generated(side: str) -> bool:
    """Whether a map was made from a share of global heads and a window (eval/gpu/maps.py)."""
    return side.startswith("rho")


def _named(found: dict[tuple[str, int, str], Cells], shape: str, device: str) -> str:
    """What is measured down, stock and the maps that have a file across."""
    sides = list(dict.fromkeys(side for cells in found.values() for side in cells if not is_generated(side)))
    if not sides:
        return ""
    lines = [f"| {shape}, {device} | stock | " + " | ".join(f"`{side}`" for side in sides) + " |"]
    lines.append("|---" * (2 + len(sides)) + "|")
    least = []
    for key, cells in found.items():
        shown = {side: cell for side, cell in cells.items() if side in sides}
        if not shown:
            continue
        stocks = {id(cell["stock"]): cell["stock"] for cell in shown.values()}
        # Maps of different runs have different stock cells; the ratio is of the map's own.
        latest = list(stocks.values())[-1]
        texts = [f"{value(shown[side])}, {times(shown[side])}" if side in shown else "" for side in sides]
        lines.append(f"| {title(*key, latest)} | {value(latest)} | " + " | ".join(texts) + " |")
        least += [cell["n"] for cell in (*shown.values(), *stocks.values()) if cell["step"] not in _MORE_IS_BETTER]
    note = f"\n\nTimes are medians of at least {min(least)}." if least else ""
    return "\n".join(lines) + note


def _generated(found: dict[tuple[str, int, str], Cells], shape: str, device: str) -> str:
    """Cold prompts under maps made from a share of global heads and a window: a line for each map."""
    cold = {key[1]: cells for key, cells in found.items() if key[0] == "cold"}
    sides = sorted({side for cells in cold.values() for side in cells if is_generated(side)}, key=_natural)
    lengths = [length for length, cells in cold.items() if any(map(is_generated, cells))]
    if not sides:
        return ""
    lines = [f"| {shape}, {device}: cold prompt, time to first token | " + " | ".join(map(tokens, lengths)) + " |"]
    lines.append("|---" * (1 + len(lengths)) + "|")
    for side in sides:
        cells = [cold[length].get(side) for length in lengths]
        texts = [f"{value(cell)}, {times(cell)}" if cell else "" for cell in cells]
        lines.append(f"| `{side}` | " + " | ".join(texts) + " |")
    return "\n".join(lines)


def title(step: str, length: int, case: str, stock: dict[str, Any]) -> str:
    """What a row measures."""
    size, details = tokens(length), stock["details"]
    if step == "cold":
        return f"cold prompt of {size} tokens, time to first token"
    if step == "prefix":
        return f"{size} tokens cached, {case.removeprefix('+')} new, time to first token"
    if step == "segments":
        return f"cached documents in a new order, {size} tokens, `{case}`, time to first token"
    if step == "decode":
        batch, distinct = int(case.removeprefix("batch ")), details["distinct_prompts"]
        shared = (
            ""
            if distinct >= batch
            else f", all of {distinct if distinct > 1 else 'one'} cached prompt{'s' * (distinct > 1)}"
        )
        return f"decode step, {case}, {size} tokens each{shared}"
    if step == "concurrency":
        return f"requests of {size} tokens held at once in {case} of KV"
    if step == "serving":
        return f"requests a second of `sglang.benchmark.serving`, {size} tokens in, out {case}"
    few = min(probe["n"] for probe in details["probes"])
    limit = f"p99 of the time to first token under {details['limit_s']:g} s"
    broke = f"; stock broke it at {details['failed_rate']:.2f}" if details["failed_rate"] else ""
    return (
        f"requests served a second at the highest rate tried with {limit}, {size} tokens of cached documents, `{case}`"
        f" ({few} or more in a probe{broke})"
    )


def tokens(length: int) -> str:
    """8192 as 8K."""
    return f"{length // 1024}K" if length % 1024 == 0 else f"{length:,}"


def value(cell: dict[str, Any]) -> str:
    """The median in its unit."""
    median, unit = cell["median"], cell["unit"]
    if unit == "s":
        return f"{median:.2f} s" if median >= 1 else f"{1000 * median:.0f} ms"
    if unit == "s/step":
        return f"{1000 * median:.2f} ms"
    return f"{median:.0f}" if unit == "requests" else f"{median:.2f}"


def read_all(paths: Iterable[Path]) -> list[dict[str, Any]]:
    """Result files of bench_gpu among `paths`, in the order of their names. Raises CliError if one cannot be read."""
    found = [read(path) for path in sorted(paths)]
    return [data for data in found if data is not None]


def main() -> None:
    """Print or write; exit code 2 if a file cannot be read."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "results", nargs="+", type=Path, help="JSON files, compressed or not; those of other benchmarks are passed over"
    )
    parser.add_argument("--page", type=Path, help="page whose part between the bench-gpu markers is written")
    args = parser.parse_args()
    try:
        text = tables(read_all(args.results))
        if args.page is None:
            print(text)
        else:
            args.page.write_text(with_block(args.page.read_text(), PART, text))
    except CliError as error:
        print(f"eval.gpu.table: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
