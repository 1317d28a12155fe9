# SPDX-License-Identifier: Apache-2.0
"""SGLang's scheduler: the salt of a request, which 0.5.18 keeps beside its `extra_key`, goes into that.

Our paths in the tree have one namespace (`plan/identity.py`). In 0.5.17 a salt came to the scheduler as part of `extra_key`.
"""

from __future__ import annotations

from typing import Any

from redknot_sglang import active
from redknot_sglang.hooks.v0_5_17.preload import mark_preload
from redknot_sglang.plan.identity import salted
from redknot_sglang.seams import Seam


def _name_and_mark(scheduler: Any, req: Any, *args: Any, **kwargs: Any) -> None:
    """Before the request is matched for the first time; one that comes back after a retraction has no salt any more."""
    if active.config_of(scheduler.server_args) is not None:
        req.extra_key, req.cache_salt = salted(req.extra_key, req.cache_salt), None
    mark_preload(scheduler, req)


SEAMS = (
    Seam(
        "managers.scheduler.Scheduler._add_request_to_queue",
        _name_and_mark,
        "before",
        "requests that compute segments ahead of time are marked, our options are kept from logit processors, and a salt "
        "keeps the segments of a request apart",
    ),
)
