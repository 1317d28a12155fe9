# SPDX-License-Identifier: Apache-2.0
"""`redknot profile`: find a head map for a model by measurement, with the evidence beside it."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from redknot_sglang import __version__
from redknot_sglang.cli.profile_options import METHODS, add_options
from redknot_sglang.errors import CliError
from redknot_sglang.heads.summary import one_line

if TYPE_CHECKING:
    from redknot_sglang.profile.data import Data
    from redknot_sglang.profile.study import Study


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
        "--data", required=True, metavar="D", help="`tasks` (generated), `random` (ids), or a JSONL of prompts"
    )
    parser.add_argument("--out", required=True, type=Path, metavar="F", help="the head map to write")
    parser.add_argument("--report", type=Path, metavar="F", help="write an HTML page of it as well")
    add_options(parser)
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """Profile, write, print what was written. Raises RedKnotError."""
    sizes = {name: _numbers(args, name) for name in ("lengths", "windows", "curve")}
    methods = tuple(dict.fromkeys(part.strip() for part in args.methods.split(",")))
    unknown = [name for name in methods if name not in METHODS]
    if unknown:
        raise CliError(f"--methods: unknown {unknown[0]!r}; there are {', '.join(METHODS)}")
    for option in ("n", "rows", "points", "gate_steps", "gate_tokens", "chunk"):
        if getattr(args, option) is not None and getattr(args, option) < 1:
            raise CliError(f"--{option.replace('_', '-')} must be at least 1, got {getattr(args, option)}")
    if args.sink < 0 or args.seed < 0:
        raise CliError("--sink and --seed must be at least 0")
    for option, file in (("--out", args.out), ("--report", args.report)):
        if file is not None and not file.absolute().parent.is_dir():
            raise CliError(f"{option}: there is no directory {file.absolute().parent}")
    import torch

    try:
        return _run(args, sizes, methods)
    except torch.OutOfMemoryError as error:
        raise CliError(
            "the GPU's memory is too small: give a smaller --chunk or shorter prompts (gates: --gate-tokens), or "
            "--device cpu; what was measured is kept"
        ) from error


def _run(args: argparse.Namespace, sizes: dict[str, tuple[int, ...]], methods: tuple[str, ...]) -> int:
    from transformers.utils import logging

    from redknot_sglang.profile.model import load_model
    from redknot_sglang.profile.run import Plan, allowed, profile, write
    from redknot_sglang.profile.select import Target
    from redknot_sglang.report import write_report

    longest = max(sizes["lengths"])
    Target(args.at or longest, args.target_kv, args.max_loss)  # before the model is loaded
    logging.disable_progress_bar()
    device = _device(args.device)
    chunk = args.chunk or (512 if device == "cpu" else 4096)
    model, shape, config_sha256 = load_model(args.model, device, args.dtype, args.load_format, chunk)
    data = _data(args, sizes["lengths"], model.model.config.vocab_size)
    longest = max(len(example.ids) for example in data.examples)
    target = Target(longest if args.at is None else args.at, args.target_kv, args.max_loss)
    study = _study(args, sizes, model, data, config_sha256)
    fewest = min(allowed(study, target).values())
    study = study.with_goal(len(study.heads) - fewest)
    described = {
        "name": args.model.resolve().name,
        "architecture": type(model.model).__name__,
        "model_type": shape.info.model_type,
        "num_layers": model.layers,
        "num_kv_heads": model.kv_heads,
        "num_q_heads": model.q_heads,
        "head_dim": model.head_dim,
        "config_sha256": config_sha256,
        "load_format": args.load_format,
        "dtype": str(model.dtype).removeprefix("torch."),
        "device": device.split(":")[0],
    }
    head_map, record, picture = profile(study, Plan(target, methods, args.reuse, args.points, described, shape.info))
    files = write(args.out, head_map, record, picture)
    point, dense = record["points"][record["chosen"]], record["dense"]
    print(f"wrote {files[0]}: {one_line(head_map)}")
    print(f"ranked by {point['method']}: {record['reason']}")
    print(
        f"KV bytes at {target.at} tokens: {100 * point['kv']:.1f} % of stock's; loss {point['loss']:.5f}, dense {dense['loss']:.5f}"
    )
    print(f"beside it: {', '.join(file.name for file in files[1:])}; certify it on other seeds before you serve it")
    if args.report is not None:
        write_report(args.report, profile=files[1], head_map=files[0])
        print(f"report: {args.report}")
    return 0


def _study(args: argparse.Namespace, sizes: dict[str, tuple[int, ...]], model: Any, data: Data, config: str) -> Study:
    import torch
    import transformers

    from redknot_sglang.profile.study import Study
    from redknot_sglang.work_file import WorkFile

    path = args.out.with_name(args.out.name + ".work")
    if args.fresh:
        path.unlink(missing_ok=True)
    # What a measurement depends on beside its own settings. The chunk only rounds differently, but it does that.
    versions = [__version__, torch.__version__, transformers.__version__]
    base = [*versions, config, _weights(args), str(model.dtype), str(model.device.type), model.chunk, data.sha256]
    return Study(
        model=model,
        data=data,
        work=WorkFile(path, base),
        sink=args.sink,
        windows=sizes["windows"],
        curve=tuple(sorted({*sizes["curve"], *sizes["windows"]})),
        rows=args.rows,
        goal=0,
        seed=args.seed,
        gate_steps=args.gate_steps,
        gate_l1=args.gate_l1,
        gate_rate=args.gate_rate,
        gate_tokens=args.gate_tokens,
    )


def _weights(args: argparse.Namespace) -> list[list[object]]:
    """What tells other weights in the same folder: hashing gigabytes at each start would cost more than it saves."""
    if args.load_format == "dummy":
        return []
    files = sorted(args.model.glob("*.safetensors")) + sorted(args.model.glob("*.bin"))
    return [[file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in files]


def _data(args: argparse.Namespace, lengths: tuple[int, ...], vocabulary: int) -> Data:
    from transformers import AutoTokenizer

    from redknot_sglang.measure.tasks import choose_tasks, load_tasks
    from redknot_sglang.profile.data import random_data, read_jsonl, task_data

    if args.data == "random":
        return random_data(vocabulary, lengths, args.n, args.seed)
    if args.data != "tasks" and not Path(args.data).is_file():
        raise CliError(f"--data: {args.data!r} is neither `tasks`, `random`, nor a file")
    try:
        tokenizer = AutoTokenizer.from_pretrained(args.model, local_files_only=True)
    except (OSError, ValueError) as error:
        raise CliError(f"{args.model}: transformers cannot load the tokenizer: {error}") from error
    if not tokenizer.is_fast:
        raise CliError(f"{args.model}: needs a fast tokenizer (tokenizer.json), which knows where its tokens stand")
    if args.data == "tasks":
        tasks = load_tasks(args.task_dir)
        return task_data(tasks, choose_tasks(tasks, args.tasks), lengths, args.n, args.seed, tokenizer)
    return read_jsonl(Path(args.data), tokenizer)


def _device(wanted: str) -> str:
    """The device to use. Raises CliError for a name that is none, and for a GPU that is not there."""
    import torch

    name, _, number = wanted.partition(":")
    if wanted not in ("auto", "cpu") and (name != "cuda" or (number and not number.isdecimal())):
        raise CliError(f"--device must be auto, cpu, cuda or cuda:N, got {wanted!r}")
    count = torch.cuda.device_count()
    if name == "cuda" and int(number or 0) >= count:
        raise CliError(f"--device {wanted}: torch sees {count} CUDA devices here")
    device = wanted if wanted != "auto" else "cuda" if count else "cpu"
    print(f"profiling on {device}", file=sys.stderr)
    return device


def _numbers(args: argparse.Namespace, name: str) -> tuple[int, ...]:
    """An option that is a comma-separated list, ascending and without repetition. Raises CliError."""
    try:
        found = tuple(sorted({int(part) for part in getattr(args, name).split(",")}))
    except ValueError:
        raise CliError(f"--{name} must be numbers separated by commas, got {getattr(args, name)!r}") from None
    if found[0] < 1:
        raise CliError(f"--{name} must be at least 1, got {found[0]}")
    return found
