# SPDX-License-Identifier: Apache-2.0
"""The sections of the page, as HTML. A section whose file was not given says so."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from redknot_sglang.heads import HeadMap
from redknot_sglang.report.accuracy_figure import accuracy_figures, sides
from redknot_sglang.report.heads_figure import class_figure, curves_figure, evidence_figure, fits
from redknot_sglang.report.html import figure, key, lacking, table, text
from redknot_sglang.report.pareto_figure import pareto_figure, series

Record = Mapping[str, Any]

# Methods whose evidence at all windows is one curve.
CURVES = {"mass": "Attention mass outside sink + window", "distortion": "Output distortion"}
_LENGTHS = (4096, 32768, 131072)
_LOSSES = {"own": "divergence from dense attention's own answers", "answers": "the loss on given answers"}


def classes(head_map: HeadMap | None) -> str:
    """The class of every head, window and sink, and the KV bytes that cached prefixes keep."""
    if head_map is None:
        return lacking("No head map was given (--head-map).")
    heads = sum(map(sum, head_map.is_global))
    kept = ", ".join(f"{100 * head_map.compression(n):.1f} % at {n:,} tokens" for n in _LENGTHS)
    words = (
        f"{heads} of {head_map.num_layers * head_map.num_kv_heads} KV heads are global and keep the whole context. The "
        f"others see the first {head_map.sink} tokens (the sink) and the last {head_map.window} (the window). "
        f"KV bytes kept: {kept}."
    )
    keys = key("rect", "global", "global") + key("rect", "local", f"local, window {head_map.window}")
    return f"<p>{words}</p><p>{keys}</p>{figure(class_figure(head_map))}"


def evidence(profile: Record | None, head_map: HeadMap | None) -> str:
    """What each method measured for each head, and how much each head suffers from isolated documents."""
    if profile is None:
        return lacking("No profile was given (--profile): a map drawn by hand or imported has no evidence.")
    parts = []
    known = head_map if fits(head_map, profile["model"]) else None
    for method, title in CURVES.items():
        if method not in profile["methods"]:
            continue
        found = profile["methods"][method]
        parts.append(f"<h3>{title}</h3><p>A curve for each KV head; {text(found['unit'])}.</p>")
        if known is not None:
            parts.append(f"<p>{key('line', 'global', 'global in the map')}{key('line', 'local', 'local')}</p>")
        parts.append(figure(curves_figure(method, found["harm"], known)))
    others = {name: found for name, found in profile["methods"].items() if name not in CURVES}
    for method, found in others.items():
        window = _nearest(found["harm"], head_map)
        parts.append(
            f"<h3>{text(method)}, window {text(window)}</h3><p>The stronger the colour, the more a head needs the whole context: "
            f"{text(found['unit'])}. Source: {text(found['source'])}</p>"
        )
        parts.append(figure(evidence_figure(f"{method} at window {window}", found["harm"][window])))
    if profile["reuse"] is not None:
        parts.append(
            "<h3>Reuse</h3><p>The stronger the colour, the more a head suffers from documents that were computed in "
            "isolation: relative change of its layer's output.</p>"
        )
        parts.append(figure(evidence_figure("reuse sensitivity", profile["reuse"]["output"])))
    return "".join(parts) or lacking("The profile has no evidence.")


def _nearest(harm: Mapping[str, Any], head_map: HeadMap | None) -> str:
    """The measured window next to the map's, or the first one."""
    wanted = head_map.window if head_map is not None else min(map(int, harm))
    return min(harm, key=lambda window: abs(int(window) - wanted))


def pareto(profile: Record | None) -> str:
    """All maps that were measured, loss over KV bytes, and which one was chosen."""
    if profile is None:
        return lacking("No profile was given (--profile), so there is nothing to compare this map with.")
    keys = "".join(
        key("square" if hollow else "disc", f"{'o' if hollow else 'f'}{color}", name)
        for name, (color, hollow) in series(profile).items()
    )
    rows = [
        [
            str(p["method"]),
            str(p["window"]),
            str(p["sink"]),
            str(p["global"]),
            f"{100 * p['kv']:.1f} %",
            f"{p['loss'] - profile['dense']['loss']:+.4g}",
            "-" if p["exact"] is None else f"{100 * p['exact']:.1f} %",
        ]
        for p in profile["points"]
    ]
    head = ("method", "window", "sink", "global heads", "KV bytes", "loss above dense, nats", "exact")
    return (
        f"<p>Every point is a map that was measured; the dashed line joins those that no other beats in both. The ring is "
        f"the chosen map: {text(profile['reason'])}</p><p>{keys}</p>{figure(pareto_figure(profile))}"
        f"<details><summary>All {len(rows)} measured maps</summary>{table(head, rows)}</details>"
    )


