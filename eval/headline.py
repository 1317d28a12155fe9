# SPDX-License-Identifier: Apache-2.0
"""README's table: the figures that a newcomer asks for first, each from a raw file under eval/.

    python -m eval.headline            # print it
    python -m eval.headline --write    # write it into README.md, and those of eval.certified, eval.pretrained and eval.retrieved into docs/measurements.md

Every cell is computed from the file that its function reads. What a file does not record (the GPU of an accuracy run,
say) is said in the row's words, and in eval/NOTES.md.
"""

from __future__ import annotations

import argparse
import json
import lzma
import sys
from pathlib import Path
from typing import Any

from eval import certified, pretrained, retrieved
from eval.demo.settings import SERVERS as DEMO_SERVERS
from eval.gpu.table import read_all, rows, times, value
from eval.marked import with_block
from eval.servers import STOCK
from redknot_sglang.errors import CliError
from redknot_sglang.heads import load_head_map
from redknot_sglang.pool.sizing import class_bytes

# What the rows of the Qwen3-8B shape are taken from.
_SHAPE, _DEVICE, _MAP = "qwen3-8b", "NVIDIA H200", "one_of_eight"
_LENGTHS = (32768, 131072)
_HEAD = ("| | stock SGLang | SGLang --redknot | |", "|---|---|---|---|")


def headline(root: Path) -> str:
    """The table as Markdown.

    root: folder of the checkout. Raises KeyError or OSError if a result file is missing or lacks a figure.
    """
    results = root / "eval" / "results"
    lines = [
        *(_row(*cells) for cells in certified.lines(results)),
        _real_documents(results),
        _shape_documents(results),
        _held(results),
        _cold(_rows(results)),
    ]
    return "\n".join([*_HEAD, *lines])


def others(root: Path) -> str:
    """The table of what README's table leaves out: the embedded model, and policies that no pretrained model was certified with.

    root: folder of the checkout. Raises KeyError or OSError if a result file is missing or lacks a figure.
    """
    results, model = root / "eval" / "results", root / "eval" / "model"
    lines = [_exact(results), _segmented(model), _request_bytes(model), _fit(results), *_documents(results)]
    return "\n".join([*_HEAD, *lines])


def _read(path: Path) -> dict[str, Any]:
    content = path.read_bytes()
    found: dict[str, Any] = json.loads(lzma.decompress(content) if path.suffix == ".xz" else content)
    return found


def _row(*cells: str) -> str:
    return "| " + " | ".join(cells) + " |"


def _percent(share: float) -> str:
    """With two decimals where they say something."""
    text = f"{100 * share:.2f}"
    return text.removesuffix(".00")


def _rate(rate: float) -> str:
    return f"{rate:.2f}" if rate < 1 else f"{rate:.1f}"


def _points(difference: float) -> str:
    return "0" if round(difference, 2) == 0 else f"{difference:+.2f}"


def _exact(results: Path) -> str:
    files = [_read(results / f"gpu_accuracy_{side}.json") for side in ("stock", "redknot")]
    tasks = [list(file["tasks"].values()) for file in files]
    shares = [sum(task["correct"] for task in found) / sum(task["n"] for task in found) for found in tasks]
    return _row(
        f"Exact match at 4K tokens, {len(tasks[0])} tasks, n = {tasks[0][0]['n']} per task (H100, bf16)",
        *(f"{100 * share:.1f} %" for share in shares),
        f"{100 * (shares[1] - shares[0]):.1f} points",
    )


def _segmented(model: Path) -> str:
    policy = "blend:0.08"
    record = _read(model / "head_map.certificate.json")
    found, settings = record["policies"][policy], record["settings"]
    means = {cell["length"]: cell for cell in found["means"]}
    spanning = {cell["length"]: cell for cell in found["cells"] if cell["task"] == "crossdoc"}

    def each(texts: list[str]) -> str:
        return " / ".join(texts)

    lengths = settings["lengths"]
    dense, ours = ([_percent(means[length][side]["accuracy"]) for length in lengths] for side in ("dense", "policy"))
    lost, lost_spanning = (
        [_points(-cells[length]["loss_points"]) for length in lengths] for cells in (means, spanning)
    )
    return _row(
        f"Exact match in segmented mode, {len(settings['tasks'])} tasks, {each([f'{n // 1024}K' for n in lengths])} tokens, "
        f"n = {settings['n']} each (through the server, H200, bf16)",
        f"{each(dense)} %",
        f"{each(ours)} % (`{policy}`)",
        f"{each(lost)} points; of questions across documents alone {each(lost_spanning)}",
    )


