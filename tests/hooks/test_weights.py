# SPDX-License-Identifier: Apache-2.0
"""Where weights come in, heads are dealt out or the server says why not; weights that were dealt out do not leave
it.
"""

from __future__ import annotations

import logging
from inspect import unwrap
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from redknot_sglang import active
from redknot_sglang.config import RedKnotConfig
from redknot_sglang.errors import RedKnotError
from redknot_sglang.heads import HeadMap
from redknot_sglang.hooks.v0_5_17 import weights
from redknot_sglang.pool.dealing import STREAMING, Dealing, attach
from redknot_sglang.pool.dealt_weights import is_dealt
from redknot_sglang.refuse import has_refused
from redknot_sglang.seams import sglang
from tests.versions import before_adapted

HEADS = HeadMap.from_global_heads(2, 2, ((0, 0), (1, 0)), 8, 1)
SHAPES = {"q": (4, 3), "k": (4, 3), "v": (4, 3), "o": (3, 4)}


class LlamaForCausalLM:
    def __init__(self) -> None:
        self.loaded: dict[str, Any] = {}

    def load_weights(self, found: Any) -> str:
        self.loaded |= dict(found)
        return "loaded"

    def modules(self) -> tuple[Any, ...]:
        """Newer SGLang looks what its layers have derived from weights."""
        return ()


def checkpoint() -> dict[str, torch.Tensor]:
    return {
        f"model.layers.{layer}.self_attn.{part}_proj.weight": torch.randn(shape)
        for layer in range(2)
        for part, shape in SHAPES.items()
    }


def hook(name: str) -> Any:
    (found,) = [seam.hook for seam in weights.SEAMS if seam.target.endswith("." + name)]
    return found


@pytest.fixture
def server_args(monkeypatch: pytest.MonkeyPatch) -> Any:
    found = SimpleNamespace(dp_size=1)
    active.attach(found, RedKnotConfig(Path("map")))
    monkeypatch.setitem(vars(sglang), "get_server_args", lambda: found)
    monkeypatch.setitem(vars(sglang), "get_parallel", lambda: SimpleNamespace(attn_tp_rank=0))
    return found


def made(why_not: str | None = None, load_format: str = "auto", model: Any = None) -> Any:
    """A model as SGLang's loader has made it, the hook called."""
    model, config = model or LlamaForCausalLM(), SimpleNamespace(head_dim=2)
    attach(config, Dealing.of(HEADS, 1, 2, why_not))
    hook("_initialize_model")(model, config, SimpleNamespace(load_format=load_format))
    return model