def accuracy(certificate: Record | None, head_map: HeadMap | None) -> str:
    """What the certificate measured through the server, policy by policy."""
    if certificate is None:
        return lacking("No certificate was given (--certificate); make one with redknot certify.")
    parts = []
    if head_map is not None and head_map.fingerprint != certificate["head_map"]["fingerprint"]:
        parts.append('<p class="fail">This certificate is about another head map than the one shown above.</p>')
    keys = "".join(key("rect", f"f{color}", side) for side, color in sides(certificate).items())
    parts.append(f"<p>Greedy answers of stock SGLang (dense) and of every policy to the same prompts.</p><p>{keys}</p>")
    for heading, svg in accuracy_figures(certificate):
        parts.append(f"<h3>{text(heading)}</h3>{figure(svg)}")
    for name, entry in certificate["policies"].items():
        parts.append(
            f'<h3>{text(name)} <span class="badge {text(entry["verdict"])}">{text(entry["verdict"])}</span></h3>'
        )
        parts += [f'<p class="fail">{text(reason)}</p>' for reason in entry["reasons"]]
        parts += _figures("policy", entry)
    # Certificates of older releases have none.
    for name, entry in certificate.get("controls", {}).items():
        parts.append(
            f"<h3>control {text(name)}</h3><p>Documents chosen by the client; no policy, and never certified.</p>"
        )
        parts += _figures("control", entry)
    return "".join(parts)


def _figures(side: str, entry: Record) -> list[str]:
    """All figures of a policy or a control, `side`."""
    parts = []
    rows = [_loss_row(c["task"], c) for c in entry["cells"]] + [_loss_row("mean", c) for c in entry["means"]]
    if rows:
        head = ("task", "tokens", "n", "dense", side, "points lost", "95 % interval", "rows", "FLOPs")
        parts.append(f"<details><summary>All {len(rows)} figures</summary>{table(head, rows)}</details>")
    if entry["agreement"] is not None:
        found = entry["agreement"]
        parts.append(
            f"<p>Data without answers: {found['same']} of {found['n']} answers equal the dense ones, "
            f"{100 * found['agreed_tokens']:.1f} % of their tokens come before the first difference.</p>"
        )
    return parts


def _loss_row(task: str, cell: Mapping[str, Any]) -> list[str]:
    low, high = cell["loss_interval_95"]
    # Not in certificates of older releases.
    computed = cell.get("computed") or {}
    return [
        task, "own" if cell["length"] is None else f"{cell['length']:,}", str(cell["n"]),
        f"{100 * cell['dense']['accuracy']:.1f} %", f"{100 * cell['policy']['accuracy']:.1f} %",
        f"{cell['loss_points']:.2f}", f"{low:.2f} to {high:.2f}",
        *("-" if computed.get(name) is None else f"{100 * computed[name]:.1f} %" for name in ("rows", "flops")),
    ]  # fmt: skip


def _files(settings: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    """The user's files. Certificates of older releases have one or none, and no list."""
    data = settings["data"] or ()
    return [data] if isinstance(data, Mapping) else data


def origin(profile: Any, head_map: HeadMap | None, certificate: Any) -> str:
    """Where map, profile and certificate come from: data, settings, versions, digests."""
    facts: dict[str, Any] = {}
    if head_map is not None:
        facts |= {"head map": head_map.fingerprint, "made by": head_map.provenance.get("method")}
    if profile is not None:
        data = profile["data"]
        facts |= {
            "calibrated on": f"{data['examples']} examples of {data['name']}, at most {data['tokens']['largest']} tokens",
            "methods": ", ".join(profile["methods"]),
            # Profiles of older releases do not say.
            "a loss is": _LOSSES[profile["target"].get("loss", "answers")],
            "profile made by": profile["tool"],
        }
    if certificate is not None:
        settings = certificate["settings"]
        asked = ", ".join(settings["tasks"]) or "no tasks"
        facts |= {
            "certified on": f"{asked}; n = {settings['n']}, seeds {_span(settings['seeds'])}",
            "own data": "; ".join(f"{file['name']}, {file['prompts']} prompts" for file in _files(settings)) or "none",
            "allowed": f"{settings['thresholds']['max_loss']:g} points on average, "
            f"{settings['thresholds']['max_task_loss']:g} on a task, by {settings['thresholds']['by']}",
            "versions": f"SGLang {certificate['versions']['sglang']}, redknot-sglang {certificate['versions']['redknot']}",
            "measured on": ", ".join(str(certificate["measured_on"][name]) for name in ("device", "dtype")),
            # Certificates of older releases do not say.
            "stock SGLang was served with": " ".join(certificate["measured_on"].get("stock_flags", ()))
            or "the same flags",
            "weights": certificate["model"]["weights"],
            "certificate digest": certificate["digest"],
            "signed": "yes, with the key " + certificate["signature"]["key"] if "signature" in certificate else "no",
        }
    return "<dl>" + "".join(f"<dt>{text(name)}</dt><dd>{text(value)}</dd>" for name, value in facts.items()) + "</dl>"


def _span(seeds: Sequence[int]) -> str:
    return f"{seeds[0]} to {seeds[1]}" if seeds else "none"