def _request_bytes(model: Path) -> str:
    """Arithmetic: what pool/sizing.py reserves for the slots of such a request in 16 bits, beside stock's bytes."""
    config, head_map, tokens = _read(model / "config.json"), load_head_map(model / "head_map.json"), 4096
    groups = config["num_attention_heads"] // config["num_key_value_heads"]
    probed = next(layer for layer in range(head_map.num_layers) if head_map.num_global(layer))
    cost = class_bytes(head_map, config["head_dim"], 2, probe_width=groups * head_map.num_global(probed))
    stock = tokens * cost.stock
    ours = tokens * cost.global_slot + (head_map.sink + head_map.window) * cost.local
    return _row(
        "KV bytes that a 4K-token request needs, by arithmetic, what `blend` keeps for its probes included",
        f"{stock / 1e6:.1f} MB (bf16)",
        f"{ours / 1e6:.1f} MB",
        f"{100 * ours / stock:.0f} %",
    )


def _fit(results: Path) -> str:
    record = _read(results / "cpu_demo.json")
    settings, (stock, ours) = record["settings"], (record["servers"][side]["fit"] for side in DEMO_SERVERS)
    tokens = settings["fill_length"] + settings["fill_answer"]
    return _row(
        f"Requests that fit into the same KV bytes ({tokens:,} tokens each, CPU, float32; `make demo`)",
        str(stock),
        str(ours),
        f"{ours / stock:.1f}x",
    )


def _held(results: Path) -> str:
    found = _read(results / "gpu_concurrency.json")["concurrency"]
    stock, ours = found["stock"]["held"], found["redknot"]["held"]
    return _row(
        f"Qwen3-8B shape, {found['context'] // 1024}K-token requests held at once (one H200, "
        f"{found['kv_bytes'] / 2**30:.0f} GiB of KV)",
        str(stock),
        str(ours),
        f"{ours / stock:.1f}x",
    )


def _real_documents(results: Path) -> str:
    record = _read(results / certified.FOLDER / "qwen2.5-coder-1.5b-speed.json")
    medians = {(cell["side"], cell["documents"]): cell["median_s"] for cell in record["cells"]}
    counts = sorted({count for _, count in medians})
    sides = [[medians[side, count] for count in counts] for side in (STOCK, certified.DEFAULT)]
    stock, ours = (" / ".join(f"{1000 * seconds:.0f}" for seconds in side) for side in sides)
    return _row(
        f"Qwen2.5-Coder-1.5B, {' / '.join(map(str, counts))} cached documents of {record['options']['document_tokens']:,} tokens in a new "
        "order, time to first token (one H200)",
        f"{stock} ms",
        f"{ours} ms (`{certified.DEFAULT}`)",
        " / ".join(f"{a / b:.1f}x" for a, b in zip(*sides, strict=True)),
    )


def _shape_documents(results: Path) -> str:
    cells = _read(results / "floors_before_after_graphs.json.xz")["after_main"]["cells"]
    medians = {cell["case"]: cell["median"] for cell in cells if cell["step"] == "segments"}
    stock, ours = medians[""], medians[certified.DEFAULT]
    return _row(
        "Qwen3-8B shape, 16 cached documents of 2K tokens in a new order, time to first token (one H200)",
        f"{1000 * stock:,.0f} ms",
        f"{1000 * ours:.0f} ms (`{certified.DEFAULT}`)",
        f"{stock / ours:.1f}x",
    )


def _rows(results: Path) -> dict[tuple[str, int, str], Any]:
    return rows(read_all(results.glob("gpu_*.json.xz")), _SHAPE, _DEVICE)


