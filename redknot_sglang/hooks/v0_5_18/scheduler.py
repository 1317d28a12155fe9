# SPDX-License-Identifier: Apache-2.0
"""SGLang's scheduler: what 0.5.18 decides by the window that the cache reports, and means in another way."""

from __future__ import annotations

from typing import Any

from redknot_sglang.seams import Seam


def _free_after_an_interval(original: Any, batch: Any) -> None:
    """0.5.18 frees local slots of a decoding request once enough of them have left the window, not every so many steps.

    Whether they have is asked by what a row sees. The window that the cache reports otherwise is what a sequence may hold,
    with which it would come to hold one window more than that.
    """
    reports = getattr(batch.tree_cache, "reporting_what_a_row_sees", None)
    if reports is None:
        original(batch)
        return
    with reports():
        original(batch)


def _no_use_in_waiting(original: Any, adder: Any, *args: Any, **kwargs: Any) -> bool:
    """Whether a prompt that is short of local slots has to be cut, since waiting would not bring them.

    0.5.18 cuts only what is larger than the whole pool, and has others wait for running requests to end. If nobody runs, what
    lacks is held by the request's own segments, or by another one's that waits for this one.
    """
    if original(adder, *args, **kwargs):
        return True
    if not hasattr(adder.tree_cache, "decode_window"):
        return False
    from redknot_sglang.reuse.sources import is_idle

    return is_idle(adder)


SEAMS = (
    Seam(
        "managers.schedule_batch.ScheduleBatch.maybe_evict_swa",
        _free_after_an_interval,
        "around",
        "when local slots that left the window are freed while decoding",
    ),
    Seam(
        "managers.schedule_policy.PrefillAdder._swa_req_never_fits",
        _no_use_in_waiting,
        "around",
        "a request that waits for its own segments' slots would wait for ever",
    ),
)
