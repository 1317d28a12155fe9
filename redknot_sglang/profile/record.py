# SPDX-License-Identifier: Apache-2.0
"""`profile.json`: all evidence of a profile run, per head and per map, beside the head map that came of it.

The file is named after the head map: `map.json` has `map.profile.json` (and `map.pareto.json`, `map.pareto.png`). It is
one JSON object. L layers, H KV heads and Q query heads per layer; "matrix" means a list of L lists of H numbers. Windows
are keys and therefore strings ("128"). No value is NaN or infinite. Losses are nats per token; an example counts once,
whatever its length. Under the target "own" a loss is KL(dense || map), the divergence of the map's distribution over the
whole vocabulary from that of dense attention, at the tokens that dense attention said to the prompt, or at those of the second
half of a plain text. Under "answers" it is the loss on answer tokens where the data have answers, else on all tokens. A
file without `target.loss` is of a tool that knew "answers" only.

    format        "redknot-profile"
    version       1
    tool          "redknot-sglang 0.1.0"
    versions      {"python", "torch", "transformers"}: strings
    model         {"name": last part of the path, "architecture", "model_type", "num_layers": L, "num_kv_heads": H,
                  "num_q_heads": Q, "head_dim", "config_sha256": of config.json as bytes, "load_format": "auto"|"dummy",
                  "dtype", "device": "cpu"|"cuda"}
    data          {"source": "tasks"|"jsonl"|"text"|"random", "name": of the file or the tasks, "sha256": of token ids, answer
                  places and segments, with own answers in place of given ones under "own", "examples": n,
                  "with_answers": given ones, "with_documents": n,
                  "tokens": {"smallest", "mean", "largest"}, "lengths": [..], "seeds": [first, last]}
                  seeds: of generated data, last included, the same for every task and length; [] for a JSONL. Validation
                  must use other seeds; name: of tasks a comma-separated list
    settings      {"sink": S, "windows": [W..] candidates, "curve": [W..] of the methods that give whole curves, "rows":
                  rows looked at per example by mass and distortion, "chunk", "methods": [..], "own_tokens": of an own answer
                  at most, null under "answers", and each method's own}
    target        {"kv": share or null, "max_loss": nats or null, "at": tokens, "loss": "own"|"answers"}; one of kv,
                  max_loss is null
    dense         {"loss", "exact": share of examples whose answer is the argmax at every token, null without answers; under
                  "own": at whose every token the map's argmax is that of dense attention}. Under "own" 0 and 1 for dense
    methods       {NAME: evidence}, NAME one of mass, distortion, gates, ablation, greedy:
                    "harm"     {WINDOW: matrix}: how much the head needs the whole context; higher is more. Comparable
                               within one method and window only
                    "unit"     what a harm is, in words
                    "source"   the method's source, in words
                    "seconds"  of measuring (what an earlier, interrupted run measured is not in it)
                    "detail"   of the method, see below
    reuse         null (no documents, or not asked for) or {"output": matrix, "loss": matrix or null}: relative change of
                  the layer's output, and rise of the loss, when the rows outside the documents read, in this one head,
                  K and V of documents computed in isolation
    retrieval     missing (no examples for it, or not asked for), or {"examples": looked at, "documents": of an example, on
                  average, "score": L lists of Q numbers, mean of 1 / place of the best document that holds the answer,
                  "first": L lists of Q, how often that place is the first, "order": all [layer, query head], best score
                  first, "global": how many of the ten best belong to global KV heads of the map, "chosen": those the map has}
    points        measured maps, each {"method", "window", "sink", "global": number of global heads, "kv": share of
                  stock's KV bytes at `target.at`, "loss", "exact", "layers": ["GLLL", ..]}; methods of evidence, and the
                  controls "random:SEED" and "reverse:METHOD" at the size of the chosen map; also "dense" (all global)
    pareto        indices into `points`: no control among them, ascending kv, no point with fewer bytes has less loss
    chosen        index into `points`, the map that was written; `reason` in one sentence
    reason        string

Details, by method:

    mass          {"query_heads": {WINDOW: L lists of Q: mean share of the attention mass outside sink + window},
                  "mean": {WINDOW: matrix, mean over the head's query heads}}; harm is the largest of them. Windows: the
                  curve, ascending: harm at ascending windows is a head's mass curve
    distortion    {}; windows: the curve
    gates         {"steps", "l1", "learning_rate", "tokens": longest example allowed, "examples": how many were short
                  enough, "loss": {WINDOW: [distillation loss of every 10th step]}}; harm is the gate, 0 to 1
    ablation      {"loss": {WINDOW: matrix}}: loss with this head local; harm is its rise over dense
    greedy        {"path": {WINDOW: [{"layer", "head", "loss": after this head, too, is local}, ..]}}; harm is L * H minus
                  the head's place in the path; heads never turned local have their order by last measured loss
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from redknot_sglang.errors import HeadMapError
from redknot_sglang.heads.checks import require_int, require_keys, require_list, require_object
from redknot_sglang.heads.files import StrPath, parse_json_object, read_text, write_bytes

FORMAT = "redknot-profile"
VERSION = 1
KEYS = (
    "format", "version", "tool", "versions", "model", "data", "settings", "target", "dense", "methods", "reuse",
    "points", "pareto", "chosen", "reason",
)  # fmt: skip

Matrix = list[list[float]]


def beside(head_map: Path, what: str, suffix: str) -> Path:
    """The path of a file that belongs to a head map: of `map.json` with `profile` and `json` it is `map.profile.json`."""
    return head_map.with_name(f"{head_map.stem}.{what}.{suffix}")


def save_record(record: dict[str, Any], path: StrPath) -> None:
    """Write a profile. Raises ValueError for NaN and infinities, HeadMapError if the file cannot be written."""
    write_bytes(path, (json.dumps(check_record(record), indent=1, allow_nan=False) + "\n").encode())


def load_record(path: StrPath) -> dict[str, Any]:
    """Read a profile. Raises HeadMapError, which names the path, if there is none or it is not complete."""
    try:
        return check_record(parse_json_object(read_text(path)))
    except HeadMapError as error:
        raise HeadMapError(f"{path}: {error}") from None


def check_record(record: dict[str, Any]) -> dict[str, Any]:
    """Returns `record` if it has the keys of the module's docstring, and its indices exist; else raises HeadMapError."""
    if record.get("format") != FORMAT or record.get("version") != VERSION:
        raise HeadMapError(f"is not a {FORMAT} of version {VERSION}: make it again with `redknot profile`")
    require_keys(record, "the profile", KEYS, ["retrieval"])
    for key in ("model", "data", "settings", "target", "dense", "methods"):
        require_object(record[key], key)
    points = require_list(record["points"], "points")
    for index in (record["chosen"], *require_list(record["pareto"], "pareto")):
        if require_int(index, "an index into points", at_least=0) >= len(points):
            raise HeadMapError(
                f"there is no point {index}, the profile has {len(points)}: make it again with `redknot profile`"
            )
    return record
