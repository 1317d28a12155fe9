# SPDX-License-Identifier: Apache-2.0
"""Fields of SGLang 0.5.18's objects, as far as they differ from 0.5.17 (see `seams/surface.py`)."""

from __future__ import annotations

from redknot_sglang.seams.surface import Fields, changed
from redknot_sglang.seams.v0_5_17.fields import FIELDS as BEFORE

FIELDS: Fields = changed(
    BEFORE,
    {
        "managers.schedule_batch": {
            "Req": BEFORE["managers.schedule_batch"]["Req"] + " cache_salt",
        },
        # Draft models are refused with this version: the table only says what is there.
        "speculative.draft_utils": {"DraftBackendFactory": "draft_model_runner speculative_num_steps"},
    },
)
