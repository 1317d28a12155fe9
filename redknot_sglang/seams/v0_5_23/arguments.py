# SPDX-License-Identifier: Apache-2.0
"""SGLang 0.5.23's server arguments: a record of what was given, and beside it what SGLang has made of that."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

# The module whose class `Engine` makes arguments of keywords.
ENGINE = "sglang.srt.entrypoints.engine"


def resolved(server_args: Any) -> Any:
    """The arguments as 0.5.17 has them: each with the value that is in force, and with `get_model_config`.

    server_args: SGLang's record, of which the values have been worked out (`resolve_once`).
    """
    from sglang.srt.arg_groups.overrides import model_config_of, resolution_result

    values = {name: resolution_result(server_args, name) for name in type(server_args).__struct_fields__}
    own = {name: value for name, value in vars(server_args).items() if name.startswith("_redknot")}
    return SimpleNamespace(**values, **own, get_model_config=lambda: model_config_of(server_args))


def running(server_args: Any) -> Any:
    """The same in a scheduler that is about to build its prefix cache: with the size of host memory that SGLang has found there is room
    for, where nobody has given one.

    server_args: SGLang's record.
    """
    from sglang.srt.runtime_context import get_memory

    values = resolved(server_args)
    values.hicache_ratio = get_memory().hicache_ratio
    return values
