# SPDX-License-Identifier: Apache-2.0
"""Our options as keywords of `sgl.Engine`, which loads plugins and then makes its arguments of them.

SGLang 0.5.23's arguments are a msgspec structure, whose constructor nothing can hook. An engine takes its class from an attribute, in
whose place a function does.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from redknot_sglang import active
from redknot_sglang.errors import RedKnotError
from redknot_sglang.flags import make_config, take_options
from redknot_sglang.hooks.v0_5_17 import registries
from redknot_sglang.hooks.v0_5_23.arguments import with_forced
from redknot_sglang.seams.v0_5_23.arguments import ENGINE


def offer_keywords() -> None:
    """Let engines of this process take our keywords; idempotent. A process that has no engine is left alone."""
    module = sys.modules.get(ENGINE)
    if module is None:
        return
    engine: Any = module.Engine
    if not getattr(engine.server_args_class, "redknot", False):
        engine.server_args_class = staticmethod(_taking_ours(engine.server_args_class))


def _taking_ours(original: Callable[..., Any]) -> Callable[..., Any]:
    def make(**kwargs: Any) -> Any:
        config = make_config(take_options(kwargs), kwargs.get("model_path"))
        if config is None:
            if kwargs.get("radix_eviction_policy") == registries.EVICTION_POLICY:
                raise RedKnotError("--radix-eviction-policy redknot needs --redknot; add it or choose another policy")
            return original(**kwargs)
        server_args = original(**with_forced(kwargs))
        active.attach(server_args, config)
        return server_args

    make.redknot = True  # type: ignore[attr-defined]
    return make
