# SPDX-License-Identifier: Apache-2.0
"""The --redknot options and their errors."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from redknot_sglang.config import RedKnotError, add_cli_args, make_config, parse_bytes, take_options


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
    ]
    options = vars(parser.parse_args(argv))
    config = make_config(take_options(options), "model")
    assert config is not None
    assert (config.head_map, config.context_length, config.kv_budget) == (Path("m.json"), 4096, 2**30)
    assert options == {}, "SGLang's arguments must not see ours"


def test_off_is_none_and_lone_options_are_refused() -> None:
    assert make_config({"redknot": False}, "model") is None
    assert make_config({}, "model") is None
    with pytest.raises(RedKnotError, match="no effect without --redknot"):
        make_config({"redknot_head_map": "m.json"}, "model")


def test_the_map_beside_the_model_is_the_default(tmp_path: Path) -> None:
    with pytest.raises(RedKnotError, match="redknot heads make"):
        make_config({"redknot": True}, str(tmp_path))
    (tmp_path / "head_map.json").write_text("{}")
    config = make_config({"redknot": True}, str(tmp_path))
    assert config is not None and config.head_map == tmp_path / "head_map.json"


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("redknot_context_length", 0, "positive number"),
        ("redknot_context_length", True, "positive number"),
        ("redknot_attention", "cuda", "one of fa3"),
        ("redknot_kv_budget", "lots", "is not a size"),
    ],
)
def test_bad_values(option: str, value: object, message: str) -> None:
    with pytest.raises(RedKnotError, match=message):
        make_config({"redknot": True, "redknot_head_map": "m.json", option: value}, None)
