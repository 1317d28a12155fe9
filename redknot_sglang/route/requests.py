# SPDX-License-Identifier: Apache-2.0
"""Reads which documents and which beginning a request has, in whatever form it names them.

The router only chooses a server by that: what cannot be read here is passed on all the same, and the server answers for it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from redknot_sglang.errors import RedKnotError
from redknot_sglang.plan.options import CHARS, MODE, REPAIR, SEGMENTS, check_offsets
from redknot_sglang.plan.policies import parse_repair
from redknot_sglang.route.facts import Facts
from redknot_sglang.route.parts import Blocks, Content, Part, Prompt, Wanted, bytes_of, document_key, key_of, tokens_of

# Fields of a body that hold its prompt, the first that is there.
PROMPTS = ("text", "input_ids", "prompt", "messages", "input", "query")
# Fields that end up in front of a chat's messages.
BEFORE = ("system", "instructions", "tools")
ANSWER_LENGTHS = ("max_completion_tokens", "max_tokens", "max_output_tokens", "max_new_tokens")
# Tokens of an answer of which the request does not say how long it may be, and the most that a limit counts for: many
# limits are far above what comes.
USUAL_ANSWER, LONGEST_ANSWER = 128, 512


@dataclass(frozen=True)
class _Stretch:
    """Part of a prompt. document: whether it is one."""

    content: Content
    document: bool = False


@dataclass(frozen=True)
class _Options:
    """What a request asks for.

    segmented: whether it has documents; None leaves that to separators.
    named: its `custom_params`.
    policy: which repair policies share documents with its own.
    behind_lead: whether documents are computed behind the text before them.
    """

    segmented: bool | None
    named: Mapping[str, Any]
    policy: str
    behind_lead: bool


def read_request(path: str, body: Any, facts: Facts) -> Wanted:
    """What a request wants computed.

    path: of its address, such as `/v1/completions`.
    body: JSON.
    facts: how servers read requests.
    """
    if not isinstance(body, Mapping):
        return Wanted()
    sampling = body.get("sampling_params") if path == "/generate" else body
    prompts = []
    for index, stretches in enumerate(_prompts(body)):
        one = _nth(sampling, index)
        options = _options(one if isinstance(one, Mapping) else {}, facts)
        try:
            prompts.append(_read_prompt(stretches, options, _namespace(body, index), facts))
        except (OverflowError, TypeError):
            # Ids that are no numbers: the server says what is wrong.
            continue
    return Wanted(tuple(prompts), _answer_tokens(path, _nth(sampling, 0)) * len(prompts))


def read_segments(body: Any, facts: Facts) -> list[Part] | None:
    """The documents of a `POST /redknot/segments`, one for each of its segments, or None if it cannot be read."""
    if not isinstance(body, Mapping) or not isinstance(body.get("segments"), list):
        return None
    options = _options({"custom_params": {MODE: "segmented", REPAIR: body.get("repair")}}, facts)
    space = _space(_namespace(body, 0), options)
    lead = body.get("lead")
    try:
        before = bytes_of(lead) if options.behind_lead and isinstance(lead, str | list) else b""
        return [Part(document_key(space, content, before), 0, tokens_of(content)) for content in body["segments"]]
    except (OverflowError, TypeError):
        return None


def _prompts(body: Mapping[str, Any]) -> Iterator[list[Content]]:
    """The prompts of a body, each as the contents that follow each other: one, or those of a chat's messages."""
    field = next((name for name in PROMPTS if body.get(name)), None)
    value = body.get(field) if field else None
    if isinstance(value, str):
        yield [*_before(body), value]
    elif not isinstance(value, list):
        return
    elif isinstance(value[0], int):
        yield [value]
    elif isinstance(value[0], Mapping):
        yield [*_before(body), *(text for message in value for text in _message(message))]
    else:
        for one in value:
            if isinstance(one, str | list):
                yield [one]


def _before(body: Mapping[str, Any]) -> list[Content]:
    return [_text(body[name]) for name in BEFORE if body.get(name)]


def _message(message: Any) -> Iterator[str]:
    """The texts of a chat message: its role, and each of its contents by itself."""
    if not isinstance(message, Mapping):
        yield _text(message)
        return
    yield str(message.get("role"))
    content = message.get("content")
    contents = content if isinstance(content, list) else [content]
    for one in contents:
        text = one.get("text") if isinstance(one, Mapping) else one
        yield text if isinstance(text, str) else _text(one)
    rest = {name: value for name, value in message.items() if name not in ("role", "content")}
    if rest:
        yield _text(rest)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True)


