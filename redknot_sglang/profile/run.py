# SPDX-License-Identifier: Apache-2.0
"""A profile from evidence to files: measure, propose maps, measure these, choose one, write it down."""

from __future__ import annotations

import json
import platform
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers

from redknot_sglang import __version__
from redknot_sglang.errors import ProfileError
from redknot_sglang.heads.files import write_bytes
from redknot_sglang.heads.head_map import HeadMap
from redknot_sglang.heads.model_info import ModelInfo
from redknot_sglang.heads.provenance import provenance
from redknot_sglang.profile.chart import draw_pareto
from redknot_sglang.profile.methods import METHODS
from redknot_sglang.profile.methods.controls import random_harm, reversed_harm
from redknot_sglang.profile.objective import OWN
from redknot_sglang.profile.record import FORMAT, VERSION, Matrix, beside, save_record
from redknot_sglang.profile.retrieval import retrieval_heads
from redknot_sglang.profile.reuse import reuse_sensitivity
from redknot_sglang.profile.select import (
    Point,
    Target,
    choose,
    fewest_global,
    grid,
    kv_share,
    most_global,
    pareto,
    ranking,
)
from redknot_sglang.profile.study import Evidence, Study


@dataclass(frozen=True)
class Plan:
    """The options of a run that are not in its study.

    target: what the map must keep to.
    methods: names of methods to measure.
    reuse: one of `reuse.LEVELS`.
    points: sizes of maps to measure for each method and window, for the Pareto curve.
    model: the `model` of a profile, see `record.py`.
    retrieval: how many retrieval heads the map is to have; 0 if nobody is to look for them.
    info: what the map records of the model.
    own_tokens: tokens of the model's own answers at most, for the record.
    """

    target: Target
    methods: tuple[str, ...]
    reuse: str
    points: int
    model: dict[str, Any]
    info: ModelInfo
    retrieval: int = 0
    own_tokens: int = 0


def allowed(study: Study, target: Target) -> dict[int, int]:
    """For each candidate window the number of global heads with which a search begins.

    Under a budget of bytes it is the largest number that the budget allows; windows that alone exceed it are left out.
    Under a limit of loss it is 0, since any number may turn out to be enough.
    Raises ProfileError if every window exceeds the budget.
    """
    if target.kv is None:
        return dict.fromkeys(study.windows, 0)
    sizes = {w: most_global(target.kv, len(study.heads), w, study.sink, target.at) for w in study.windows}
    fit = {window: size for window, size in sizes.items() if size is not None}
    if not fit:
        least = min(kv_share(0, len(study.heads), w, study.sink, target.at) for w in study.windows)
        raise ProfileError(
            f"sink and window alone take {least:.3g} of the KV bytes at {target.at} tokens: raise --target-kv or --at, "
            "or give smaller --windows"
        )
    return fit


def profile(study: Study, plan: Plan) -> tuple[HeadMap, dict[str, Any], bytes]:
    """Measure the methods, propose maps, measure these, and choose one.

    study: model, examples and sizes.
    plan: the other options.
    Returns the head map, the profile (see `record.py`), and the Pareto curve as PNG. Raises ProfileError if no map keeps to
    the target.
    """
    allowed(study, plan.target)
    evidence, methods = {}, {}
    for name in plan.methods:
        begin = time.monotonic()
        evidence[name] = METHODS[name](study)
        seconds = round(time.monotonic() - begin, 2)
        methods[name] = _as_json(evidence[name], seconds)
        _say(f"{name}: {seconds:.1f} s")
    reuse = reuse_sensitivity(study, plan.reuse)
    retrieval = retrieval_heads(study) if plan.retrieval else None
    points = [_measure(study, plan, "dense", study.windows[0], len(study.heads), None)]
    dense = points[0].loss
    for name, found in evidence.items():
        points += _proposals(study, plan, name, found, dense)
    chosen, reason = choose(points, plan.target, dense)
    best = points[chosen]
    if best.method != "dense":
        harm = evidence[best.method].harm[best.window]
        random = random_harm(study.model.layers, study.model.kv_heads, study.seed)
        for name, control in ((f"random:{study.seed}", random), (f"reverse:{best.method}", reversed_harm(harm))):
            points.append(_measure(study, plan, name, best.window, best.num_global, control))
    front = pareto(points)
    record = {
        "format": FORMAT,
        "version": VERSION,
        "tool": f"redknot-sglang {__version__}",
        "versions": _versions(),
        "model": plan.model,
        "data": study.data.describe(),
        "settings": _settings(study, plan),
        "target": _target(study, plan),
        "dense": {"loss": dense, "exact": points[0].exact},
        "methods": methods,
        "reuse": reuse,
        "points": [point.to_dict() for point in points],
        "pareto": front,
        "chosen": chosen,
        "reason": reason,
    }
    head_map = _final(best, plan, study, dense)
    if retrieval is not None:
        head_map = with_retrieval_heads(head_map, retrieval, plan.retrieval, study.model.q_heads)
        record["retrieval"] = retrieval
    return head_map, record, draw_pareto(points, front, chosen, dense, plan.target)


