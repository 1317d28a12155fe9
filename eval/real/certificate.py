# SPDX-License-Identifier: Apache-2.0
"""The certificates of pretrained models in eval/results/real, made again by one command on a GPU.

    python -m eval.real.certificate qwen2.5-coder-1.5b --questions nq-open-oracle.jsonl.gz --out out/certificate

Fetches and converts the model (`make real`) unless it is there, makes held-out questions of each length, takes the map from
eval/results/real, and runs `redknot certify` with the controls. What is interrupted goes on where it was when the command is given
again. Certificate, questions and servers' logs lie in `--out`. docs/real-models.md says where the questions are to be had.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from eval.real import questions
from eval.real.get import get
from redknot_sglang.cli.main import main as redknot
from redknot_sglang.errors import RedKnotError

ROOT = Path(__file__).resolve().parents[1]
# Stock SGLang's fastest attention for the model's head size.
STOCK_BACKENDS = {"qwen2.5-coder-0.5b": "triton", "qwen2.5-coder-1.5b": "fa3"}
CONTROLS = "bm25:2,random:2,oracle:2,no-documents"
ANSWER_TOKENS = 16


def commands(args: argparse.Namespace, model: Path) -> tuple[list[list[str]], list[str]]:
    """Arguments of `eval.real.questions` for each length, and of `redknot`.

    args: of this command. model: folder of the converted model.
    """
    files = [args.out / f"nq_{length}.jsonl" for length in args.lengths]
    asked = [
        [str(args.questions), f"--model={model}", f"--length={length}", f"--n={args.n}", f"--out={file}"]
        for length, file in zip(args.lengths, files, strict=True)
    ]
    longest = max(args.lengths) + ANSWER_TOKENS + 64
    certify = [
        *("certify", str(model), f"--head-map={args.out / 'map.json'}", "--tasks=none"),
        *(f"--data={file}" for file in files),
        *(f"--repair={args.repair}", f"--controls={CONTROLS}", f"--max-tokens={ANSWER_TOKENS}", "--min-dense=10"),
        *("--device=cuda", f"--logs={args.out / 'logs'}", f"--concurrency={args.concurrency}"),
        f"--stock-flags=--attention-backend {args.stock_backend or STOCK_BACKENDS[args.model]}",
        *("--", f"--context-length={longest}", *args.flag),
    ]
    return asked, certify


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code of `redknot certify`: 1 if a policy loses too much; 2 for what cannot be measured."""
    parser = argparse.ArgumentParser(
        prog="eval.real.certificate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", choices=sorted(STOCK_BACKENDS))
    parser.add_argument("--questions", type=Path, required=True, metavar="FILE", help="Natural Questions, as published")
    parser.add_argument("--stock-backend", metavar="NAME", help="attention of stock SGLang (its fastest for 16-bit KV)")
    parser.add_argument("--lengths", default="2048,8192,16384", metavar="N,N", help="tokens of prompts (%(default)s)")
    parser.add_argument("--n", type=int, default=300, metavar="N", help="questions of each length (%(default)s)")
    parser.add_argument("--repair", default="question:2", metavar="P,P", help="repair policies (%(default)s)")
    parser.add_argument("--concurrency", type=int, default=32, help="requests in flight (%(default)s)")
    parser.add_argument(
        "--flag", action="append", default=[], help="one more flag of both servers, as --x=y; repeatable"
    )
    parser.add_argument("--models", type=Path, default=Path("out/real"), help="where models lie (%(default)s)")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    args = parser.parse_args(argv)
    try:
        args.lengths = [int(word) for word in args.lengths.split(",")]
    except ValueError:
        parser.error(f"--lengths must be numbers separated by commas, got {args.lengths}")
    args.out.mkdir(parents=True, exist_ok=True)
    try:
        model = get(args.model, args.models)
    except (RedKnotError, OSError) as error:
        print(f"eval.real.certificate: error: {error}", file=sys.stderr)
        return 2
    shutil.copy(ROOT / "results" / "real" / f"{args.model}.json", args.out / "map.json")
    asked, certify = commands(args, model)
    for words in asked:
        if questions.main(words) != 0:
            return 2
    return redknot(certify)


if __name__ == "__main__":
    sys.exit(main())
