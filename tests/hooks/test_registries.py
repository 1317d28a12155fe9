# SPDX-License-Identifier: Apache-2.0
"""A scheduler builds no tree over an SGLang that is not as we know it."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from redknot_sglang import seams
from redknot_sglang.errors import SeamError
from redknot_sglang.hooks.v0_5_17 import registries
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
