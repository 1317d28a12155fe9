# SPDX-License-Identifier: Apache-2.0
"""What the storage tier has done since the server began, counted by its background threads."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from redknot_sglang.store.envelope import Refusal


@dataclass
class Figures:
    """Counts.

    objects, size: objects and their bytes, `written` and `read`.
    lookups: paths that were asked for: `hit`, what was found has come to the host; `miss`, there was nothing of use; `late`, it had
        not come in time; `failed`, the store failed, an object was refused, or there was no room on the host.
    tokens: tokens of paths that came from the store.
    refused: objects that were read and not used, by reason.
    skipped: paths that were not written since too many others were waiting to be, or the store rests.
    """

    objects: Counter[str] = field(default_factory=Counter)
    size: Counter[str] = field(default_factory=Counter)
    lookups: Counter[str] = field(default_factory=Counter)
    tokens: int = 0
    refused: Counter[Refusal] = field(default_factory=Counter)
    skipped: int = 0
