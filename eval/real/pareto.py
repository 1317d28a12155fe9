# SPDX-License-Identifier: Apache-2.0
"""Accuracy over KV bytes on a pretrained model: maps by its own behaviour, by given answers, random and reversed ones.

    python -m eval.real.pareto out/real/qwen2.5-coder-0.5b --calibration nq_calibration.jsonl --held-out nq_8k.jsonl --out pareto.json

Finds maps on the first prompts of one file at several budgets, and asks the model the prompts of the other one under each of them.
An answer is right if an accepted one stands in it, as `redknot certify` judges. All in transformers, greedily, in exact mode: no document is
reused. The result has a digit for each question and map, and each map's divergence from dense attention question by question.
Maps that no time is left for (`--seconds`) are named in `left_out`; the file is written after each map.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from eval.provenance import origin
from eval.real.answers import Said, Speaker
from eval.real.budgets import Candidate, best, controls, measure
from redknot_sglang.certify.questions import Question, load_tokenizer, read_data
from redknot_sglang.errors import CliError, RedKnotError
from redknot_sglang.heads.head_map import HeadMap
from redknot_sglang.measure.statistics import paired_difference_interval, wilson_interval
from redknot_sglang.measure.table import format_table
from redknot_sglang.profile.data import read_jsonl
from redknot_sglang.profile.methods import METHODS
from redknot_sglang.profile.model import ProfiledModel, load_model
from redknot_sglang.profile.objective import OWN, TARGETS, make_objective
from redknot_sglang.profile.own import end_tokens, own_study
from redknot_sglang.profile.study import Study
from redknot_sglang.work_file import WorkFile

BUDGETS = "0.25,0.375,0.5,0.625,0.75"


def find(args: argparse.Namespace, model: ProfiledModel, tokenizer: Any) -> tuple[list[Candidate], dict[str, Any], int]:
    """The maps to ask, the most wanted first; what was measured of each head, by target; and the tokens that bytes count at."""
    data = read_jsonl(args.calibration, tokenizer)
    data = replace(data, examples=data.examples[: args.calibrate])
    at = args.at or max(len(example.ids) for example in data.examples)
    maps: dict[str, list[Candidate]] = {}
    shown: dict[str, Any] = {}
    for target in args.targets:
        study = Study(
            model, data, WorkFile(None, 0), args.sink, args.windows, args.windows, 1024, 0,
            seed=args.seed, gate_steps=args.gate_steps, objective=make_objective(target),
        )  # fmt: skip
        if target == OWN:
            study = own_study(study, args.tokens)
        evidence = measure(study, args.methods, args.budgets, at)
        maps[target] = [best(study, evidence, budget, at) for budget in args.budgets]
        shown[target] = {
            "dense": study.loss((), args.windows[0])[0],
            "harm": {name: {str(w): m for w, m in e.harm.items()} for name, e in evidence.items()},
        }
        if target == args.targets[0]:
            like = [candidate for candidate in maps[target] if candidate.budget in args.controls]
            both = [controls(study, evidence, candidate, args.seed, at) for candidate in like]
            maps["random"], maps["reverse"] = ([pair[i] for pair in both] for i in range(2))
    first, *others = args.targets
    return [c for kind in (first, "random", *others, "reverse") for c in maps[kind]], shown, at


def judge(questions: Sequence[Question], said: Sequence[Said], dense: Sequence[Said], tokenizer: Any) -> dict[str, Any]:
    """What a map's answers are: by question whether it is right, whether it is dense attention's own, and the divergence."""
    texts = [tokenizer.decode(answer.answer, skip_special_tokens=True) for answer in said]
    right = [
        question.score is not None and question.score(text) for question, text in zip(questions, texts, strict=True)
    ]
    same = [a.answer == b.answer for a, b in zip(said, dense, strict=True)]
    return {
        "right": "".join(str(int(r)) for r in right),
        "same": "".join(str(int(s)) for s in same),
        "divergence": [round(answer.divergence, 6) for answer in said],
    }


def run(args: argparse.Namespace) -> int:
    """Find the maps, ask, and write the result. Raises RedKnotError."""
    begin = time.monotonic()
    # cuDNN's attention takes no expanded views with strides of 0.
    torch.backends.cuda.enable_cudnn_sdp(False)
    tokenizer = load_tokenizer(args.model)
    chunk = args.chunk or (512 if args.device == "cpu" else 8192)
    model, _, config = load_model(args.model, args.device, args.dtype, "auto", chunk)
    questions, described = read_data(args.held_out, tokenizer)
    questions = [question for question in questions if question.score is not None][: args.n]
    if not questions:
        raise CliError(f"{args.held_out} has no prompt with an answer in it")
    candidates, evidence, at = find(args, model, tokenizer)
    _save_maps(args, candidates)
    found = {
        **origin(args), "model": args.model.resolve().name, "config_sha256": config, "dtype": str(model.dtype), "at": at,
        "held_out": {**described, "asked": len(questions)}, "evidence": evidence,
        "maps": [candidate.to_dict() for candidate in candidates], "results": {}, "seconds": {}, "left_out": [],
    }  # fmt: skip
    found["seconds"]["calibration"] = round(time.monotonic() - begin, 1)
    with torch.no_grad():
        _ask(args, model, tokenizer, questions, candidates, found, begin)
    print(summary(found))
    return 0


def _ask(
    args: argparse.Namespace,
    model: ProfiledModel,
    tokenizer: Any,
    questions: Sequence[Question],
    candidates: Sequence[Candidate],
    found: dict[str, Any],
    begin: float,
) -> None:
    start = time.monotonic()
    speaker = Speaker(model, [q.ids for q in questions], args.tokens, end_tokens(model.model), args.batch)
    of_map = partial(judge, questions, dense=speaker.dense, tokenizer=tokenizer)
    found["results"]["dense"] = of_map(speaker.dense)
    known: dict[str, str] = {}
    took = time.monotonic() - start
    found["seconds"]["dense"] = round(took, 1)
    for candidate in candidates:
        name, fingerprint = candidate.name, candidate.head_map.fingerprint
        start = time.monotonic()
        if fingerprint in known:
            found["results"][name] = found["results"][known[fingerprint]]
        elif start - begin + 1.1 * took > args.seconds:
            found["left_out"].append(name)
            continue
        else:
            found["results"][name] = of_map(speaker.under(candidate.head_map))
            known[fingerprint] = name
            # The first map's passes over dense answers are the second map's as well.
            took = time.monotonic() - start
        found["seconds"][name] = round(time.monotonic() - start, 1)
        print(f"{name}: {found['seconds'][name]} s", file=sys.stderr, flush=True)
        args.out.write_text(json.dumps(found) + "\n")
    args.out.write_text(json.dumps(found) + "\n")


def summary(found: dict[str, Any]) -> str:
    """The result as a table."""
    kept = {candidate["name"]: candidate for candidate in found["maps"]}
    dense = found["results"]["dense"]["right"]
    rows = []
    for name, result in found["results"].items():
        right, n = result["right"], len(result["right"])
        pairs = [sum(a + b == pair for a, b in zip(dense, right, strict=True)) for pair in ("11", "10", "01", "00")]
        low, high = paired_difference_interval(*pairs)
        bounds = wilson_interval(right.count("1"), n)
        rows.append([
            name,
            f"{100 * kept[name]['kv']:.1f}" if name in kept else "100",
            f"{100 * right.count('1') / n:.1f} ({100 * bounds[0]:.1f} to {100 * bounds[1]:.1f})",
            f"{100 * (dense.count('1') - right.count('1')) / n:.1f} ({100 * low:.1f} to {100 * high:.1f})",
            f"{100 * result['same'].count('1') / n:.1f}",
            f"{sum(result['divergence']) / n:.4f}",
        ])  # fmt: skip
    head = ("map", "KV bytes, %", "right, %", "points lost (95 %)", "answers as dense, %", "divergence, nats")
    return format_table(head, rows) + (
        f"\nleft out for time: {', '.join(found['left_out'])}" if found["left_out"] else ""
    )


def _save_maps(args: argparse.Namespace, candidates: Sequence[Candidate]) -> None:
    """Each map as a file that a server takes, in `--maps`."""
    if args.maps is None:
        return
    args.maps.mkdir(parents=True, exist_ok=True)
    for candidate in candidates:
        head_map: HeadMap = candidate.head_map
        head_map.save(args.maps / f"{candidate.name.replace(' ', '_')}.json")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="eval.real.pareto", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path, metavar="MODEL", help="the model's folder")
    parser.add_argument("--calibration", type=Path, required=True, metavar="F", help="prompts on which maps are found")
    parser.add_argument("--held-out", type=Path, required=True, metavar="F", help="prompts that are asked")
    parser.add_argument("--out", type=Path, required=True, metavar="F.json", help="the result")
    parser.add_argument("--maps", type=Path, metavar="DIR", help="write the maps there")
    parser.add_argument("--budgets", type=_shares, default=BUDGETS, help="shares of KV bytes (%(default)s)")
    parser.add_argument(
        "--controls", type=_shares, default="0.25,0.5,0.75", help="budgets that get controls as well (%(default)s)"
    )
    parser.add_argument("--targets", type=_names(TARGETS), default="own,answers", help="(%(default)s)")
    parser.add_argument("--methods", type=_names(METHODS), default="ablation,greedy", help="(%(default)s)")
    parser.add_argument("--windows", type=_windows, default="256", help="tokens (%(default)s)")
    parser.add_argument("--sink", type=int, default=4, help="tokens (%(default)s)")
    parser.add_argument(
        "--at", type=int, help="tokens at which bytes count (default: the longest calibration prompt's)"
    )
    parser.add_argument("--calibrate", type=int, default=12, help="calibration prompts (%(default)s)")
    parser.add_argument("--n", type=int, default=300, help="held-out prompts (%(default)s)")
    parser.add_argument("--tokens", type=int, default=16, help="of an answer at most (%(default)s)")
    parser.add_argument("--gate-steps", type=int, default=300, help="(%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the random map (%(default)s)")
    parser.add_argument("--batch", type=int, default=32, help="prompts that answer together (%(default)s)")
    parser.add_argument("--seconds", type=float, default=460, help="start no map that would end later (%(default)s)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="(%(default)s)")
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float32"), help="(%(default)s)")
    parser.add_argument("--chunk", type=int, help="rows that pass a layer at a time (8192 on a GPU, 512 on a CPU)")
    return parser


def _shares(words: str) -> tuple[float, ...]:
    return tuple(float(word) for word in words.split(","))


def _windows(words: str) -> tuple[int, ...]:
    return tuple(sorted(int(word) for word in words.split(",")))


def _names(known: Sequence[str] | dict[str, Any]) -> Any:
    def read(words: str) -> tuple[str, ...]:
        names = tuple(words.split(","))
        if not set(names) <= set(known):
            raise argparse.ArgumentTypeError(f"use some of {', '.join(known)}")
        return names

    return read


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code 0 with the result written, 2 if it cannot be made."""
    try:
        return run(_parser().parse_args(argv))
    except (RedKnotError, ValueError) as error:
        print(f"eval.real.pareto: error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
