# SPDX-License-Identifier: Apache-2.0
"""`redknot profile`: find a head map for a model by measurement, with the evidence beside it."""

from __future__ import annotations

import argparse
from dataclasses import fields
from pathlib import Path
from typing import Any

from redknot_sglang.cli.profile_options import METHODS, add_options
from redknot_sglang.errors import CliError
from redknot_sglang.heads.summary import one_line, retrieval_heads
from redknot_sglang.profile.options import Options

LOSSES = {"own": "divergence from dense attention's own answers", "answers": "loss"}


def add_parser(subparsers: Any) -> None:
    """Register `profile` on what `ArgumentParser.add_subparsers` returned."""
    parser = subparsers.add_parser(
        "profile",
        help="find a head map for a model by measurement",
        description="Measures which KV heads need the whole context and writes the head map that keeps to the target, "
        "with its evidence (.profile.json) and the Pareto curve (.pareto.json, .pareto.png) beside it. A run that was "
        "interrupted goes on when it is started again. docs/calibrate.md says what each method measures and costs.",
    )
    parser.add_argument(
        "model", metavar="MODEL", type=Path, help="folder of the model: config.json, weights, tokenizer"
    )
    parser.add_argument(
        "--data", required=True, metavar="D", help="`tasks` (generated), `random` (ids), a JSONL of prompts, or a .txt"
    )
    parser.add_argument("--out", required=True, type=Path, metavar="F", help="the head map to write")
    parser.add_argument("--report", type=Path, metavar="F", help="write an HTML page of it as well")
    add_options(parser)
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """Profile, write the map and its evidence, and print what was written. Raises RedKnotError."""
    options = _options(args)
    for option, file in (("--out", args.out), ("--report", args.report)):
        if file is not None and not file.absolute().parent.is_dir():
            raise CliError(f"{option}: there is no directory {file.absolute().parent}; make it first")
    import torch

    from redknot_sglang.profile.start import profile_model
    from redknot_sglang.report import write_report

    try:
        found = profile_model(options)
    except torch.OutOfMemoryError as error:
        raise CliError(
            "the GPU's memory is too small: give a smaller --chunk or shorter prompts (gates: --gate-tokens), or "
            "--device cpu; what was measured is kept"
        ) from error
    record, files = found.record, found.files
    point, dense = record["points"][record["chosen"]], record["dense"]
    print(f"wrote {files[0]}: {one_line(found.head_map)}")
    print(f"ranked by {point['method']}: {record['reason']}")
    print(
        f"KV bytes at {found.target.at} tokens: {100 * point['kv']:.1f} % of stock's; {LOSSES[options.target]} {point['loss']:.5f}, "
        f"dense {dense['loss']:.5f}"
    )
    if found.head_map.retrieval:
        print(f"retrieval heads (layer.query head): {retrieval_heads(found.head_map)}")
    print(f"beside it: {', '.join(file.name for file in files[1:])}; certify it on other seeds before you serve it")
    if args.report is not None:
        write_report(args.report, profile=files[1], head_map=files[0])
        print(f"report: {args.report}")
    return 0


def _options(args: argparse.Namespace) -> Options:
    """The options as data. Raises CliError for values that cannot be used."""
    methods = tuple(dict.fromkeys(part.strip() for part in args.methods.split(",")))
    lists = {name: _numbers(args, name) for name in ("lengths", "windows", "curve")}
    unknown = [name for name in methods if name not in METHODS]
    if unknown:
        raise CliError(f"--methods: unknown {unknown[0]!r}; use some of {', '.join(METHODS)}")
    for option in ("n", "rows", "points", "gate_steps", "gate_tokens", "chunk", "own_tokens"):
        if getattr(args, option) is not None and getattr(args, option) < 1:
            raise CliError(f"--{option.replace('_', '-')} must be at least 1, got {getattr(args, option)}")
    if args.sink < 0 or args.seed < 0 or args.retrieval < 0:
        raise CliError("--sink, --seed and --retrieval must be at least 0")
    # Options are named as the arguments are.
    plain = {field.name: getattr(args, field.name) for field in fields(Options)}
    return Options(**{**plain, **lists, "methods": methods})


def _numbers(args: argparse.Namespace, name: str) -> tuple[int, ...]:
    """An option that is a comma-separated list, ascending and without repetition. Raises CliError."""
    try:
        found = tuple(sorted({int(part) for part in getattr(args, name).split(",")}))
    except ValueError:
        raise CliError(f"--{name} must be numbers separated by commas, got {getattr(args, name)!r}") from None
    if found[0] < 1:
        raise CliError(f"--{name} must be at least 1, got {found[0]}")
    return found
