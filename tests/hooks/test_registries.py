# SPDX-License-Identifier: Apache-2.0
"""A scheduler builds no tree over an SGLang that is not as we know it."""

from __future__ import annotations

import argparse
from types import SimpleNamespace

import pytest

from redknot_sglang import seams
from redknot_sglang.errors import RedKnotError, SeamError
from redknot_sglang.hooks.v0_5_17 import arguments, registries
from redknot_sglang.refuse import has_refused


def test_a_scheduler_says_in_one_line_what_is_different(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def verify() -> None:
        raise SeamError("SGLang has no wheels")

    monkeypatch.setattr(seams, "verify", verify)
    with pytest.raises(SystemExit) as ended:
        registries._build_tree(SimpleNamespace(server_args=SimpleNamespace(dp_size=1)))
    assert isinstance(ended.value.code, int) and has_refused(ended.value.code)
    assert capsys.readouterr().err == "redknot: error: SGLang has no wheels\n"


def test_the_eviction_policy_is_offered_once_and_built_by_sglang() -> None:
    from sglang.srt.mem_cache.utils import get_eviction_strategy
    from sglang.srt.server_args import RADIX_EVICTION_POLICY_CHOICES, ServerArgs

    from redknot_sglang.radix.keeper import POLICY, EvictionStrategy

    for _ in range(2):
        registries.register()
        registries.offer_eviction_policy()
    assert RADIX_EVICTION_POLICY_CHOICES.count(POLICY) == 1 and POLICY == registries.EVICTION_POLICY
    assert isinstance(get_eviction_strategy(POLICY), EvictionStrategy)
    parser = argparse.ArgumentParser()
    ServerArgs.add_cli_args(parser)
    assert parser.parse_args(["--model-path=m", f"--radix-eviction-policy={POLICY}"]).radix_eviction_policy == POLICY


def test_the_eviction_policy_needs_redknot() -> None:
    with pytest.raises(RedKnotError, match="--radix-eviction-policy redknot needs --redknot"):
        arguments.construction(()).hook(object, object(), model_path="m", radix_eviction_policy="redknot")
