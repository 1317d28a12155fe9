# SPDX-License-Identifier: Apache-2.0
"""The demo in small, both servers and both clients included."""

import json
import sys
from pathlib import Path

import pytest
from PIL import Image

from eval.demo.settings import REDKNOT, STOCK
from redknot_sglang.cpu import install_kernel_stand_in
from redknot_sglang.measure.checkout import load_demo
from tests.serving.harness import ON_CPU, fork_servers_of

pytestmark = pytest.mark.serving


def test_the_demo_measures_both_servers_and_writes_its_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, full: bool
) -> None:
    install_kernel_stand_in()
    demo = load_demo()
    fork_servers_of(sys.modules["eval.demo.run"], monkeypatch, full)
    settings = demo.Settings(
        device="cpu" if ON_CPU else "cuda",
        conversations=6,
        frontend_conversations=1,
        turns=2,
        length=768,
        fill_requests=12,
        fill_length=512,
    )
    table = demo.run_demo(settings, tmp_path)
    servers = json.loads((tmp_path / "demo.json").read_text())["servers"]
    assert set(servers) == {STOCK, REDKNOT}
    stock, redknot = servers[STOCK], servers[REDKNOT]
    assert stock["asked"] == redknot["asked"] == 14
    assert stock["right"] >= 13 and redknot["right"] >= 13
    assert redknot["kv_bytes"] < 0.6 * stock["kv_bytes"]
    assert redknot["fit"] > stock["fit"] >= 1
    assert redknot["cached"] > stock["cached"]
    assert "exact match of all turns" in table and STOCK in table and REDKNOT in table
    assert Image.open(tmp_path / "demo.png").size[0] > 1000
