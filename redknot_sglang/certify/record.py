# SPDX-License-Identifier: Apache-2.0
"""The parts of a certificate beside the figures (model, software, settings), and the figures as a table to print."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from redknot_sglang import __version__
from redknot_sglang.certificate.document import FORMAT, VERSION
from redknot_sglang.certificate.fingerprint import DUMMY, fingerprint_served, read_config
from redknot_sglang.certificate.weights import file_digests, weight_files
from redknot_sglang.certify.options import Options
from redknot_sglang.certify.plan import Plan
from redknot_sglang.heads import HeadMap
from redknot_sglang.measure.table import format_table
from redknot_sglang.versions import sglang_version

# Recorded, not compared: a certificate holds on any device and in any number format, but for KV of 8-bit floats, which the model's
# fingerprint names.
MEASURED_ON = ("device", "dtype", "tp_size", "attention_backend", "kv_cache_dtype")


def describe_run(plan: Plan, head_map: HeadMap, info: Mapping[str, Any], options: Options) -> dict[str, Any]:
    """Format, software, head map and settings of a certificate, as JSON types.

    plan: what was asked.
    head_map: the map that was measured.
    info: `/server_info` of the server that was measured.
    options: of the command.
    """
    return {
        "format": FORMAT,
        "version": VERSION,
        "versions": {"sglang": sglang_version(), "redknot": __version__, **_ranked_by(plan)},
        "head_map": {
            "fingerprint": head_map.fingerprint,
            "layers": head_map.num_layers,
            "kv_heads": head_map.num_kv_heads,
            "global_share": head_map.global_share,
            "kv_share": {str(length): round(head_map.compression(length), 6) for length in plan.lengths},
        },
        "measured_on": {
            **{name: info.get(name) for name in MEASURED_ON},
            "flags": list(options.flags),
            "stock_flags": list(options.stock_flags),
        },
        "settings": {
            "tasks": list(plan.tasks),
            "lengths": list(plan.lengths),
            "n": plan.n,
            # First and last, both included.
            "seeds": [plan.seed, plan.seed + plan.n - 1] if plan.tasks else [],
            "data": list(plan.data),
            "max_tokens": plan.max_tokens,
            "lead": plan.lead,
            # What random controls begin with, each question in its own way.
            "control_seed": plan.seed if plan.controls else None,
            "sampling": "greedy",
            "thresholds": asdict(plan.thresholds),
        },
    }


def _ranked_by(plan: Plan) -> dict[str, str]:
    """The library that ranks documents and its version, if there is a control of that kind."""
    from importlib.metadata import version

    return {"bm25s": version("bm25s")} if any(name.startswith("bm25") for name in plan.controls) else {}


def describe_model(name: str, folder: Path, info: Mapping[str, Any]) -> dict[str, Any]:
    """The model's fingerprint as it was served, and the SHA-256 of every weight file, as JSON types.

    name: the model as the user wrote it; of a path only the last part is recorded.
    folder: the model's, whose weights are read to the last byte, with progress on stderr.
    info: `/server_info` of the server that was measured.
    """
    from tqdm import tqdm

    found = fingerprint_served(info)
    files: list[dict[str, Any]] = []
    if found.kind != DUMMY:
        size = sum(file.stat().st_size for file in weight_files(folder))
        with tqdm(total=size, unit="B", unit_scale=True, desc="hash weights", leave=False, disable=None) as bar:
            files = file_digests(folder, bar.update)
    architectures = read_config(folder).get("architectures") or [None]
    return {
        "name": (folder.resolve() if Path(name).is_dir() else Path(name)).name,
        "architecture": architectures[0],
        **asdict(found),
        "files": files,
    }


def tables(policies: Mapping[str, Mapping[str, Any]], controls: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """Lines to print: exact match of dense attention, of every policy and of every control, losses with intervals, what was computed,
    and reasons of failures.

    policies, controls: the parts of a certificate with these names.
    """
    for name, entry in policies.items():
        yield f"\n{name}: {entry['verdict']}"
        yield from _table("policy", entry)
        for reason in entry["reasons"]:
            yield f"  {reason}"
    for name, entry in controls.items():
        yield f"\ncontrol {name}"
        yield from _table("control", entry)


def _table(side: str, entry: Mapping[str, Any]) -> Iterator[str]:
    rows = [_row(cell["task"], cell) for cell in entry["cells"]] + [_row("mean", mean) for mean in entry["means"]]
    if rows:
        yield format_table(("task", "tokens", "n", "dense", side, "points lost", "95 %", "rows", "FLOPs"), rows)
    if entry["agreement"] is not None:
        found = entry["agreement"]
        rows_share, flops_share = _computed(found)
        yield (
            f"data without answers: {found['same']} of {found['n']} answers equal the dense ones, "
            f"{100 * found['agreed_tokens']:.1f} % of their tokens come before the first difference; "
            f"rows {rows_share}, FLOPs {flops_share}"
        )


def _row(task: str, cell: Mapping[str, Any]) -> list[str]:
    low, high = cell["loss_interval_95"]
    return [
        task,
        "-" if cell["length"] is None else str(cell["length"]),
        str(cell["n"]),
        f"{100 * cell['dense']['accuracy']:.1f} %",
        f"{100 * cell['policy']['accuracy']:.1f} %",
        f"{cell['loss_points']:.2f}",
        f"{low:.2f} to {high:.2f}",
        *_computed(cell),
    ]


def _computed(cell: Mapping[str, Any]) -> list[str]:
    """Shares of the prompts' rows and of dense prefill's operations, as texts."""
    found = cell["computed"] or {"rows": None, "flops": None}
    return ["-" if found[name] is None else f"{100 * found[name]:.1f} %" for name in ("rows", "flops")]
