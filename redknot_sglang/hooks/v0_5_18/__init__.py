# SPDX-License-Identifier: Apache-2.0
"""Hooks on functions of SGLang 0.5.18, as far as they differ from those of 0.5.17."""

from __future__ import annotations

from redknot_sglang.hooks.v0_5_17 import SEAMS as BEFORE
from redknot_sglang.hooks.v0_5_17 import eagle, ngram
from redknot_sglang.hooks.v0_5_17.arguments import construction
from redknot_sglang.hooks.v0_5_18 import namespace, scheduler
from redknot_sglang.hooks.v0_5_18.refusals import ARGUMENTS
from redknot_sglang.seams import Seam, changed_seams

# Speculative decoding is refused with this version.
SEAMS: tuple[Seam, ...] = changed_seams(
    BEFORE,
    (construction(ARGUMENTS), *scheduler.SEAMS, *namespace.SEAMS),
    gone=[seam.target for seam in (*ngram.SEAMS, *eagle.SEAMS)],
)
