# SPDX-License-Identifier: Apache-2.0
"""Arguments that are new in SGLang 0.5.18 and cannot work together with RedKnot yet."""

from __future__ import annotations

from redknot_sglang.hooks.v0_5_17 import refusals

ARGUMENTS: refusals.Arguments = (
    *refusals.ARGUMENTS,
    (
        "startup_weight_load_mode",
        ("serial",),
        "probes are derived from weights before this mode has loaded them",
    ),
)
