# SPDX-License-Identifier: Apache-2.0
"""Reads what a client's request asks of RedKnot, before it reaches the scheduler. Errors become HTTP 400.

A request names its *segments*, documents to be reused, by separators in the prompt, by token offsets or by character
offsets; all three end as token offsets in its `custom_params`. docs/serving.md describes them for clients.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

from tokenizers import AddedToken

from redknot_sglang.certificate.check import refusal
from redknot_sglang.config import RedKnotConfig
from redknot_sglang.errors import RedKnotError
from redknot_sglang.plan.identity import MARK
from redknot_sglang.plan.options import CHARS, MODE, REPAIR, SEGMENTS, check_offsets, make_plan, resolve, split_at
from redknot_sglang.plan.policies import WHY_NOT_APART, WITHOUT_PROBES, parse_repair


def separator_id(tokenizer: Any, separator: str) -> int:
    """Teach the tokenizer the separator, and return the token that stands for it. It never reaches the model.

    From now on the tokenizer cuts every text at the separator before it does anything else. That holds also if the
    separator is a word of its vocabulary; such a word could else be different tokens with and without spaces around it.

    tokenizer: a Hugging Face tokenizer, which is changed.
    separator: the text of `--redknot-separator`.
    Raises RedKnotError for a token that the tokenizer puts into every prompt by itself, such as the one that begins it.
    """
    is_word = separator in tokenizer.get_vocab()
    tokenizer.add_tokens([AddedToken(separator, special=not is_word, normalized=False)], special_tokens=not is_word)
    token = int(tokenizer.convert_tokens_to_ids(separator))
    if token in tokenizer.encode(""):
        raise RedKnotError(
            f"--redknot-separator {separator} is a token that the tokenizer puts into every prompt: choose another text"
        )
    return token


def special_ids(tokenizer: Any) -> frozenset[int]:
    """Ids of a tokenizer's tokens that stand for no text, such as those around chat messages.

    The token for unknown characters stands for text and is not among them, unless it also begins or ends prompts.
    """
    special = {token for token, added in tokenizer.added_tokens_decoder.items() if added.special}
    if tokenizer.unk_token_id not in (tokenizer.bos_token_id, tokenizer.eos_token_id):
        special.discard(tokenizer.unk_token_id)
    return frozenset(special)


def resolve_request(manager: Any, config: RedKnotConfig, obj: Any, input_ids: list[int]) -> None:
    """Complete the `custom_params` of a request with mode, segments and policy, and take separators out of its tokens.

    A request without `custom_params` has those of the server's `--preferred-sampling-params`, as in stock SGLang. Keys
    that are not ours stay as they are. `plan.request.take_options` later takes ours out, before logit processors see
    them.

    manager: SGLang's tokenizer manager.
    config: the server's settings.
    obj: SGLang's GenerateReqInput; its sampling parameters are changed.
    input_ids: tokens of the prompt, changed in place.
    Raises RedKnotError, a ValueError, which SGLang answers with HTTP 400.
    """
    params = custom_params_of(obj, manager.preferred_sampling_params)
    chars = (params or {}).get(CHARS)
    tokens = input_ids
    offsets: list[int] | None = None
    if chars is not None:
        tokens, offsets = _by_characters(manager, config.separator, obj.text, chars, SEGMENTS in params)
    elif manager.redknot_separator is not None:
        tokens, offsets = split_at(input_ids, manager.redknot_separator, manager.redknot_special)
        if offsets is not None and SEGMENTS in (params or {}):
            raise RedKnotError(f"the prompt has separators and {SEGMENTS}: use one of them")
        if not tokens and input_ids:
            raise RedKnotError("the prompt holds separators only: there is nothing to answer, add a text")
    resolved = resolve(params, config, len(tokens), offsets)
    if resolved.get(MODE) == "segmented":
        _check_servable(manager, obj)
        _check_apart(manager.server_args, resolved[REPAIR])
        _check_logprobs(obj, resolved, len(tokens))
        name = config.certified_name(resolved[REPAIR])
        if config.certification.enforced and not config.certification.covers(name):
            raise RedKnotError(refusal(config.certification, name))
    if offsets is not None:
        input_ids[:] = tokens
    if resolved != (params or {}):
        # An empty dictionary is not the same as none: SGLang puts the request itself into it, for logit processors.
        obj.sampling_params = {**obj.sampling_params, "custom_params": resolved}


def custom_params_of(obj: Any, preferred: Mapping[str, Any] | None) -> Any:
    """The `custom_params` that SGLang will use for a request: its own, else those of the server's flag.

    obj: SGLang's GenerateReqInput.
    preferred: the value of `--preferred-sampling-params`, or None.
    """
    return {**(preferred or {}), **(obj.sampling_params or {})}.get("custom_params")


def check_namespace(name: str, value: Any) -> None:
    """Check that a client's namespace in the prefix cache cannot be one of RedKnot's own, such as that of segments.

    name: the field that the client gave it in.
    value: the namespace, or None.
    Raises RedKnotError if it can.
    """
    if isinstance(value, str) and MARK in value:
        raise RedKnotError(
            f"{name} must not contain {MARK!r}, which marks namespaces of RedKnot's own: choose another one"
        )


def check_unresolved(obj: Any, preferred: Mapping[str, Any] | None = None) -> None:
    """Check what can be checked without the prompt's tokens: the namespace, the type of `custom_params`, and that a
    prompt given as embeddings asks for no segments.

    obj: SGLang's GenerateReqInput.
    preferred: the value of `--preferred-sampling-params`, or None.
    Raises RedKnotError.
    """
    for name in ("extra_key", "cache_salt"):
        check_namespace(name, getattr(obj, name, None))
    given = custom_params_of(obj, preferred) or {}
    if not isinstance(given, Mapping):
        raise RedKnotError(f"custom_params must be a JSON object, got {type(given).__name__}")
    named = sorted(key for key in given if isinstance(key, str) and key.startswith("redknot_"))
    if getattr(obj, "input_embeds", None) is not None and named and not (named == [MODE] and given[MODE] == "exact"):
        raise RedKnotError(f"segments are made of tokens, not of input_embeds: use {MODE} exact")


def _by_characters(manager: Any, separator: str, text: Any, chars: Any, both: bool) -> tuple[list[int], list[int]]:
    """Tokens of a prompt whose segments are named by characters, and the token offsets of these segments.

    The text is tokenized with separators at the offsets, so that a document has the same tokens however it is named and
    whatever stands beside it. Were it tokenized by itself, some tokenizers would put the mark of a word's beginning
    first.

    both: whether the request has token offsets, too, which is an error.
    """
    if both:
        raise RedKnotError(f"give {SEGMENTS} or {CHARS}, not both")
    if not isinstance(text, str) or manager.tokenizer is None:
        raise RedKnotError(f"{CHARS} needs the prompt as text; give {SEGMENTS}, or separators in chat messages")
    if separator in text:
        raise RedKnotError(f"the prompt has separators and {CHARS}: use one of them")
    pairs = check_offsets(CHARS, chars, len(text), "characters")
    borders = [0, *(at for pair in pairs for at in pair), len(text)]
    parts = [text[a:b] for a, b in pairwise(borders)]
    # With the separator "##", a part "a#" and a separator behind it are "a###", which would be cut after "a".
    ambiguous = next((part for part in parts[:-1] if (part + separator).index(separator) < len(part)), None)
    marked = manager.tokenizer.encode(separator.join(parts))
    cuts = [at for at, token in enumerate(marked) if token == manager.redknot_separator]
    # The tokenizer may have a token that ends like the separator begins.
    if ambiguous is not None or len(cuts) != len(parts) - 1:
        what = "the end of a part" if ambiguous is None else f"the end of a part, {ambiguous[-len(separator) :]!r},"
        raise RedKnotError(
            f"{CHARS}: {what} together with the separator {separator} would be cut in another place: end it elsewhere, or "
            "start the server with another --redknot-separator"
        )
    tokens = [token for token in marked if token != manager.redknot_separator]
    return tokens, [cut - before for before, cut in enumerate(cuts)]


def _check_servable(manager: Any, obj: Any) -> None:
    # A decode server has no prefix cache: segments are with the prefill server that the request also goes to.
    if manager.server_args.disable_radix_cache and manager.server_args.disaggregation_mode != "decode":
        raise RedKnotError(
            f"segments live in the prefix cache: use {MODE} exact, or start without --disable-radix-cache"
        )
    if obj.session_params:
        raise RedKnotError(f"sessions cannot be segmented: send the whole prompt, or use {MODE} exact")


def _check_apart(server_args: Any, repair: str) -> None:
    """Raises RedKnotError for a policy that leaves documents out of the prompt, where only the prefill server would know which."""
    if server_args.disaggregation_mode != "null" and parse_repair(repair).selects:
        raise RedKnotError(f"{REPAIR} {repair} {WHY_NOT_APART}; use {REPAIR} {WITHOUT_PROBES}")


def _check_logprobs(obj: Any, resolved: Mapping[str, Any], length: int) -> None:
    """Raises RedKnotError if log-probabilities of the prompt are asked for that begin before the text behind the last
    segment.

    A token's log-probability needs the row before it. Rows of segments may never have been computed in this context,
    and SGLang gives no probability to the first token that is asked for; so that one may stand right behind the last
    segment.

    resolved: `custom_params` of a segmented request. length: tokens of its prompt.
    """
    if not obj.return_logprob or obj.logprob_start_len in (None, -1):
        return
    first = obj.logprob_start_len
    plan = make_plan(resolved, length)
    if plan is not None and first < plan.tail:
        raise RedKnotError(
            f"logprob_start_len {first}: rows of reused segments have no log-probabilities, so the first position that is "
            f"allowed is {plan.tail}, behind the last segment; give that or a later one, or use {MODE} exact"
        )