def with_retrieval_heads(head_map: HeadMap, retrieval: dict[str, Any], count: int, q_heads: int) -> HeadMap:
    """The map with the `count` best retrieval heads whose KV heads are global in it; adds to the record which these are.

    retrieval: of `retrieval_heads`. A local KV head does not keep the keys of whole documents, so nobody can ask it.
    """
    group = q_heads // head_map.num_kv_heads
    order = [(layer, head) for layer, head in retrieval["order"]]
    kept = [(layer, head) for layer, head in order if head_map.is_global[layer][head // group]]
    retrieval["global"] = sum(head in kept for head in order[:10])
    retrieval["chosen"] = [list(head) for head in kept[:count]]
    return replace(head_map, retrieval=tuple(kept[:count]))


def write(out: Path, head_map: HeadMap, record: dict[str, Any], picture: bytes) -> list[Path]:
    """Write the map and the files that belong to it (`record.beside`).

    out: the map's path.
    head_map: the map.
    record: the profile.
    picture: the Pareto curve as PNG.
    Returns the paths. Raises HeadMapError if one cannot be written.
    """
    curve = {key: record[key] for key in ("target", "dense", "points", "pareto", "chosen")}
    files = [out, beside(out, "profile", "json"), beside(out, "pareto", "json"), beside(out, "pareto", "png")]
    save_record(record, files[1])
    write_bytes(files[2], (json.dumps(curve, indent=1) + "\n").encode())
    write_bytes(files[3], picture)
    # The map comes last, so that a run that is killed here leaves no map without its evidence.
    head_map.save(out)
    return files


def _proposals(study: Study, plan: Plan, name: str, found: Evidence, dense: float) -> Iterator[Point]:
    """Measured maps of one method: for each window the one that meets the target, and some sizes for the curve."""
    for window, most in allowed(study, plan.target).items():
        known: dict[int, Point] = {}
        at = partial(_measured, known, study, plan, name, window, found.harm[window])
        if plan.target.max_loss is None:
            sizes = [most]
        else:
            sizes = [fewest_global(partial(_fits, at, dense + plan.target.max_loss), len(study.heads))]
        for size in {*sizes, *grid(len(study.heads), plan.points)} - {len(study.heads)}:
            at(size)
        _say(f"{name}, window {window}: {len(known)} maps measured")
        yield from (known[size] for size in sorted(known))


def _fits(at: Callable[[int], Point], limit: float, size: int) -> bool:
    return at(size).loss <= limit


def _measured(
    known: dict[int, Point], study: Study, plan: Plan, name: str, window: int, harm: Matrix, size: int
) -> Point:
    if size not in known:
        known[size] = _measure(study, plan, name, window, size, harm)
    return known[size]


def _measure(study: Study, plan: Plan, name: str, window: int, size: int, harm: Matrix | None) -> Point:
    """Measure the map in which the `size` heads with the most harm are global. harm: None if all heads are."""
    order = study.heads if harm is None else ranking(harm)
    shape = (study.model.layers, study.model.kv_heads)
    head_map = HeadMap.from_global_heads(*shape, order[:size], window, study.sink, plan.info)
    loss, exact = study.loss(order[size:], window)
    return Point(name, window, study.sink, head_map.compression(plan.target.at), loss, exact, head_map)


def _final(best: Point, plan: Plan, study: Study, dense: float) -> HeadMap:
    record = provenance(
        "profile",
        ranked_by=best.method,
        target=_target(study, plan),
        kv=best.kv,
        loss=best.loss,
        dense_loss=dense,
        exact=best.exact,
        data=study.data.describe(),
        windows=list(study.windows),
        versions=_versions(),
        config_sha256=plan.model["config_sha256"],
        load_format=plan.model["load_format"],
    )
    found = best.head_map
    return HeadMap(found.num_layers, found.num_kv_heads, found.is_global, found.window, found.sink, plan.info, record)


def _target(study: Study, plan: Plan) -> dict[str, Any]:
    kept = {"kv": plan.target.kv, "max_loss": plan.target.max_loss, "at": plan.target.at}
    return {**kept, "loss": study.objective.name}


def _as_json(evidence: Evidence, seconds: float) -> dict[str, Any]:
    return {
        "harm": {str(window): matrix for window, matrix in evidence.harm.items()},
        "unit": evidence.unit,
        "source": evidence.source,
        "seconds": seconds,
        "detail": evidence.detail,
    }


def _settings(study: Study, plan: Plan) -> dict[str, Any]:
    names = ("sink", "windows", "curve", "rows", "seed", "gate_steps", "gate_l1", "gate_rate", "gate_tokens")
    found: dict[str, Any] = {name: getattr(study, name) for name in names}
    found |= {"chunk": study.model.chunk, "methods": plan.methods, "reuse": plan.reuse, "points": plan.points}
    found |= {"retrieval": plan.retrieval, "own_tokens": plan.own_tokens if study.objective.name == OWN else None}
    return {name: list(value) if isinstance(value, Sequence) and not isinstance(value, str) else value
            for name, value in found.items()}  # fmt: skip


def _versions() -> dict[str, str]:
    return {"python": platform.python_version(), "torch": torch.__version__, "transformers": transformers.__version__}


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
