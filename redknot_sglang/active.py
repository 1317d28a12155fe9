# SPDX-License-Identifier: Apache-2.0
"""Where the configuration lives: an attribute of SGLang's ServerArgs.

A leading underscore keeps it out of ServerArgs' read-only guard and out of its dataclass fields, and it survives the
pickle that carries the arguments to the scheduler processes.
"""

from __future__ import annotations

from typing import Any

from redknot_sglang.config import RedKnotConfig

_ATTRIBUTE = "_redknot"


def attach(server_args: Any, config: RedKnotConfig) -> None:
    """Switch RedKnot on for everything that is built from these server arguments."""
    object.__setattr__(server_args, _ATTRIBUTE, config)


def config_of(server_args: Any) -> RedKnotConfig | None:
    """The RedKnot configuration of these server arguments, or None if RedKnot is off."""
    return getattr(server_args, _ATTRIBUTE, None)