@pytest.mark.usefixtures("server_args")
def test_a_new_model_s_weights_are_dealt_out_and_the_log_says_so(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        model = made()
    assert [record.getMessage() for record in caplog.records] == [
        "RedKnot: 2 ranks hold 1, 1 global heads; in the checkpoint's order one would hold 2"
    ]
    assert is_dealt(model)
    whole = checkpoint()
    assert model.load_weights(whole.items()) == "loaded"
    same = [
        layer
        for layer in range(2)
        if torch.equal(*(x[f"model.layers.{layer}.self_attn.q_proj.weight"] for x in (whole, model.loaded)))
    ]
    assert len(same) == 1, "of one of both layers the global head goes to the other rank"


@pytest.mark.usefixtures("server_args")
def test_where_heads_stay_one_line_says_what_it_costs(caplog: pytest.LogCaptureFixture) -> None:
    model = made("weights are packed")
    (record,) = caplog.records
    assert (
        record.levelno == logging.WARNING
        and "weights are packed. Dealt out, no rank would hold more than 1, and the pools up to 2.00 times"
        in record.getMessage()
    )
    assert not is_dealt(model)


@pytest.mark.usefixtures("server_args")
@pytest.mark.parametrize("when", ["made", "loaded"])
def test_a_model_that_cannot_follow_ends_the_start_in_one_line(when: str, capsys: pytest.CaptureFixture[str]) -> None:
    class OtherForCausalLM(LlamaForCausalLM):
        pass

    with pytest.raises(SystemExit) as ended:
        if when == "made":
            made(model=OtherForCausalLM())
        made().load_weights([("layers.0.attention.wq.weight", torch.zeros(4, 3))])
    assert isinstance(ended.value.code, int) and has_refused(ended.value.code)
    # Where another test has set up logging, a line of the log is there as well.
    said = capsys.readouterr().err.splitlines()
    (line,) = [line for line in said if line.startswith("redknot: error: ")]
    assert "--tp-size 1" in line and not any(line.startswith("Traceback") for line in said)


@pytest.mark.usefixtures("server_args")
def test_a_later_update_that_cannot_follow_is_an_error_and_no_end() -> None:
    model = made()
    model.load_weights(checkpoint().items())
    with pytest.raises(RedKnotError, match="is no weight of attention as it is known"):
        model.load_weights([("model.layers.0.self_attn.q_proj.qweight", torch.zeros(4, 3))])
    made_up = made(load_format="dummy")
    with pytest.raises(RedKnotError, match="is no weight of attention as it is known"):
        made_up.load_weights([("model.layers.0.self_attn.q_proj.qweight", torch.zeros(4, 3))])


def test_other_servers_and_draft_models_are_left_alone(server_args: Any) -> None:
    model = LlamaForCausalLM()
    hook("_initialize_model")(model, SimpleNamespace(), SimpleNamespace(load_format="auto"))
    assert not is_dealt(model)
    vars(server_args).clear()
    assert not is_dealt(made())


def owner(model: Any) -> Any:
    """SGLang's updater or exporter of a model."""
    return SimpleNamespace(get_model=lambda: model, model_config=SimpleNamespace(model_path="first"))


def never(*args: Any, **kwargs: Any) -> Any:
    raise AssertionError("not to be called")


@pytest.mark.usefixtures("server_args")
def test_updates_that_would_not_deal_heads_out_are_refused() -> None:
    dealt, plain = owner(made()), owner(LlamaForCausalLM())
    disk, tensor = hook("update_weights_from_disk"), hook("update_weights_from_tensor")
    done, why = disk(never, dealt, "folder", "sharded_state")
    assert not done and "load_format sharded_state cannot be used" in why and "auto" in why
    done, why = tensor(never, dealt, [], "direct")
    assert not done and "load_format direct cannot be used" in why and "leave it out" in why

    def original(*args: Any) -> tuple[bool, str]:
        return True, f"{args[-1]}"

    for load_format in STREAMING:
        assert disk(original, dealt, "folder", load_format) == (True, load_format)
    for whole in (None, "flattened_bucket"):
        assert tensor(original, dealt, [], whole) == (True, str(whole))
    assert disk(original, plain, "folder", "sharded_state")[0] and tensor(original, plain, [], "direct")[0]

    def refused(*args: Any) -> Any:
        raise RedKnotError("packed")

    done, why = tensor(refused, dealt, [])
    assert not done and why == "packed. Weights before it are in place, so load all of them again"
    with pytest.raises(RedKnotError):
        tensor(refused, plain, [])


@before_adapted
@pytest.mark.usefixtures("server_args")
def test_a_folder_that_cannot_follow_does_not_end_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    """SGLang's own updater loads the folder twice, the second time to roll back."""
    from sglang.srt.model_executor.model_runner_components.weight_updater import WeightUpdater
    from sglang.srt.model_loader.loader import DefaultModelLoader

    packed = {"model.layers.0.self_attn.q_proj.qweight": torch.zeros(4, 3)}
    monkeypatch.setattr(DefaultModelLoader, "_get_weights_iterator", lambda loader, source: iter(packed.items()))
    model = made(load_format="dummy")
    config = SimpleNamespace(model_path="first", revision=None, dtype=torch.float32, quantization=None)
    updater = WeightUpdater(
        tp_rank=0,
        device="cpu",
        gpu_id=0,
        model_config=config,
        custom_weight_loaders={},
        get_model=lambda: model,
        update_model_fields=never,
        recapture_cuda_graph=never,
        get_model_runner=lambda: SimpleNamespace(server_args=SimpleNamespace(weight_cache_mode="off")),
    )
    done, why = hook("update_weights_from_disk")(
        unwrap(WeightUpdater.update_weights_from_disk), updater, "second", "auto"
    )
    assert not done and "is no weight of attention as it is known" in why and why.endswith("such as first")
    assert config.model_path == "first"


@pytest.mark.usefixtures("server_args")
def test_dealt_weights_do_not_leave_the_server() -> None:
    dealt, plain = owner(made()), owner(LlamaForCausalLM())
    for name in ("init_weights_send_group_for_remote_instance", "send_weights_to_remote_instance"):
        done, why = hook(name)(never, dealt)
        assert not done and "weights cannot be sent to another server" in why
        assert hook(name)(lambda *args: "sent", plain) == "sent"
    for name in ("save_remote_model", "save_sharded_model"):
        with pytest.raises(RedKnotError, match="save them from a server without --redknot"):
            hook(name)(never, dealt, "there")
        hook(name)(lambda *args: None, plain, "there")
    show = hook("get_weights_by_name")
    assert show(never, dealt, "model.layers.0.self_attn.q_proj.weight") is None
    assert show(lambda exporter, name: name, dealt, "lm_head.weight") == "lm_head.weight"
    assert show(lambda exporter, name: name, plain, "model.layers.0.self_attn.q_proj.weight")
