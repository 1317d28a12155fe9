# SPDX-License-Identifier: Apache-2.0
"""SGLang's tokenizer manager: what requests ask of RedKnot, and `meta_info.redknot` as one object."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

from redknot_sglang import active
from redknot_sglang.certificate.document import EXACT
from redknot_sglang.config import STARTED, Certification, RedKnotConfig
from redknot_sglang.errors import RedKnotError
from redknot_sglang.seams import Seam
from redknot_sglang.serve.report_key import KEY
from redknot_sglang.serve.requests import check_unresolved, resolve_request, separator_id, special_ids
from redknot_sglang.serve.segment_calls import RESOLVED


async def _one_report(original: Any, manager: Any, *args: Any, **kwargs: Any) -> AsyncIterator[Any]:
    # Certified is the base model, with its weights as they were when the server started.
    adapted = bool(getattr(args[0] if args else kwargs.get("obj"), "lora_path", None))
    async for response in original(manager, *args, **kwargs):
        config = active.config_of(manager.server_args)
        if config is not None:
            for item in response if isinstance(response, list) else [response]:
                config = _collapse(item, config, adapted)
            active.attach(manager.server_args, config)
        yield response


def _collapse(item: Any, config: RedKnotConfig, adapted: bool) -> RedKnotConfig:
    """Make the report of an answer one object. Returns the settings with what the report says of the server's weights."""
    meta = item.get("meta_info") if isinstance(item, dict) else None
    values = meta.pop(KEY, None) if meta else None
    reports = [value for value in values or () if value is not None]
    if meta is not None and reports:
        report = reports[-1]
        config = replace(config, certification=config.certification.with_weights(report.get("weights", STARTED)))
        certification = Certification() if adapted else config.certification
        name = config.certified_name(report["policy"]) if "policy" in report else EXACT
        meta[KEY] = {**report, **certification.report(name)}
        if "prompt_tokens" in report:
            # SGLang has counted what a repair policy left of the prompt; the client sent all of it.
            meta.update({name: report[name] for name in ("prompt_tokens", "cached_tokens")})
    return config


def _separator_token(result: Any, manager: Any, *args: Any, **kwargs: Any) -> None:
    """Have the tokenizer cut prompts at separators, so that what is between them is tokenized as if it stood alone."""
    config = active.config_of(manager.server_args)
    manager.redknot_separator = None
    if config is not None and manager.tokenizer is not None:
        try:
            manager.redknot_separator = separator_id(manager.tokenizer, config.separator)
        except RedKnotError as error:
            sys.exit(f"redknot: error: {error}")
        manager.redknot_special = special_ids(manager.tokenizer)


async def _own_list(original: Any, manager: Any, obj: Any) -> Any:
    """Separators are taken out of the list of token ids, which may be the caller's own (`sgl.Engine`)."""
    if active.config_of(manager.server_args) is not None and getattr(obj, "input_ids", None) is not None:
        obj.input_ids = list(obj.input_ids)
    return await original(manager, obj)


def _resolve_options(original: Any, manager: Any, obj: Any, input_ids: list[int]) -> None:
    config = active.config_of(manager.server_args)
    if config is not None and hasattr(obj, "sampling_params") and not hasattr(obj, RESOLVED):
        check_unresolved(obj, manager.preferred_sampling_params)
        if input_ids is not None:
            resolve_request(manager, config, obj, input_ids)
    original(manager, obj, input_ids)


SEAMS = (
    Seam(
        "managers.tokenizer_manager.TokenizerManager.init_tokenizer_and_processor",
        _separator_token,
        "after",
        "separators are tokens of their own",
    ),
    Seam(
        "managers.tokenizer_manager.TokenizerManager._tokenize_one_request",
        _own_list,
        "around",
        "a caller's list of token ids is never changed",
    ),
    Seam(
        "managers.tokenizer_manager.TokenizerManager._validate_one_request",
        _resolve_options,
        "around",
        "checks of a request's redknot_* options, segments from separators",
    ),
    Seam(
        "managers.tokenizer_manager.TokenizerManager.generate_request",
        _one_report,
        "around",
        "meta_info.redknot on every answer",
    ),
)
