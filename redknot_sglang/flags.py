# SPDX-License-Identifier: Apache-2.0
"""The `--redknot*` flags of the server, and the configuration that is made of them.

A new flag is a name in `_FIELDS`, an argument in `add_cli_args`, a check in `make_config`, and a field of `RedKnotConfig`.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import MutableMapping
from pathlib import Path
from typing import Any

from redknot_sglang.config import (
    ATTENTION_CHOICES,
    DEFAULT_SEPARATOR,
    LEADS,
    MODES,
    UNCERTIFIED_FLAG,
    Certification,
    RedKnotConfig,
)
from redknot_sglang.errors import RedKnotError
from redknot_sglang.plan.policies import KEEPING_WHOLE, listed, parse_repair

_FIELDS = (
    "redknot",
    "redknot_head_map",
    "redknot_context_length",
    "redknot_attention",
    "redknot_kv_budget",
    "redknot_mode",
    "redknot_repair",
    "redknot_segment_lead",
    "redknot_segment_length",
    "redknot_segment_tokens",
    "redknot_separator",
    "redknot_certificate_key",
    "redknot_uncertified",
    "redknot_inspect_texts",
)
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


def parse_bytes(text: str | int) -> int:
    """The number of bytes that a size says.

    text: bytes as a number, or with a unit K, M, G or T, each a power of 1024: 1000000, '512M', '8GiB', '1.5GB'.
    Raises RedKnotError if it is none of these or less than one byte.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?)(?:i?B)?\s*", str(text), re.IGNORECASE)
    size = float(match[1]) * _UNITS[match[2].upper()] if match else 0
    if size < 1:
        raise RedKnotError(f"--redknot-kv-budget {text!r} is not a size; write a number of bytes, or 512M or 8GiB")
    return int(size)


def add_cli_args(parser: argparse.ArgumentParser) -> None:
    """Add the `--redknot*` flags as a group to SGLang's parser, which also reads `--config` files.

    parser: the parser of `sglang.launch_server`.
    """
    group = parser.add_argument_group("RedKnot", "Head-aware KV cache (plugin redknot-sglang)")
    group.add_argument(
        "--redknot",
        action="store_true",
        help="Keep KV per head class, as the head map says. Without it no other RedKnot flag may be given.",
    )
    group.add_argument(
        "--redknot-head-map",
        metavar="PATH",
        default=None,
        help="Head map file: RedKnot's own JSON, the public RedKnot JSON or DuoAttention's TSV. "
        "Default: head_map.json in the model's directory.",
    )
    group.add_argument(
        "--redknot-context-length",
        metavar="N",
        type=int,
        default=None,
        help="Tokens of a usual request, prompt and answer. Memory is split between the head classes so that the pools of "
        "both run out together at this length. Default: the model's context length.",
    )
    group.add_argument(
        "--redknot-attention",
        choices=ATTENTION_CHOICES,
        default=None,
        help="Attention kernels to use. Default: the fastest that this GPU and model can use; the log says which.",
    )
    group.add_argument(
        "--redknot-kv-budget",
        metavar="BYTES",
        default=None,
        help="Bytes of KV for both head classes together on each rank, e.g. 8GiB. Default: what --mem-fraction-static gives.",
    )

    group.add_argument(
        "--redknot-mode",
        choices=MODES,
        default=None,
        help="Mode of requests that choose none themselves. segmented: documents between separators are computed once and "
        "reused at any position, which is approximate. Default: exact.",
    )
    group.add_argument(
        "--redknot-repair",
        metavar="POLICY",
        default=None,
        help=f"Which rows of a reused document are computed again in its new context: one of {listed()}. For {KEEPING_WHOLE} the "
        "cache keeps the KV of all heads. Default: the first one that passed in the certificate beside the head map; else "
        "question:2 if the map has retrieval heads; else none, and segmented requests must name one.",
    )
    group.add_argument(
        "--redknot-segment-lead",
        choices=LEADS,
        default=None,
        help="Compute each document on its own (none), or behind the text that stands before the prompt's first document "
        "(lead), which only requests with the same text share. Default: none.",
    )
    group.add_argument(
        "--redknot-segment-length",
        metavar="N",
        type=int,
        default=None,
        help="Tokens of a usual document. The local pool then gets room for a cache full of documents, each of which keeps "
        "sink and window. Default: the pool is sized for whole conversations.",
    )
    group.add_argument(
        "--redknot-segment-tokens",
        metavar="N",
        type=int,
        default=None,
        help="Tokens of all distinct documents that the cache is to hold beside running requests. Default: not known, so "
        "the pools are split by --redknot-segment-length and --redknot-context-length alone.",
    )
    group.add_argument(
        "--redknot-separator",
        metavar="TEXT",
        default=None,
        help="Text, or a special token of the tokenizer, that stands before each document of a prompt and after the last. "
        f"It is removed. Default: {DEFAULT_SEPARATOR}.",
    )
    group.add_argument(
        "--redknot-certificate-key",
        metavar="PATH",
        default=None,
        help="Accept only certificates signed with this Ed25519 public key (PEM). Default: any certificate that fits.",
    )
    group.add_argument(
        UNCERTIFIED_FLAG,
        action="store_true",
        # None, not False: a flag that was given without --redknot must be told from one that was not.
        default=None,
        help="Serve a head map or a repair policy that has no certificate, and say so in status, answers and metrics.",
    )
    group.add_argument(
        "--redknot-inspect-texts",
        action="store_true",
        default=None,
        help="Let GET /redknot/inspect name tenants and show the first words of what is cached. Default: tenants are hashes, "
        "and no text is shown.",
    )


