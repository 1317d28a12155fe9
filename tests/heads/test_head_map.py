# SPDX-License-Identifier: Apache-2.0
"""Properties of HeadMap: saved is loaded, shards make up the whole, the fingerprint tells maps apart."""

from __future__ import annotations

import pickle
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from redknot_sglang.errors import HeadMapError
from redknot_sglang.heads import HeadClass, HeadMap, ModelInfo, load_head_map

NAMES = st.none() | st.sampled_from(["llama", "qwen3", "LlamaForCausalLM"])
SIZES = st.none() | st.integers(1, 1 << 20)
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)


@st.composite
def head_maps(draw: st.DrawFn) -> HeadMap:
    layers, heads = draw(st.integers(1, 6)), draw(st.sampled_from([1, 2, 3, 4, 8]))
    row = st.lists(st.booleans(), min_size=heads, max_size=heads).map(tuple)
    rows = draw(st.lists(row, min_size=layers, max_size=layers))
    return HeadMap(
        layers,
        heads,
        tuple(rows),
        window=draw(st.integers(1, 9000)),
        sink=draw(st.integers(0, 300)),
        model=ModelInfo(draw(NAMES), draw(NAMES), draw(SIZES), draw(SIZES)),
        provenance={**draw(st.dictionaries(st.text(), JSON_VALUES, max_size=3)), "method": "hypothesis"},
    )


def small_map(**changes: Any) -> HeadMap:
    rows = ((True, False, False, False), (False, True, True, False))
    fields: dict[str, Any] = {"num_layers": 2, "num_kv_heads": 4, "is_global": rows, "window": 16, "sink": 4}
    return HeadMap(**{**fields, **changes})


@given(head_maps())
def test_what_is_saved_is_loaded(tmp_path_factory: pytest.TempPathFactory, head_map: HeadMap) -> None:
    file = tmp_path_factory.mktemp("map") / "map.json"
    head_map.save(file)
    loaded = load_head_map(file)
    assert loaded == head_map
    assert loaded.fingerprint == head_map.fingerprint
    assert loaded.to_dict() == head_map.to_dict()


@given(head_maps())
def test_counts_agree_with_classes(head_map: HeadMap) -> None:
    for layer in range(head_map.num_layers):
        chosen, rest = head_map.global_heads(layer), head_map.local_heads(layer)
        assert sorted(chosen + rest) == list(range(head_map.num_kv_heads))
        assert (len(chosen), len(rest)) == (head_map.num_global(layer), head_map.num_local(layer))
        assert all(head_map.head_class(layer, head) is HeadClass.GLOBAL for head in chosen)
        assert all(head_map.head_class(layer, head) is HeadClass.LOCAL for head in rest)
    total = sum(map(head_map.num_global, range(head_map.num_layers)))
    assert head_map.global_share == total / (head_map.num_layers * head_map.num_kv_heads)
    assert head_map.all_global == (head_map.global_share == 1.0)


@given(head_maps(), st.data())
def test_shards_side_by_side_are_the_whole(head_map: HeadMap, data: st.DataObject) -> None:
    divisors = [n for n in range(1, head_map.num_kv_heads + 1) if head_map.num_kv_heads % n == 0]
    tp_size = data.draw(st.sampled_from(divisors))
    shards = [head_map.shard(rank, tp_size) for rank in range(tp_size)]
    for layer in range(head_map.num_layers):
        assert sum((shard.is_global[layer] for shard in shards), ()) == head_map.is_global[layer]
    for shard in shards:
        assert shard.num_kv_heads == head_map.num_kv_heads // tp_size
        assert (shard.window, shard.sink, shard.model) == (head_map.window, head_map.sink, head_map.model)


