# SPDX-License-Identifier: Apache-2.0
"""SGLang's speculative decoding by n-grams: drafts are chains.

Nothing is rolled back when rows of a draft are rejected: a request has slots for two drafts behind its text, and the rows that come
next write over those of the rejected ones. So what speculation takes besides is slots (`pool/sizing.py`) and a forward
that extends every request by a whole draft (`attention.py`).
"""

from __future__ import annotations

import os
from typing import Any

from redknot_sglang import active
from redknot_sglang.chains import chains_of
from redknot_sglang.seams import Seam

# SGLang compiles its corpus at the first start, and leaves out a header that g++ 12 does not bring in by itself.
_HEADER = "-include cstddef"


def _compile_with_header(original: Any, worker: Any, server_args: Any, *args: Any, **kwargs: Any) -> None:
    if active.config_of(server_args) is None:
        original(worker, server_args, *args, **kwargs)
        return
    given = os.environ.get("CXX")
    os.environ["CXX"] = f"{given or 'c++'} {_HEADER}"
    try:
        original(worker, server_args, *args, **kwargs)
    finally:
        if given is None:
            del os.environ["CXX"]
        else:
            os.environ["CXX"] = given


def _draft_chains(result: Any, worker: Any, *args: Any, **kwargs: Any) -> Any:
    if active.config_of(worker.server_args) is None:
        return None
    tokens, mask = result
    return chains_of(tokens, mask, worker.draft_token_num)


def _room_for_two_drafts(result: int, server_args: Any) -> int | None:
    """At the end of the context, too: SGLang's rows of slots have room for one draft and four tokens there."""
    if active.config_of(server_args) is None or server_args.speculative_algorithm is None:
        return None
    from redknot_sglang.pool.sizing import slots_ahead
    from redknot_sglang.pool.start_sizes import draft_tokens

    return max(result, slots_ahead(draft_tokens(server_args)))


def _no_draft_weights(original: Any, worker: Any, message: Any) -> tuple[bool, str]:
    """SGLang has the model's weights updated, then those of the draft model by the same message; where there is none it would end the
    scheduler, and where there is one its weights are of another checkpoint.
    """
    if active.config_of(worker.server_args) is None:
        found: tuple[bool, str] = original(worker, message)
        return found
    return True, "Succeeded to update model weights."


SEAMS = (
    Seam(
        "speculative.ngram_worker.NGRAMWorker.__init__",
        _compile_with_header,
        "around",
        "SGLang's n-gram corpus compiles with g++ 12, too",
    ),
    Seam(
        "speculative.ngram_worker.NGRAMWorker._prepare_draft_tokens",
        _draft_chains,
        "after",
        "a row sees all positions before its own, so that drafts must be chains",
    ),
    Seam(
        "mem_cache.allocation_sizing.get_req_to_token_extra_context_len",
        _room_for_two_drafts,
        "after",
        "drafts of a request at the end of the context must not write into another request's slots",
    ),
    *(
        Seam(
            f"speculative.base_spec_worker.BaseSpecWorker.update_weights_from_{source}",
            _no_draft_weights,
            "around",
            "weights of a running server are updated, and not those of its draft model, which n-grams have not",
        )
        for source in ("disk", "ipc")
    ),
)