def _options(given: Mapping[str, Any], facts: Facts) -> _Options:
    custom = given.get("custom_params")
    named = custom if isinstance(custom, Mapping) else {}
    offsets = SEGMENTS in named or CHARS in named
    mode = named.get(MODE) or ("segmented" if offsets else facts.mode)
    repair = named.get(REPAIR) or facts.repair
    kind, selects = "", False
    try:
        policy = parse_repair(str(repair))
        kind, selects = "whole" if policy.keeps_whole else "windows", policy.selects
    except RedKnotError:
        # Of no policy, or one that the server will refuse.
        pass
    segmented = None if mode is None else mode == "segmented"
    return _Options(segmented, named, kind, facts.lead == "lead" or selects)


def _space(namespace: str, options: _Options) -> bytes:
    return key_of(namespace, options.policy)


def _namespace(body: Mapping[str, Any], index: int) -> str:
    """What keeps a request's KV apart from that of others: cache salt, extra key and LoRA adapter.

    SGLang 0.5.17 makes one text of salt and extra key, and so does this.
    """
    keys = [_nth(body.get(name), index) for name in ("cache_salt", "extra_key")]
    model = body.get("model")
    adapter = model.partition(":")[2] if isinstance(model, str) else ""
    lora = adapter or _nth(body.get("lora_path"), index)
    return json.dumps(["".join(key for key in keys if isinstance(key, str)), lora], default=str)


def _nth(value: Any, index: int) -> Any:
    """The value of one prompt of a batch, where there may be one for all or one for each."""
    return (value[index] if index < len(value) else None) if isinstance(value, list) else value


def _answer_tokens(path: str, given: Any) -> int:
    if not isinstance(given, Mapping) or path in ("/v1/embeddings", "/v1/score", "/v1/rerank", "/v1/classify"):
        return 0
    limit = next((given[name] for name in ANSWER_LENGTHS if isinstance(given.get(name), int)), USUAL_ANSWER)
    answers = given.get("n")
    return max(0, min(limit, LONGEST_ANSWER)) * (answers if isinstance(answers, int) and 0 < answers < 1000 else 1)


def _read_prompt(contents: list[Content], options: _Options, namespace: str, facts: Facts) -> Prompt:
    stretches = [stretch for content in contents for stretch in _stretches(content, options, facts)]
    segmented = any(stretch.document for stretch in stretches)
    space = _space(namespace, options)
    blocks = Blocks(space + (b"segmented" if segmented else b"exact"))
    lead: list[bytes] = []
    for stretch in stretches:
        if stretch.document:
            break
        lead.append(bytes_of(stretch.content))
    before = (lead[0] if len(lead) == 1 else key_of(*lead)) if options.behind_lead else b""
    documents = []
    for stretch in stretches:
        if stretch.document and stretch.content:
            key = document_key(space, stretch.content, before)
            documents.append(Part(key, blocks.tokens, tokens_of(stretch.content)))
        blocks.add(stretch.content, "document" if stretch.document else "text")
    return Prompt(tuple(documents), blocks.blocks, blocks.tokens)


def _stretches(content: Content, options: _Options, facts: Facts) -> list[_Stretch]:
    """A content cut where its documents begin and end."""
    whole = [_Stretch(content)]
    if options.segmented is False:
        return [_Stretch(content.replace(facts.separator, ""))] if isinstance(content, str) else whole
    offsets = options.named.get(CHARS if isinstance(content, str) else SEGMENTS)
    if offsets is not None:
        try:
            pairs = check_offsets(SEGMENTS, offsets, len(content), "places")
        except RedKnotError:
            return whole
        return _cut(content, pairs)
    parts = _separated(content, facts)
    return [_Stretch(part, 0 < number < len(parts) - 1) for number, part in enumerate(parts)]


def _cut(content: Content, pairs: Sequence[tuple[int, int]]) -> list[_Stretch]:
    borders = [0, *(at for pair in pairs for at in pair), len(content)]
    return [_Stretch(content[a:b], bool(number % 2)) for number, (a, b) in enumerate(pairwise(borders))]


def _separated(content: Content, facts: Facts) -> list[Content]:
    """A content's parts between separators."""
    if isinstance(content, str):
        return [*content.split(facts.separator)]
    cuts = [at for at, token in enumerate(content) if token == facts.separator_token]
    return [content[a + 1 : b] for a, b in pairwise([-1, *cuts, len(content)])]
