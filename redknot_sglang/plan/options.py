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
    """The segments (start, end) that a client's flat list [start, end, start, end, ...] names.

    name: the client's field, for messages.
    offsets: what the client sent. It has to be a list of whole numbers, in order and without overlap.
    length: of the prompt, in `unit`.
    unit: what offsets count, for messages: "tokens" or "characters".
    Raises RedKnotError if it is anything else.
    """
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
    """A request's `custom_params`, checked, with what the client left out filled in: mode, segments, repair policy,
    lead.

    params: what the client sent, or None.
    config: the server's settings.
    length: tokens of the prompt.
    separated: token offsets of the segments that separators in the text or character offsets marked; None if there were
        none.
    Raises RedKnotError, which becomes HTTP 400.
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
    """The repair policy that a client names, or the server's own if the client names none.

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
    """The prompt without its separators, and the flat list of offsets of its segments (None if it has no separator).

    Separators cut the prompt into parts. The first part is the lead, the last one the tail, those between are segments;
    with a single separator there is no segment.

    tokens: ids of the prompt.
    separator: id of the separator.
    special: ids that no document has, such as those that begin and end a chat message. A part with one of them is no
        segment: it is what stands between the documents of one turn of a dialogue and those of the next.
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

    params: what `resolve` returned.
    length: tokens of the prompt as it is now. SGLang may have cut it since (`--allow-auto-truncate`; to one token where
        it refuses the request), so what lies behind its end is left out, and so are empty segments. The last token's
        row gives the first token of the answer, so it is always computed, and a segment that ends with the prompt ends
        one token earlier.
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
    """The resolved `custom_params` of a request without RedKnot's own; None if the client gave none at all."""
    if not params or not any(_is_ours(key) for key in params):
        return params
    return None if params.get(ONLY) else {key: value for key, value in params.items() if not _is_ours(key)}


def _is_ours(key: Any) -> bool:
    return isinstance(key, str) and key.startswith("redknot_")
