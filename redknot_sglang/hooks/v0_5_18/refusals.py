# SPDX-License-Identifier: Apache-2.0
"""Arguments that cannot work together with RedKnot under SGLang 0.5.18 yet, beside those that cannot under 0.5.17."""

from __future__ import annotations

from redknot_sglang.hooks.v0_5_17 import refusals

ARGUMENTS: refusals.Arguments = (
    *(row for row in refusals.ARGUMENTS if row[0] != "speculative_algorithm"),
    ("speculative_algorithm", (None,), "speculative decoding is served with SGLang 0.5.17 only"),
    (
        "startup_weight_load_mode",
        ("serial",),
        "probes are derived from weights before this mode has loaded them",
    ),
    (
        "enable_hierarchical_cache",
        (False,),
        "host memory is served with SGLang 0.5.17 and 0.5.23: this version asks host pools in another way",
    ),
    ("disaggregation_mode", ("null",), "prefill and decode apart are served with SGLang 0.5.17 only"),
)
