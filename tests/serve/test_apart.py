# SPDX-License-Identifier: Apache-2.0
"""What servers that are apart take of a request's options, and what a decode server says of an answer."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from redknot_sglang.errors import RedKnotError
from redknot_sglang.plan.options import make_plan
from redknot_sglang.plan.request import RequestState
from redknot_sglang.pool.sizing import ClassBytes
from redknot_sglang.serve.report import report_request
from redknot_sglang.serve.requests import _check_apart, _check_servable


@pytest.mark.parametrize("mode", ["prefill", "decode"])
def test_a_policy_that_leaves_documents_out_is_refused(mode: str) -> None:
    with pytest.raises(
        RedKnotError, match="the decode server would not know which; use redknot_repair boundary:K or none"
    ):
        _check_apart(SimpleNamespace(disaggregation_mode=mode), "question:2")
    _check_apart(SimpleNamespace(disaggregation_mode=mode), "blend:0.1")
    _check_apart(SimpleNamespace(disaggregation_mode="null"), "question:2")


def test_a_decode_server_takes_segmented_requests_without_a_prefix_cache() -> None:
    for mode in ("null", "decode"):
        args = SimpleNamespace(disable_radix_cache=True, disaggregation_mode=mode)
        manager, request = SimpleNamespace(server_args=args), SimpleNamespace(session_params=None)
        if mode == "decode":
            _check_servable(manager, request)
        else:
            with pytest.raises(RedKnotError, match="start without --disable-radix-cache"):
                _check_servable(manager, request)


def test_a_decode_server_says_nothing_of_what_a_prompt_took() -> None:
    params = {"redknot_mode": "segmented", "redknot_segments": [0, 40], "redknot_repair": "boundary:16"}

    def report(prefills: bool) -> dict[str, Any]:
        req = SimpleNamespace(
            finished_reason="length",
            output_ids=[1, 2],
            origin_input_ids=[0] * 50,
            cached_tokens=30,
            customized_info=None,
            redknot=RequestState(plan=make_plan(params, 50)),
        )
        found = report_request(req, 8, 2, ClassBytes(10, 3), None, prefills)
        assert found is not None
        return found

    assert report(prefills=False) == {
        "mode": "segmented",
        "cached_tokens": 30,
        "kv_bytes": 52 * 10 + 10 * 3,
        "stock_kv_bytes": 52 * 13,
        "segments": 1,
        "policy": "boundary:16",
    }
    assert {"computed_tokens", "computed_rows"} <= set(report(prefills=True))
