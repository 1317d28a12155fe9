# SPDX-License-Identifier: Apache-2.0
"""One object on each request and batch holds all that RedKnot knows of it."""

from __future__ import annotations

import ast
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import redknot_sglang
from redknot_sglang.plan.gather import Stretch
from redknot_sglang.plan.request import (
    RequestState,
    is_isolated,
    is_own_work,
    known_state,
    mark_batch,
    state_of,
    stretches_of,
    take_options,
)
from redknot_sglang.plan.spans import positions_of

PACKAGE = Path(redknot_sglang.__file__).resolve().parent


def request(params: dict[str, Any] | None) -> Any:
    return SimpleNamespace(sampling_params=SimpleNamespace(custom_params=params), origin_input_ids=range(9))


def test_the_plan_is_made_once() -> None:
    options = {"redknot_mode": "segmented", "redknot_repair": "none", "redknot_segments": [2, 5]}
    req = request({**options, "mine": 1})
    assert known_state(req) is None
    take_options(req)
    state = state_of(req)
    assert state is known_state(req) is state_of(req) and req.sampling_params.custom_params == {"mine": 1}
    assert state.plan is not None and state.plan.segments == ((2, 5),)
    # The options are gone, and the prompt of a request that is refused is cut.
    req.origin_input_ids = range(1)
    assert state_of(req).plan is state.plan and [name for name in vars(req) if "redknot" in name] == ["redknot"]
    exact = request(None)
    assert state_of(exact).plan is None and exact.sampling_params.custom_params is None


def test_own_work_is_told_from_clients_and_from_requests_nobody_has_seen() -> None:
    states = [None, RequestState(), RequestState(preloads=True), RequestState(identity=(None, b"key"))]
    reqs = [SimpleNamespace(**({} if state is None else {"redknot": state})) for state in states]
    assert [is_isolated(req) for req in reqs] == [False, False, False, True]
    assert [is_own_work(req) for req in reqs] == [False, False, True, True]
    assert "redknot" not in vars(reqs[0]), "to ask leaves no trace, as on a server without RedKnot"


def test_states_share_nothing() -> None:
    one, two = RequestState(), RequestState()
    one.dead.append((1, 2))
    one.sources[1, 2] = one.used[None, b""] = None
    one.fresh.add((1, 2))
    assert not (two.dead or two.sources or two.used or two.fresh)


def test_batches_keep_their_stretches() -> None:
    batch, stretch = SimpleNamespace(), Stretch(0, 3, positions_of([(0, 2)]), positions_of([(2, 3)]))
    assert stretches_of(batch) == {}
    mark_batch(batch, {1: stretch})
    assert stretches_of(batch) == {1: stretch}


def test_nobody_puts_more_on_requests_and_batches() -> None:
    """SGLang's long-lived objects, one of a kind, may have attributes of ours."""
    loose = [
        f"{path.relative_to(PACKAGE)}:{node.lineno}: {ast.unparse(node)}"
        for path in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute) and node.attr.startswith("redknot_")
        if ast.unparse(node.value) not in ("scheduler", "manager", "runner", "model_config", "module")
    ]
    assert not loose, "\n".join(loose)
