# SPDX-License-Identifier: Apache-2.0
"""Where the time of a request went, by what a server says of it, and how the server's prefill forwards ran meanwhile."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import requests

from redknot_sglang.measure.table import format_table

# Stages in order. `http`: between the client and the server, both ways. `dispatch`: reading the request, until the scheduler has been sent
# it. `waiting`: until its own forward is being made; under `question` the forward of the question alone and the choice are in it, and
# where nothing has to be waited for it may be less than nothing, since the scheduler may begin before the sender has noted the time.
# `forward`: until the forward's result has been read. `answer`: until the answer is written.
STAGES = ("http", "dispatch", "waiting", "forward", "answer")
_TIMES = (
    "request_received_ts",
    "api_server_dispatch_finish_ts",
    "forward_entry_time",
    "prefill_finished_time",
    "request_finished_ts",
)


def stages(meta: Mapping[str, Any], seconds: float) -> dict[str, float]:
    """Seconds of a request by stage. Without `--enable-metrics` SGLang says only how long all behind `http` took: `server`.

    meta: its `meta_info`.
    seconds: what the client measured.
    """
    spent = {"http": seconds - meta["e2e_latency"]}
    if any(name not in meta for name in _TIMES):
        return spent | {"server": meta["e2e_latency"]}
    times = [float(meta[name]) for name in _TIMES]
    return spent | {name: end - begin for name, begin, end in zip(STAGES[1:], times[:-1], times[1:], strict=True)}


def forwards(url: str) -> dict[str, int]:
    """Prefill forwards of a server with RedKnot so far, by what ran them; reasons follow a colon. Raises requests.HTTPError."""
    reply = requests.get(url + "/redknot/status", timeout=60)
    reply.raise_for_status()
    found = reply.json()["prefill_forwards"]
    counts = {"whole_graph": found["whole_graph"]}
    for kind in ("broken_graph", "eager"):
        counts |= {f"{kind}: {why}": count for why, count in found[kind].items()}
    return counts


def since(before: Mapping[str, int], after: Mapping[str, int]) -> dict[str, int]:
    """What has been counted in between."""
    return {name: count - before.get(name, 0) for name, count in after.items() if count > before.get(name, 0)}


def stage_table(cells: Sequence[Mapping[str, Any]]) -> str:
    """Medians of each stage in ms, one line for each cell, with the forwards that ran for all of its requests."""
    names = [name for name in (*STAGES, "server") if any(name in cell["rows"][0]["stages"] for cell in cells)]
    lines = []
    for cell in cells:
        spent = [row["stages"] for row in cell["rows"]]
        medians = [
            f"{1000 * statistics.median(one[name] for one in spent):.1f}" if name in spent[0] else "" for name in names
        ]
        ran = ", ".join(f"{count} {name}" for name, count in (cell["forwards"] or {}).items())
        lines.append([str(cell["documents"]), cell["side"], *medians, ran])
    return format_table(["documents", "side", *(f"{name} ms" for name in names), "prefill forwards"], lines)