def take_options(source: MutableMapping[str, Any]) -> dict[str, Any]:
    """Take RedKnot's options out of a dict, because SGLang's ServerArgs refuses names that it does not know.

    source: keyword arguments of `sgl.Engine`, or the dict of a parsed namespace; it is changed.
    Returns the options by name, as `make_config` takes them.
    """
    return {name: source.pop(name) for name in _FIELDS if name in source}


def make_config(options: dict[str, Any], model_path: str | None) -> RedKnotConfig | None:
    """The configuration that the options ask for, or None if `--redknot` is not among them.

    options: values by name, e.g. `redknot_head_map`, as `take_options` returns them; None is the same as not given.
    model_path: directory of the model, where `head_map.json` is looked for if no map is named; None if unknown.
    Raises RedKnotError for a value that cannot be used, and for other RedKnot options without `--redknot`.
    """
    given = sorted(name for name, value in options.items() if name != "redknot" and value is not None)
    if not options.get("redknot"):
        if given:
            flags = ", ".join("--" + name.replace("_", "-") for name in given)
            raise RedKnotError(f"{flags} has no effect without --redknot; add --redknot or leave it out")
        return None
    attention = options.get("redknot_attention")
    if attention is not None and attention not in ATTENTION_CHOICES:
        raise RedKnotError(f"--redknot-attention must be one of {', '.join(ATTENTION_CHOICES)}, got {attention!r}")
    budget, key = options.get("redknot_kv_budget"), options.get("redknot_certificate_key")
    return RedKnotConfig(
        head_map=_find_head_map(options.get("redknot_head_map"), model_path),
        context_length=_tokens(options, "context_length"),
        attention=attention,
        kv_budget=None if budget is None else parse_bytes(budget),
        segment_length=_tokens(options, "segment_length"),
        segment_tokens=_tokens(options, "segment_tokens"),
        certificate_key=None if key is None else Path(key),
        uncertified=bool(options.get("redknot_uncertified")),
        inspect_texts=bool(options.get("redknot_inspect_texts")),
        certification=Certification(enforced=False),
        **_segment_options(options),
    )


def _tokens(options: dict[str, Any], name: str) -> int | None:
    value: int | None = options.get(f"redknot_{name}")
    if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
        flag = "--redknot-" + name.replace("_", "-")
        raise RedKnotError(f"{flag} must be a whole number of tokens, at least 1, got {value!r}")
    return value


def _segment_options(options: dict[str, Any]) -> dict[str, str]:
    given = {
        field: options[f"redknot_{field}"]
        for field in ("mode", "repair", "segment_lead", "separator")
        if options.get(f"redknot_{field}") is not None
    }
    for field, choices in (("mode", MODES), ("segment_lead", LEADS)):
        if given.get(field, choices[0]) not in choices:
            flag = "--redknot-" + field.replace("_", "-")
            raise RedKnotError(f"{flag} must be one of {', '.join(choices)}, got {given[field]!r}")
    if "repair" in given:
        given["repair"] = parse_repair(given["repair"]).name
    if not given.get("separator", DEFAULT_SEPARATOR).strip():
        raise RedKnotError("--redknot-separator must not be blank; write a text that no document contains")
    return given


def _find_head_map(given: str | None, model_path: str | None) -> Path:
    if given is not None:
        return Path(given)
    beside = Path(model_path or "") / "head_map.json"
    if model_path and beside.is_file():
        return beside
    raise RedKnotError(
        f"--redknot needs a head map and there is no {beside}; pass --redknot-head-map PATH, "
        "or make one with `redknot heads make`"
    )
