# SPDX-License-Identifier: Apache-2.0
"""One profile from its options to the files beside the map: loads the model, makes the data, measures, writes."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoTokenizer
from transformers.utils import logging

from redknot_sglang import __version__
from redknot_sglang.errors import ProfileError
from redknot_sglang.heads.head_map import HeadMap
from redknot_sglang.measure.tasks import choose_tasks, load_tasks
from redknot_sglang.profile.data import Data, random_data, read_jsonl, read_text_file, task_data
from redknot_sglang.profile.model import ProfiledModel, load_model
from redknot_sglang.profile.objective import OWN, make_objective
from redknot_sglang.profile.options import Options
from redknot_sglang.profile.own import own_study
from redknot_sglang.profile.run import Plan, allowed, profile, write
from redknot_sglang.profile.select import Target
from redknot_sglang.profile.study import Study
from redknot_sglang.work_file import WorkFile


@dataclass(frozen=True)
class Outcome:
    """What a profile found.

    head_map: the map that was chosen.
    record: the profile, see `record.py`.
    target: what the map keeps to.
    files: all that were written, the map first and the profile second.
    """

    head_map: HeadMap
    record: dict[str, Any]
    target: Target
    files: list[Path]


def profile_model(options: Options) -> Outcome:
    """Load the model, make the examples, measure, and write the map and what belongs to it. Progress goes to stderr.

    options: of the command.
    Raises RedKnotError for what cannot be profiled or written, and torch.OutOfMemoryError. What was measured by then is kept
    in the work file.
    """
    longest = max(options.lengths)
    # Made once here, before the model is loaded, so that a wrong target is refused at once.
    Target(options.at or longest, options.target_kv, options.max_loss)
    logging.disable_progress_bar()
    device = _device(options.device)
    chunk = options.chunk or (512 if device == "cpu" else 4096)
    model, shape, config_sha256 = load_model(options.model, device, options.dtype, options.load_format, chunk)
    data = _data(options, model.model.config.vocab_size)
    study = _study(options, model, data, config_sha256)
    if options.target == OWN:
        study = own_study(study, options.own_tokens)
    longest = max(len(example.ids) for example in study.data.examples)
    target = Target(longest if options.at is None else options.at, options.target_kv, options.max_loss)
    fewest = min(allowed(study, target).values())
    study = study.with_goal(len(study.heads) - fewest)
    described = {
        "name": options.model.resolve().name,
        "architecture": type(model.model).__name__,
        "model_type": shape.info.model_type,
        "num_layers": model.layers,
        "num_kv_heads": model.kv_heads,
        "num_q_heads": model.q_heads,
        "head_dim": model.head_dim,
        "config_sha256": config_sha256,
        "load_format": options.load_format,
        "dtype": str(model.dtype).removeprefix("torch."),
        "device": device.split(":")[0],
    }
    plan = Plan(
        target,
        options.methods,
        options.reuse,
        options.points,
        described,
        shape.info,
        options.retrieval,
        options.own_tokens,
    )
    head_map, record, picture = profile(study, plan)
    return Outcome(head_map, record, target, list(write(options.out, head_map, record, picture)))


def _study(options: Options, model: ProfiledModel, data: Data, config: str) -> Study:
    path = options.out.with_name(options.out.name + ".work")
    if options.fresh:
        path.unlink(missing_ok=True)
    # What a measurement depends on beside its own settings. The chunk is among it because it changes rounding.
    versions = [__version__, torch.__version__, transformers.__version__]
    base: list[object] = [
        *versions,
        config,
        _weights(options),
        str(model.dtype),
        str(model.device.type),
        model.chunk,
        data.sha256,
    ]
    if options.target == OWN:
        base += [OWN, options.own_tokens]
    return Study(
        model=model,
        data=data,
        work=WorkFile(path, base),
        sink=options.sink,
        windows=options.windows,
        curve=tuple(sorted({*options.curve, *options.windows})),
        rows=options.rows,
        goal=0,
        seed=options.seed,
        gate_steps=options.gate_steps,
        gate_l1=options.gate_l1,
        gate_rate=options.gate_rate,
        gate_tokens=options.gate_tokens,
        objective=make_objective(options.target),
    )


def _weights(options: Options) -> list[list[object]]:
    """Names, sizes and times of the weight files, by which other weights in the same folder are noticed.

    Hashing gigabytes at each start would take more time than the work file saves.
    """
    if options.load_format == "dummy":
        return []
    files = sorted(options.model.glob("*.safetensors")) + sorted(options.model.glob("*.bin"))
    return [[file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in files]


def _data(options: Options, vocabulary: int) -> Data:
    if options.data == "random":
        return random_data(vocabulary, options.lengths, options.n, options.seed)
    if options.data != "tasks" and not Path(options.data).is_file():
        raise ProfileError(f"--data: {options.data!r} is neither `tasks` nor `random` nor a file; check the path")
    try:
        tokenizer = AutoTokenizer.from_pretrained(options.model, local_files_only=True)
    except (OSError, ValueError) as error:
        raise ProfileError(f"{options.model}: transformers cannot load the tokenizer: {error}") from error
    if not tokenizer.is_fast:
        raise ProfileError(
            f"{options.model}: needs a fast tokenizer, which knows where its tokens stand in the text: add its tokenizer.json"
        )
    if options.data == "tasks":
        tasks = load_tasks(options.task_dir)
        names = choose_tasks(tasks, options.tasks)
        return task_data(tasks, names, options.lengths, options.n, options.seed, tokenizer)
    if Path(options.data).suffix == ".txt":
        return read_text_file(Path(options.data), options.lengths, options.n, tokenizer)
    return read_jsonl(Path(options.data), tokenizer)


def _device(wanted: str) -> str:
    """The device for `--device`. Raises ProfileError for an unknown name, and for a GPU that is not there."""
    name, _, number = wanted.partition(":")
    if wanted not in ("auto", "cpu") and (name != "cuda" or (number and not number.isdecimal())):
        raise ProfileError(f"--device must be auto, cpu, cuda or cuda:N, got {wanted!r}")
    count = torch.cuda.device_count()
    if name == "cuda" and int(number or 0) >= count:
        raise ProfileError(f"--device {wanted}: torch sees {count} CUDA devices here; use cpu, or a number below that")
    device = wanted if wanted != "auto" else "cuda" if count else "cpu"
    print(f"profiling on {device}", file=sys.stderr)
    return device
