# SPDX-License-Identifier: Apache-2.0
"""The --redknot flags, the configuration made of them, and what is refused."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from redknot_sglang.config import RedKnotConfig
from redknot_sglang.errors import RedKnotError
from redknot_sglang.flags import add_cli_args, make_config, parse_bytes, take_options


@pytest.mark.parametrize(
    ("text", "size"), [("1000", 1000), (5, 5), ("4K", 4096), ("1.5MiB", 1572864), ("8GB", 2**33), ("2 gib", 2**31)]
)
def test_sizes(text: str | int, size: int) -> None:
    assert parse_bytes(text) == size


@pytest.mark.parametrize("text", ["", "many", "-3", "0", "3X", "1e9"])
def test_not_a_size(text: str) -> None:
    with pytest.raises(RedKnotError, match="is not a size"):
        parse_bytes(text)


def test_flags_become_a_config() -> None:
    parser = argparse.ArgumentParser()
    add_cli_args(parser)
    argv = [
        "--redknot",
        "--redknot-head-map",
        "m.json",
        "--redknot-context-length",
        "4096",
        "--redknot-kv-budget",
        "1G",
        "--redknot-certificate-key",
        "k.pem",
        "--redknot-uncertified",
        "--redknot-segment-tokens=65536",
        "--redknot-inspect-texts",
    ]
    options = vars(parser.parse_args(argv))
    config = make_config(take_options(options), "model")
    assert config is not None
    assert (config.head_map, config.context_length, config.kv_budget) == (Path("m.json"), 4096, 2**30)
    assert (config.certificate_key, config.uncertified, config.inspect_texts) == (Path("k.pem"), True, True)
    assert (config.segment_tokens, config.expects_segments, config.policy) == (65536, True, "exact")
    assert options == {}, "SGLang's arguments must not see ours"


def test_off_is_none_and_lone_options_are_refused() -> None:
    assert make_config({"redknot": False}, "model") is None
    assert make_config({}, "model") is None
    with pytest.raises(RedKnotError, match="no effect without --redknot"):
        make_config({"redknot_head_map": "m.json"}, "model")
    with pytest.raises(RedKnotError, match="--redknot-uncertified has no effect"):
        make_config({"redknot_uncertified": True}, "model")


def test_certificates_name_policies_with_their_lead() -> None:
    def config(**options: str) -> RedKnotConfig:
        made = make_config({"redknot": True, "redknot_head_map": "m.json", **options}, None)
        assert made is not None
        return made

    assert config(redknot_repair="blend:.05").policy == "exact"
    segmented = config(redknot_mode="segmented", redknot_repair="blend:.050")
    assert segmented.policy == "blend:0.05", "as requests name it"
    led = config(redknot_mode="segmented", redknot_repair="boundary:16", redknot_segment_lead="lead")
    assert led.policy == "boundary:16+lead" and led.certified_name("none") == "none+lead"


def test_the_map_beside_the_model_is_the_default(tmp_path: Path) -> None:
    with pytest.raises(RedKnotError, match="redknot heads make"):
        make_config({"redknot": True}, str(tmp_path))
    (tmp_path / "head_map.json").write_text("{}")
    config = make_config({"redknot": True}, str(tmp_path))
    assert config is not None and config.head_map == tmp_path / "head_map.json"


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("redknot_context_length", 0, "whole number of tokens"),
        ("redknot_context_length", True, "whole number of tokens"),
        ("redknot_segment_tokens", 0, "--redknot-segment-tokens must be a whole number of tokens"),
        ("redknot_attention", "cuda", "one of fa3"),
        ("redknot_kv_budget", "lots", "is not a size"),
        ("redknot_repair", "magic", "'magic' is not known"),
    ],
)
def test_bad_values(option: str, value: object, message: str) -> None:
    with pytest.raises(RedKnotError, match=message):
        make_config({"redknot": True, "redknot_head_map": "m.json", option: value}, None)
