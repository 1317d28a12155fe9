# SPDX-License-Identifier: Apache-2.0
from pathlib import Path

from redknot_sglang.config import RedKnotConfig
from redknot_sglang.route.facts import Facts, read_facts
from redknot_sglang.serve.status import segment_settings


def test_a_router_reads_what_a_server_says_of_segments() -> None:
    plain = RedKnotConfig(Path("map.json"))
    assert read_facts({"segments": segment_settings(plain)}) == Facts(mode="exact")
    config = RedKnotConfig(
        Path("map.json"), mode="segmented", repair="blend:0.08", segment_lead="lead", separator="<|cut|>"
    )
    facts = read_facts({"segments": segment_settings(config)}, separator_token=5)
    assert facts == Facts("segmented", "blend:0.08", "lead", "<|cut|>", 5)
