# SPDX-License-Identifier: Apache-2.0
"""What a request asks for: `custom_params` of `/generate` and of the OpenAI endpoints, checked and made into a plan."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from itertools import pairwise
from typing import Any

from redknot_sglang.config import MODES, WHY_NO_REPAIR, RedKnotConfig
from redknot_sglang.errors import RedKnotError
from redknot_sglang.plan.plan import Plan
from redknot_sglang.plan.policies import listed, parse_repair
from redknot_sglang.plan.policies.base import Policy

MODE, SEGMENTS, CHARS, REPAIR, LEAD = (
    "redknot_mode",
    "redknot_segments",
    "redknot_segment_chars",
    "redknot_repair",
    "redknot_segment_lead",
)
KEYS = (MODE, SEGMENTS, CHARS, REPAIR)
# Set by `resolve` where the client gave no `custom_params` at all.
ONLY = "redknot_only"


def check_offsets(name: str, offsets: Any, length: int, unit: str) -> list[tuple[int, int]]:
    """Pairs from a flat list [s0, e0, s1, e1, ...] over a prompt of `length` units. Raises RedKnotError."""
    if not isinstance(offsets, Sequence) or isinstance(offsets, str):
        raise RedKnotError(f"{name} must be a flat list [start, end, start, end, ...], got {type(offsets).__name__}")
    if any(isinstance(value, bool) or not isinstance(value, int) for value in offsets):
        raise RedKnotError(f"{name} must hold whole numbers only, got {offsets!r}")
    if len(offsets) % 2:
        raise RedKnotError(f"{name} has {len(offsets)} entries: give a start and an end for each segment")
    pairs = list(zip(offsets[::2], offsets[1::2], strict=True))
    before = 0
    for start, end in pairs:
        if not 0 <= start <= end <= length:
            raise RedKnotError(f"{name}: segment [{start}, {end}) does not lie in the prompt's {length} {unit}")
        if start < before:
            raise RedKnotError(
                f"{name}: segment [{start}, {end}) begins before the end of the one ahead of it, {before}; "
                "give segments in order and without overlap"
            )
        before = end
    return pairs


def resolve(
    params: Mapping[str, Any] | None, config: RedKnotConfig, length: int, separated: Sequence[int] | None
) -> dict[str, Any]:
    """A request's `custom_params` with mode, segments, policy and lead policy filled in and checked.

    length: tokens of the prompt. separated: offsets of the segments that separators (or character offsets) marked, or
    None if there were none. Raises RedKnotError, which becomes HTTP 400.
    """
    given = dict(params or {})
    unknown = sorted(key for key in given if _is_ours(key) and key not in KEYS)
    if unknown:
        raise RedKnotError(f"custom_params {', '.join(unknown)} not known; RedKnot reads {', '.join(KEYS)}")
    named = CHARS in given or SEGMENTS in given
    given.pop(CHARS, None)
    offsets = given.pop(SEGMENTS, None)
    mode = given.get(MODE, "segmented" if named else config.mode)
    if mode not in MODES:
        raise RedKnotError(f"{MODE} must be one of {', '.join(MODES)}, got {mode!r}")
    if REPAIR in given:
        parse_repair(str(given[REPAIR]))
    if mode == "exact":
        return {key: value for key, value in given.items() if key not in KEYS}
    if offsets is None:
        offsets = separated
    if offsets is None:
        if given.get(MODE) is None:
            return {key: value for key, value in given.items() if key not in KEYS}
        raise RedKnotError(
            f"{MODE} is segmented, but the prompt names no segments: put {config.separator} between lead, segments and "
            f"tail, or give {SEGMENTS} or {CHARS}"
        )
    check_offsets(SEGMENTS, offsets, length, "tokens")
    policy = repair_of(str(given[REPAIR]) if REPAIR in given else None, config, REPAIR)
    resolved = {**given, MODE: mode, SEGMENTS: list(offsets), REPAIR: policy.name, LEAD: config.segment_lead}
    return resolved if params is not None else {**resolved, ONLY: True}


def repair_of(named: str | None, config: RedKnotConfig, field: str) -> Policy:
    """The repair policy that a client names, or else the server's.

    named: what the client wrote, or None.
    config: the server's settings.
    field: name of the client's field, for the message.
    Raises RedKnotError if there is no such policy, or neither names one.
    """
    name = config.repair if named is None else named
    if name is None:
        raise RedKnotError(f"{WHY_NO_REPAIR}; give {field}, one of {listed()}")
    return parse_repair(name)


def split_at(
    tokens: Sequence[int], separator: int, special: Set[int] = frozenset()
) -> tuple[list[int], list[int] | None]:
    """The prompt without its separators, and the offsets of the segments between them, None if there were none.

    The first part is the lead, the last the tail; a single separator leaves no segment between them. special: tokens
    that no document has, such as those that begin and end chat messages. A part with one of them is not a segment: in a
    dialogue it is what stands between the documents of one turn and those of the next.
    """
    if separator not in tokens:
        # So it is with every prompt that names its segments by offsets, and a loop over 32K tokens takes milliseconds.
        return list(tokens), None
    cuts = [at for at, token in enumerate(tokens) if token == separator]
    offsets = []
    for before, (cut, following) in enumerate(pairwise(cuts)):
        if special.isdisjoint(tokens[cut + 1 : following]):
            offsets += [cut - before, following - before - 1]
    return [token for token in tokens if token != separator], offsets


def make_plan(params: Mapping[str, Any] | None, length: int) -> Plan | None:
    """The plan of a request whose options have been resolved, or None for exact mode.

    length: tokens of the prompt. Empty segments vanish, and what lies behind the prompt's end: SGLang may have cut it since
    (`--allow-auto-truncate`), down to one token where it refuses it. The last token is always computed, since its row
    gives the first answer token, so a segment that ends with the prompt ends before it.
    """
    if not params or params.get(MODE) != "segmented":
        return None
    offsets = params.get(SEGMENTS, ())
    pairs = zip(offsets[::2], offsets[1::2], strict=True)
    segments = tuple((start, min(end, length - 1)) for start, end in pairs if start < min(end, length - 1))
    if not segments:
        return None
    repair = parse_repair(str(params[REPAIR]))
    return Plan(segments, repair, params.get(LEAD) == "lead" or repair.selects)


def params_of_others(params: dict[Any, Any] | None) -> dict[Any, Any] | None:
    """A request's resolved `custom_params` without ours: None if the client gave none at all."""
    if not params or not any(_is_ours(key) for key in params):
        return params
    return None if params.get(ONLY) else {key: value for key, value in params.items() if not _is_ours(key)}


def _is_ours(key: Any) -> bool:
    return isinstance(key, str) and key.startswith("redknot_")
