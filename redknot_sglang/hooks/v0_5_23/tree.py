# SPDX-License-Identifier: Apache-2.0
"""The prefix cache of a scheduler under SGLang 0.5.23."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from redknot_sglang.refuse import one_line
from redknot_sglang.seams.v0_5_23.arguments import running


def build_tree(context: Any) -> Any:
    """As 0.5.17's, for SGLang's `TreeCacheBuildContext` with the arguments that are in force."""
    from redknot_sglang import seams
    from redknot_sglang.hooks.v0_5_17 import tree
    from redknot_sglang.seams.v0_5_23.adapted import requests

    with one_line(context.server_args.dp_size > 1):
        seams.verify()
    made = tree.build_tree(replace(context, server_args=running(context.server_args)))
    requests.install(made)
    return made
