# SPDX-License-Identifier: Apache-2.0
"""A profile and a certificate with every part that the report shows, for models of any shape."""

from __future__ import annotations

import random
from typing import Any

from redknot_sglang.certificate.document import FORMAT, VERSION
from redknot_sglang.certify.questions import Question
from redknot_sglang.certify.servers import Reply
from redknot_sglang.certify.verdict import Thresholds, judge
from redknot_sglang.heads import HeadMap

WINDOWS = (16, 32, 64, 128, 256, 512)
TASKS = ("lookup", "multivalue", "tracking", "twohop", "crossdoc")


def make_map(layers: int, heads: int, seed: int = 0) -> HeadMap:
    """A quarter of the heads global."""
    rng = random.Random(seed)
    every = [(layer, head) for layer in range(layers) for head in range(heads)]
    return HeadMap.from_global_heads(layers, heads, rng.sample(every, max(1, len(every) // 4)), 128, 4)


def make_profile(head_map: HeadMap, seed: int = 0) -> dict[str, Any]:
    """A profile (redknot_sglang/profile/record.py) whose evidence is higher for the map's global heads."""
    rng = random.Random(seed)

    def matrix(scale: float) -> list[list[float]]:
        return [[scale * ((0.6 if g else 0.05) + 0.3 * rng.random()) for g in row] for row in head_map.is_global]

    curve = {str(window): matrix(1 - 0.12 * i) for i, window in enumerate(WINDOWS)}
    points: list[dict[str, Any]] = [
        {
            "method": method,
            "window": 128,
            "sink": 4,
            "global": count,
            "kv": 0.05 + 0.95 * count / (head_map.num_layers * head_map.num_kv_heads),
            "loss": 0.01 + worse * 2.0 / (count + 1) * (0.8 + 0.4 * rng.random()),
            "exact": max(0.0, 1 - worse * 0.5 / (count + 1)),
            "layers": [],
        }
        for method, worse in (
            ("ablation", 0.1),
            ("mass", 0.4),
            ("greedy", 0.08),
            ("random:0", 1.5),
            ("reverse:mass", 2),
        )
        for count in (2, 4, 6, 10, 16)
    ]
    points.append(
        {"method": "dense", "window": 128, "sink": 4, "global": 24, "kv": 1.0, "loss": 0.01, "exact": 1.0, "layers": []}
    )
    best = [i for i, p in enumerate(points) if p["method"] == "greedy"]
    return {
        "format": "redknot-profile",
        "version": 1,
        "tool": "redknot-sglang 0.1.0",
        "versions": {},
        "model": {
            "name": "model",
            "architecture": "LlamaForCausalLM",
            "num_layers": head_map.num_layers,
            "num_kv_heads": head_map.num_kv_heads,
        },
        "data": {"name": "lookup,tracking", "examples": 40, "tokens": {"largest": 2048}},
        "settings": {},
        "target": {"kv": 0.45, "max_loss": None, "at": 4096},
        "dense": {"loss": 0.01, "exact": 1.0},
        "methods": {
            "mass": {"harm": curve, "unit": "share of the attention mass", "source": "<a paper>"},
            "ablation": {"harm": {"128": matrix(1.0)}, "unit": "rise of the loss, nats", "source": "a pilot"},
        },
        "reuse": {"output": matrix(0.5), "loss": None},
        "points": points,
        "pareto": best,
        "chosen": best[2],
        "reason": "fewest bytes whose loss is within the target",
    }


def make_certificate(head_map: HeadMap, n: int = 60, seed: int = 0) -> dict[str, Any]:
    """A certificate's document, not sealed, with a policy that passed and one that failed, judged by the real code."""
    rng = random.Random(seed)
    limits = Thresholds(1, 2, 90, 50)
    questions = [
        Question(task, length, (1,), (), lambda text: text == "right")
        for length in (1024, 2048)
        for task in TASKS
        for _ in range(n)
    ]
    questions += [Question("data", None, (1,), (), None)] * 5

    def replies(wrong: float) -> list[Reply]:
        return [
            Reply("right" if rng.random() >= (wrong if q.task == "crossdoc" else 0) else "wrong", (1, 2), (0.0, -0.1))
            for q in questions
        ]

    dense = replies(0)
    policies = {
        name: judge(questions, dense, replies(wrong), limits)
        for name, wrong in (("exact", 0.0), ("blend:0.05", 0.02), ("none", 0.95))
    }
    return {
        "format": FORMAT,
        "version": VERSION,
        "versions": {"sglang": "0.5.17", "redknot": "0.1.0"},
        "head_map": {"fingerprint": head_map.fingerprint, "kv_share": {}},
        "model": {
            "architecture": "LlamaForCausalLM",
            "kind": "checkpoint",
            "config": "c" * 64,
            "weights": "d" * 64,
            "loading": {},
        },
        "measured_on": {"device": "cpu", "dtype": "float32", "flags": []},
        "settings": {
            "tasks": list(TASKS),
            "lengths": [1024, 2048],
            "n": n,
            "seeds": [1_000_000, 1_000_000 + n - 1],
            "data": None,
            "thresholds": {"max_loss": 1.0, "max_task_loss": 2.0, "by": "estimate"},
        },
        "policies": policies,
        "verdict": "fail",
    }
