# SPDX-License-Identifier: Apache-2.0
"""What is checked of a request before its prompt is looked at."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from redknot_sglang.errors import RedKnotError
from redknot_sglang.plan.identity import namespace_of, salted
from redknot_sglang.serve.requests import check_unresolved


def request(params: dict[Any, Any] | None = None, **fields: Any) -> Any:
    return SimpleNamespace(
        **{"extra_key": None, "input_embeds": None, "sampling_params": {"custom_params": params}, **fields}
    )


@pytest.mark.parametrize("key", [None, "tenant"])
def test_a_client_cannot_name_the_namespace_of_isolated_segments(key: str | None) -> None:
    check_unresolved(request(extra_key=key, cache_salt=key))
    for ours in (namespace_of(key, whole=True), salted(key, "salt")):
        for name in ("extra_key", "cache_salt"):
            with pytest.raises(RedKnotError, match=f"{name} must not contain"):
                check_unresolved(request(None, **{name: ours}))


@pytest.mark.parametrize("params", [None, {}, {"mine": 1, 2: 3}, {"redknot_mode": "exact"}])
def test_embeddings_are_served_in_exact_mode(params: dict[Any, Any] | None) -> None:
    check_unresolved(request(params, input_embeds=[[0.0]]))
    check_unresolved(request(input_embeds=[[0.0]], sampling_params=None))


@pytest.mark.parametrize("params", [[1, 2], "abc", 5])
def test_options_are_an_object(params: Any) -> None:
    with pytest.raises(RedKnotError, match="must be a JSON object"):
        check_unresolved(request(params))


def test_a_request_for_an_embedding_has_neither_namespace_nor_options() -> None:
    check_unresolved(SimpleNamespace(sampling_params={"max_new_tokens": 0}))


@pytest.mark.parametrize(
    "params", [{"redknot_mode": "segmented"}, {"redknot_segments": [0, 4]}, {"redknot_mode": "exact", "redknot_x": 1}]
)
def test_embeddings_have_no_segments(params: dict[str, Any]) -> None:
    with pytest.raises(RedKnotError, match="not of input_embeds"):
        check_unresolved(request(params, input_embeds=[[0.0]]))
