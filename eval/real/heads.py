# SPDX-License-Identifier: Apache-2.0
"""Retrieval heads of a pretrained model: the best ten on calibration questions, and what they find in others.

    python -m eval.real.heads out/real/qwen2.5-coder-0.5b --calibration nq_calibration.jsonl --held-out nq_2k.jsonl --held-out nq_8k.jsonl \
        --out out/heads.json

A head finds a document if, of all documents of a prompt, one that tells an answer has the largest share of the attention of the
question's rows, everything computed as the server does under `question` (`redknot_sglang/profile/retrieval.py`). Beside single
heads stands the choice of the first four together, by the mean of their shares: how often a document that tells an answer is
among the first 1, 2 and 4. The mean of all heads is the control. All in transformers.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from eval.provenance import origin
from redknot_sglang.certify.questions import load_tokenizer
from redknot_sglang.errors import CliError, RedKnotError
from redknot_sglang.heads import HeadMap, load_head_map
from redknot_sglang.measure.statistics import wilson_interval
from redknot_sglang.measure.table import format_table
from redknot_sglang.profile.data import Example, read_jsonl
from redknot_sglang.profile.model import ProfiledModel, load_model
from redknot_sglang.profile.retrieval import document_wants

BEST, TOGETHER = 10, 4
FIRST = (1, 2, 4)


def ranks(wants: Tensor, holders: Sequence[int]) -> Tensor:
    """How many documents are wanted more than the best of `holders`: int64, the last dimension of `wants` [..., documents] gone."""
    best = wants[..., list(holders)].amax(-1, keepdim=True)
    return (wants > best).sum(-1)


def look(model: ProfiledModel, examples: Sequence[Example], until: float) -> list[Tensor]:
    """Of each example the shares of its documents, float32 [layers, query heads, documents] on the CPU; as many as time allows."""
    found = []
    with torch.no_grad():
        for example in examples:
            if time.monotonic() > until:
                break
            found.append(document_wants(model, example).cpu())
    return found


def chosen(wants: Tensor, heads: Sequence[tuple[int, int]]) -> Tensor:
    """The mean of the shares at some heads: [documents]."""
    return torch.stack([wants[layer, head] for layer, head in heads]).mean(0)


def told(wants: Sequence[Tensor], holders: Sequence[Sequence[int]], heads: Sequence[tuple[int, int]]) -> dict[str, Any]:
    """What some heads find together, and all heads: of all questions, how many have a holder among the first N."""
    together = torch.stack([ranks(chosen(one, heads), held) for one, held in zip(wants, holders, strict=True)])
    control = torch.stack([ranks(one.mean((0, 1)), held) for one, held in zip(wants, holders, strict=True)])
    return {
        "n": len(wants),
        "together": {str(n): int((together < n).sum()) for n in FIRST},
        "all_heads": {str(n): int((control < n).sum()) for n in FIRST},
    }


def usable(path: Path, tokenizer: Any, count: int) -> list[Example]:
    """Those of the first `count` examples of which some documents tell an answer and some do not. Raises CliError if there is none."""
    examples = [e for e in read_jsonl(path, tokenizer, count).examples if 0 < len(e.holders) < len(e.segments)]
    if not examples:
        raise CliError(f"{path} has no example with documents of which some, but not all, tell an answer")
    return examples


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Find the heads, look at the other files, write. Raises RedKnotError."""
    until = time.monotonic() + args.seconds
    torch.backends.cuda.enable_cudnn_sdp(False)
    tokenizer = load_tokenizer(args.model)
    model, _, config = load_model(args.model, args.device, args.dtype, "auto", args.chunk)
    head_map = load_head_map(args.head_map) if args.head_map else None
    calibration = usable(args.calibration, tokenizer, args.calibrate)
    seen = look(model, calibration, until)
    calibration = calibration[: len(seen)]
    by_head = torch.stack([ranks(w, e.holders) for w, e in zip(seen, calibration, strict=True)]).double()
    order = (1 / (1 + by_head)).mean(0).flatten().argsort(descending=True, stable=True).tolist()
    best = [divmod(index, model.q_heads) for index in order[:BEST]]
    result: dict[str, Any] = {
        **origin(args), "model": args.model.resolve().name, "config_sha256": config, "best": [list(head) for head in best],
        "global": [_is_global(head_map, head, model) for head in best],
        "calibration": {"name": args.calibration.name, **_single(by_head, best)}, "held_out": {},
    }  # fmt: skip
    for path in args.held_out:
        examples = usable(path, tokenizer, args.n)
        wants = look(model, examples, until)
        if not wants:
            continue
        holders = [example.holders for example in examples[: len(wants)]]
        found = torch.stack([ranks(one, held) for one, held in zip(wants, holders, strict=True)]).double()
        result["held_out"][path.stem] = {**_single(found, best), **told(wants, holders, best[:TOGETHER])}
        args.out.write_text(json.dumps(result, indent=1) + "\n")
    return result


