# SPDX-License-Identifier: Apache-2.0
"""Join result files of eval/bench_repair.py that ran side by side over different seeds.

    python -m eval.merge_repair part0.json part1.json ... --json whole.json

Parts are given in the order of their first seeds. Prints the table of the whole.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from eval.bench_repair import print_table
from redknot_sglang.measure.statistics import wilson_interval


def merge(parts: list[dict[str, Any]]) -> dict[str, Any]:
    """One result whose cells have all parts' prompts. Raises ValueError if parts differ in more than their seeds."""
    options = [{k: v for k, v in part["options"].items() if k not in ("first", "json", "n")} for part in parts]
    if any(option != options[0] for option in options):
        raise ValueError("parts were measured with different options")
    whole = {**parts[0], "complete": all(part["complete"] for part in parts), "cells": []}
    whole["options"] = {**options[0], "parts": [[part["options"]["first"], part["options"]["n"]] for part in parts]}
    whole["offsets"] = {key: [x for part in parts for x in part["offsets"][key]] for key in parts[0]["offsets"]}
    for cells in zip(*(part["cells"] for part in parts), strict=True):
        cell = {key: cells[0][key] for key in ("task", "length", "policy")}
        if any(other[key] != value for other in cells for key, value in cell.items()):
            raise ValueError("parts have their cells in different orders")
        hits, n = "".join(part["hits"] for part in cells), sum(part["n"] for part in cells)
        low, high = wilson_interval(hits.count("1"), n)
        share = sum(part["computed_share"] * part["n"] for part in cells) / n
        figures = {"right": hits.count("1"), "n": n, "low": round(low, 4), "high": round(high, 4)}
        whole["cells"].append({**cell, **figures, "computed_share": round(share, 4), "hits": hits})
    return whole


def main() -> None:
    parser = argparse.ArgumentParser(description="Join result files of eval.bench_repair.")
    parser.add_argument("parts", type=Path, nargs="+")
    parser.add_argument("--json", type=Path, required=True)
    args = parser.parse_args()
    whole = merge([json.loads(part.read_text()) for part in args.parts])
    print_table(whole["cells"], argparse.Namespace(**whole["options"]))
    cells, offsets = (whole.pop(key) for key in ("cells", "offsets"))
    body = ",\n".join(json.dumps(cell) for cell in cells)
    args.json.write_text(f'{json.dumps(whole)[:-1]},\n"offsets": {json.dumps(offsets)},\n"cells": [\n{body}\n]}}\n')


if __name__ == "__main__":
    main()
