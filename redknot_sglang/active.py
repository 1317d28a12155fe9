# SPDX-License-Identifier: Apache-2.0
"""The configuration of a running server is an attribute of SGLang's ServerArgs; here it is set and found.

The attribute's name begins with an underscore, since SGLang forbids writing any other one after the start. It is no field
of the dataclass, so SGLang does not print or check it. It does travel with the pickle that carries the arguments to the
scheduler processes.
"""

from __future__ import annotations

from typing import Any

from redknot_sglang.config import RedKnotConfig

_ATTRIBUTE = "_redknot"


def attach(server_args: Any, config: RedKnotConfig) -> None:
    """Switch RedKnot on for every part of SGLang that is built from these server arguments.

    server_args: SGLang's ServerArgs; it gets an attribute more.
    config: what the `--redknot*` flags say.
    """
    try:
        object.__setattr__(server_args, _ATTRIBUTE, config)
    except TypeError:
        # Newer SGLang's is a msgspec structure, which takes such names itself.
        setattr(server_args, _ATTRIBUTE, config)


def config_of(server_args: Any) -> RedKnotConfig | None:
    """The RedKnot configuration of these server arguments, or None if RedKnot is off."""
    return getattr(server_args, _ATTRIBUTE, None)