def _single(found: Tensor, heads: Sequence[tuple[int, int]]) -> dict[str, Any]:
    """found: ranks [questions, layers, query heads]."""
    return {"n": len(found), "first": [int((found[:, layer, head] == 0).sum()) for layer, head in heads]}


def _is_global(head_map: HeadMap | None, head: tuple[int, int], model: ProfiledModel) -> bool | None:
    if head_map is None:
        return None
    layer, query = head
    return head_map.is_global[layer][query // (model.q_heads // model.kv_heads)]


def table(result: dict[str, Any]) -> str:
    """Percent of the questions that a head finds the document of, a head a line; then heads together."""
    files = {result["calibration"]["name"]: result["calibration"], **result["held_out"]}
    head = ["head", "global", *(f"{name}, n = {found['n']}" for name, found in files.items())]
    lines = [
        [f"{layer}.{query}", {None: "", True: "yes", False: "no"}[result["global"][at]],
         *(f"{100 * found['first'][at] / found['n']:.0f}" for found in files.values())]
        for at, (layer, query) in enumerate(result["best"])
    ]  # fmt: skip
    text = format_table(head, lines)
    more = []
    for name, found in result["held_out"].items():
        for who in ("together", "all_heads"):
            cells = []
            for n in FIRST:
                low, high = wilson_interval(found[who][str(n)], found["n"])
                cells.append(f"{100 * found[who][str(n)] / found['n']:.0f} ({100 * low:.0f} to {100 * high:.0f})")
            more.append([name, f"first {TOGETHER}" if who == "together" else "all heads", *cells])
    return text + "\n\n" + format_table(["questions", "heads", *(f"among the first {n}" for n in FIRST)], more)


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code 0 with the file written, 2 for what cannot be measured."""
    parser = argparse.ArgumentParser(
        prog="eval.real.heads", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path, help="folder of a model, as `make real` writes it")
    parser.add_argument(
        "--calibration", type=Path, required=True, metavar="F.jsonl", help="questions that choose heads"
    )
    parser.add_argument(
        "--held-out", type=Path, action="append", default=[], metavar="F.jsonl", help="others; repeatable"
    )
    parser.add_argument("--head-map", type=Path, metavar="F", help="to say which of the heads are global in it")
    parser.add_argument("--calibrate", type=int, default=64, metavar="N", help="questions that choose (%(default)s)")
    parser.add_argument("-n", type=int, default=300, metavar="N", help="of each other file (%(default)s)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="bfloat16")
    parser.add_argument("--chunk", type=int, default=8192, help="rows at a time (%(default)s)")
    parser.add_argument("--seconds", type=float, default=460, help="no question is begun later (%(default)s)")
    parser.add_argument("--out", type=Path, required=True, metavar="F.json")
    args = parser.parse_args(argv)
    try:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        print(table(run(args)))
    except RedKnotError as error:
        print(f"eval.real.heads: error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