@given(head_maps(), st.integers(2, 4))
def test_replicated_shards_hold_the_head_that_sglang_puts_there(head_map: HeadMap, copies: int) -> None:
    tp_size = head_map.num_kv_heads * copies
    for rank in range(tp_size):
        shard = head_map.shard(rank, tp_size)
        assert shard.num_kv_heads == 1
        # SGLang's QKV projection gives consecutive ranks the copies of one head.
        assert [row[0] for row in shard.is_global] == [row[rank // copies] for row in head_map.is_global]


def test_a_shard_says_whose_it_is() -> None:
    shard = small_map().shard(1, 2)
    assert shard.is_global == ((False, False), (True, False))
    assert shard.provenance["shard"] == {"rank": 1, "size": 2, "of": small_map().fingerprint}


@pytest.mark.parametrize(
    ("rank", "size", "message"),
    [
        (0, 3, "4 KV heads cannot be spread over tp_size 3: one must divide the other"),
        (0, 6, "4 KV heads cannot be spread over tp_size 6: one must divide the other"),
        (2, 2, "tp_rank 2 does not exist with tp_size 2"),
        (-1, 2, "tp_rank must be at least 0, got int -1"),
        (0, 0, "tp_size must be at least 1, got int 0"),
    ],
)
def test_impossible_shards_are_refused(rank: int, size: int, message: str) -> None:
    with pytest.raises(HeadMapError) as caught:
        small_map().shard(rank, size)
    assert str(caught.value) == message


@given(head_maps(), st.data())
def test_fingerprint_changes_with_every_class(head_map: HeadMap, data: st.DataObject) -> None:
    layer = data.draw(st.integers(0, head_map.num_layers - 1))
    head = data.draw(st.integers(0, head_map.num_kv_heads - 1))
    rows = [list(row) for row in head_map.is_global]
    rows[layer][head] = not rows[layer][head]
    flipped = replace(head_map, is_global=tuple(map(tuple, rows)))
    wider = replace(head_map, window=head_map.window + 1)
    sunk = replace(head_map, sink=head_map.sink + 1)
    assert len({m.fingerprint for m in (head_map, flipped, wider, sunk)}) == 4


@given(head_maps())
def test_fingerprint_ignores_what_does_not_decide_the_output(head_map: HeadMap) -> None:
    other = replace(head_map, model=ModelInfo(model_type="other"), provenance={"method": "other"})
    assert other.fingerprint == head_map.fingerprint


def test_fingerprint_is_pinned() -> None:
    """Caches and stores will hold it: a change of the canonical form must be a decision, not an accident."""
    assert small_map().fingerprint == "b3e69f6961d87e257122ba0783acfa37e0e9aa5148910f57311b19e169459855"


def test_fingerprint_is_the_same_in_another_process() -> None:
    code = (
        "from redknot_sglang.heads import HeadMap\n"
        "rows = ((True, False, False, False), (False, True, True, False))\n"
        "print(HeadMap(2, 4, rows, 16, 4).fingerprint)"
    )
    root = Path(__file__).parents[2]
    run = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == small_map().fingerprint


@given(head_maps(), st.integers(1, 1 << 20), st.integers(1, 1 << 20))
def test_compression_never_rises_with_length(head_map: HeadMap, one: int, other: int) -> None:
    shorter, longer = head_map.compression(min(one, other)), head_map.compression(max(one, other))
    assert head_map.global_share <= longer <= shorter <= 1.0 + 1e-12


def test_compression_is_the_formula() -> None:
    head_map = small_map(window=252, sink=4)  # rho = 3 / 8
    assert head_map.compression(100) == 1.0
    assert head_map.compression(256) == 1.0
    assert head_map.compression(1024) == pytest.approx(3 / 8 + 5 / 8 / 4)
    assert small_map(is_global=((True,) * 4,) * 2).compression(1 << 20) == 1.0
    with pytest.raises(HeadMapError, match="length must be at least 1, got int 0"):
        head_map.compression(0)


def test_check_model() -> None:
    head_map = small_map(model=ModelInfo(model_type="llama"))
    head_map.check_model(2, 4)
    head_map.check_model(2, 4, "llama")
    small_map().check_model(2, 4, "whatever")  # a map that does not know its model's type cannot object
    for arguments, part in (
        ((3, 4), "layers: 2 in the map, 3 in the model"),
        ((2, 8), "KV heads per layer: 4 in the map, 8 in the model"),
        ((2, 4, "qwen3"), "model type: llama in the map, qwen3 in the model"),
    ):
        with pytest.raises(HeadMapError) as caught:
            head_map.check_model(*arguments)
        assert part in str(caught.value) and "redknot heads make" in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_layers": 0}, "num_layers must be at least 1, got int 0"),
        ({"num_kv_heads": "4"}, "num_kv_heads must be an integer, got str '4'"),
        ({"num_layers": 3}, "is_global has 2 layers, num_layers is 3"),
        ({"is_global": ((True,) * 4, (True,) * 3)}, "layer 1 has 3 heads, num_kv_heads is 4"),
        (
            {"is_global": ((True,) * 4, (True, 1, True, True))},
            "is_global at layer 1, head 1 must be True or False, got int 1",
        ),
        ({"window": 0}, "window must be at least 1, got int 0"),
        ({"window": True}, "window must be an integer, got bool True"),
        ({"sink": -1}, "sink must be at least 0, got int -1"),
        ({"sink": 4.0}, "sink must be an integer, got float 4.0"),
        ({"sink": -(10**5000)}, "sink must be at least 0, got int ..."),
        ({"provenance": {}}, "provenance.method must be a non-empty string, got NoneType None"),
        ({"provenance": {"method": "  "}}, "provenance.method must be a non-empty string, got str '  '"),
        ({"provenance": "manual"}, "provenance must be an object, got str 'manual'"),
        (
            {"provenance": {"method": "m", "x": {1, 2}}},
            "provenance cannot be written as JSON: Object of type set is not JSON serializable",
        ),
    ],
)
def test_wrong_maps_cannot_be_constructed(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(HeadMapError) as caught:
        small_map(**changes)
    assert str(caught.value) == message


def test_layers_and_heads_out_of_range_are_errors_not_wrapped_indices() -> None:
    head_map = small_map()
    for layer in (-1, 2):
        with pytest.raises(HeadMapError, match=f"no layer {layer}: the map has layers 0 to 1"):
            head_map.num_global(layer)
    with pytest.raises(HeadMapError, match="no KV head -1: the map has heads 0 to 3"):
        head_map.head_class(0, -1)
    with pytest.raises(HeadMapError, match="no head 4 in layer 0: there are 2 layers of 4 heads"):
        HeadMap.from_global_heads(2, 4, [(0, 4)], window=16, sink=4)


def test_from_global_heads() -> None:
    head_map = HeadMap.from_global_heads(2, 4, [(0, 0), (1, 2), (1, 1)], window=16, sink=4)
    assert head_map == small_map()
    assert head_map.provenance == {"method": "code"}


def test_a_map_is_a_value() -> None:
    notes = {"method": "m", "list": [1]}
    head_map = small_map(provenance=notes)
    notes["list"].append(2)  # type: ignore[attr-defined]
    assert head_map.provenance["list"] == [1]
    assert hash(head_map) == hash(small_map(provenance={"method": "m", "list": [1]}))
    assert pickle.loads(pickle.dumps(head_map)) == head_map
    with pytest.raises(AttributeError):
        head_map.window = 1  # type: ignore[misc]


def test_no_framework_is_imported() -> None:
    """A head map must be readable where neither SGLang nor torch is installed."""
    code = (
        "import sys\n"
        "import redknot_sglang.heads, redknot_sglang.heads.heat_map, redknot_sglang.cli.heads\n"
        "print(sorted({'sglang', 'torch', 'transformers', 'PIL'} & set(sys.modules)))"
    )
    root = Path(__file__).parents[2]
    run = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_documents_are_asked_for_up_to_the_deepest_retrieval_head() -> None:
    assert small_map().asking_layers == 0
    assert small_map(retrieval=((0, 1),)).asking_layers == 1
    assert small_map(retrieval=((1, 5), (0, 1))).asking_layers == 2