def _cold(found: dict[tuple[str, int, str], Any]) -> str:
    cold = [found["cold", length, ""][_MAP] for length in _LENGTHS]
    return _row(
        "Qwen3-8B shape, cold prompt of 32K / 128K tokens, time to first token (one H200)",
        " / ".join(value(cell["stock"]) for cell in cold),
        " / ".join(value(cell) for cell in cold),
        " / ".join(times(cell) for cell in cold),
    )


def _documents(results: Path) -> list[str]:
    data = read_all(results.glob("gpu_*.json.xz"))
    found = rows(data, _SHAPE, _DEVICE)
    blend = found["segments", _LENGTHS[0], "blend:0.08"][_MAP]
    documents = "16 cached documents of 2K tokens in a new order, time to first token"
    lines = [
        _row(
            f"Qwen3-8B shape, {documents} (one H200, `blend:0.08`)",
            f"{1000 * blend['stock']['median']:,.0f} ms",
            f"{1000 * blend['median']:,.0f} ms",
            times(blend),
        ),
        _row(
            "the same, repair `boundary:16`, which loses most questions that span documents; every run",
            *_boundary_of_every_run(data),
        ),
    ]
    for policy, title in (
        (
            "blend:0.08",
            "Qwen3-8B shape, requests a second for a minute with 99 % of first tokens within 5 s, each of 16 of 32 cached "
            "documents of 2K tokens (one H200, `blend:0.08`)",
        ),
        ("boundary:16", "the same, repair `boundary:16`"),
    ):
        cell = found["load", _LENGTHS[0], policy][_MAP]
        sides = (cell["stock"], cell)
        kept = (f"{_rate(side['median'])}; {side['details']['failed_rate']:.2g} breaks it" for side in sides)
        lines.append(_row(title, *kept, times(cell)))
    return lines


def _boundary_of_every_run(data: list[dict[str, Any]]) -> tuple[str, str, str]:
    """Stock, ours and the ratio of every run that measured `boundary:16` at 32K tokens, as ranges."""
    stocks, ours = [], []
    for file in data:
        for number, run in enumerate(file["runs"]):
            if run["shape"] != _SHAPE or not run["hardware"].startswith(_DEVICE):
                continue
            cells = [cell for cell in file["cells"] if cell["run"] == number and cell["step"] == "segments"]
            cells = [cell for cell in cells if cell["length"] == _LENGTHS[0] and "superseded" not in cell]
            medians = {(cell["side"], cell["case"]): 1000 * cell["median"] for cell in cells}
            if (_MAP, "boundary:16") in medians:
                stocks.append(medians[STOCK, ""])
                ours.append(medians[_MAP, "boundary:16"])
    ratios = [stock / mine for stock, mine in zip(stocks, ours, strict=True)]
    return (
        f"{min(stocks):,.0f} to {max(stocks):,.0f} ms",
        f"{min(ours):.0f} to {max(ours):.0f} ms",
        f"{min(ratios):.0f} to {max(ratios):.0f}x ({len(ratios)} runs)",
    )


def pages(root: Path) -> dict[Path, str]:
    """README and docs/measurements.md of the checkout `root` as they should be. Raises as `headline`, or CliError."""
    readme, measurements = root / "README.md", root / "docs" / "measurements.md"
    results, page = root / "eval" / "results", measurements.read_text()
    for name, text in (
        ("others", others(root)),
        ("pretrained", pretrained.table(results)),
        ("certified", certified.table(results)),
        ("retrieved", retrieved.table(results)),
    ):
        page = with_block(page, name, text)
    return {readme: with_block(readme.read_text(), "headline", headline(root)), measurements: page}


def main() -> None:
    """Print the table, or write the pages; exit code 2 if a file cannot be read or lacks its markers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--write", action="store_true", help="write README.md and docs/measurements.md of this checkout"
    )
    root = Path(__file__).resolve().parents[1]
    try:
        if parser.parse_args().write:
            for page, text in pages(root).items():
                page.write_text(text)
        else:
            print(headline(root))
    except (CliError, OSError) as error:
        print(f"eval.headline: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
