# SPDX-License-Identifier: Apache-2.0
"""`redknot doctor --model`: what a start would take, and why it would be refused."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from redknot_sglang.cli.main import main
from redknot_sglang.errors import StartError
from redknot_sglang.start_memory import checkpoint_bytes, estimate
from tests.serving.drafts import HEAD_DIM, KV_HEADS, random_draft
from tests.serving.harness import FLAGS, HEAD_MAP, MODEL, ON_CPU, run_redknot
from tests.versions import needs_host_tier

pytestmark = pytest.mark.skipif(not ON_CPU, reason="the flags are a CPU server's")
# Without the harness's own number of tokens; the map's certificate is for one SGLang version.
HERE = [*(flag for flag in FLAGS if not flag.startswith("--max-total-tokens")), "--redknot-uncertified"]


COMMAND = ("doctor", f"--model={MODEL}", "--", *HERE, f"--redknot-head-map={HEAD_MAP}")


def _doctor(capsys: pytest.CaptureFixture[str], *flags: str) -> tuple[int, str]:
    """The command without a process of its own."""
    capsys.readouterr()
    code, printed = main([*COMMAND, *flags]), capsys.readouterr()
    return code, printed.out + printed.err


def _estimate(*flags: str) -> str:
    """What the command prints of memory, without a process of its own. Raises StartError."""
    from sglang.srt.plugins import load_plugins

    load_plugins()
    return "\n".join(estimate(str(MODEL), [*HERE, f"--redknot-head-map={HEAD_MAP}", *flags]))


def test_what_a_start_would_take_is_what_it_takes() -> None:
    done = run_redknot(*COMMAND, "--max-total-tokens=8192", "--redknot-context-length=1024")
    said = done.stdout + done.stderr
    assert done.returncode == 0 and "weights 20.0 MiB" in said and "8192 global slots" in said, said
    global_bytes, local_slots, local_bytes = (
        int(re.search(pattern, said)[1])  # type: ignore[index]
        for pattern in (r"global slots of (\d+) bytes", r"(\d+) local slots", r"local slots of (\d+) bytes")
    )
    # Six of 24 KV heads of 64 are global, K and V in float32; the rest and the probe's rows are local.
    assert global_bytes == 6 * 2 * 64 * 4 and local_bytes > 18 * 2 * 64 * 4
    total = (8192 * global_bytes + local_slots * local_bytes) / 2**20
    assert f"KV {total:.1f} MiB (--max-total-tokens)" in said


@needs_host_tier
def test_it_says_what_the_host_tier_takes() -> None:
    tier = ["--enable-hierarchical-cache", "--hicache-ratio=3"]
    said = _estimate("--max-total-tokens=4096", "--redknot-context-length=1024", *tier)
    # Of twelve sequences of 1,024 tokens: 4 + 128 + 128 + 32 local slots each, and none for chunks in flight.
    assert "12288 global and 3504 local slots" in said
    size = (12288 * 6 * 2 * 64 * 4 + 3504 * (18 + 4) * 2 * 64 * 4) / 2**20
    assert f"in host memory {size:.1f} MiB more (--hicache-ratio)" in said
    with pytest.raises(StartError, match="--hicache-ratio 0.001 cannot hold a single request"):
        _estimate("--max-total-tokens=4096", "--enable-hierarchical-cache", "--hicache-ratio=0.001")


# Refused with the others.
@pytest.mark.pinned
def test_a_draft_models_kv_is_part_of_a_global_slot(tmp_path: Path) -> None:
    draft = random_draft(tmp_path / "draft", "EAGLE")
    size = (draft / "model.safetensors").stat().st_size / 2**20
    said = _estimate(
        "--max-total-tokens=8192",
        "--redknot-context-length=1024",
        "--speculative-algorithm=EAGLE",
        f"--speculative-draft-model-path={draft}",
        "--speculative-num-steps=2",
        "--speculative-eagle-topk=1",
        "--speculative-num-draft-tokens=3",
    )
    own, of_draft = 6 * 2 * 64 * 4, 2 * KV_HEADS * HEAD_DIM * 4
    assert f"8192 global slots of {own + of_draft} bytes, {of_draft} of them the draft model's" in said
    found = re.search(r"weights ([\d.]+) MiB", said)
    assert found is not None and abs(float(found[1]) - 20 - size) < 0.2


def _held(*flags: str) -> int:
    """Tokens that the same budget holds."""
    found = re.search(r"(\d+) global slots of", _estimate("--redknot-kv-budget=256M", "--dtype=bfloat16", *flags))
    assert found is not None
    return int(found[1])


@pytest.mark.parametrize("dtype", ["fp8_e4m3", "fp8_e5m2"])
def test_kv_of_8_bits_holds_nearly_twice_the_tokens(dtype: str) -> None:
    """What probes keep stays in the model's dtype; the longer requests are, the less it is of the whole."""
    assert _held(f"--kv-cache-dtype={dtype}") >= 1.8 * _held()
    assert _held("--kv-cache-dtype=bf16") == _held()
    said = _estimate("--max-total-tokens=8192", "--redknot-context-length=1024", f"--kv-cache-dtype={dtype}")
    # The model is served in float32: six global heads of 64, eighteen local ones, and four heads of probes in float32.
    assert f"8192 global slots of {6 * 2 * 64} bytes" in said
    assert f"local slots of {18 * 2 * 64 + 4 * 2 * 64 * 4} bytes" in said


def test_without_a_size_it_says_what_sglang_would_take_and_what_makes_it_less(
    capsys: pytest.CaptureFixture[str],
) -> None:
    code, said = _doctor(capsys)
    assert code == 0 and re.search(r"KV \d+\.\d GiB \(SGLang's share of what is free now", said), said
    assert "--max-total-tokens or --redknot-kv-budget makes it less" in said


@pytest.mark.parametrize(
    ("flag", "reason"),
    [
        ("--redknot-segment-tokens=100000000000", "leave no room for a request"),
        ("--redknot-kv-budget=1K", "--redknot-kv-budget 1024 bytes cannot hold a single request"),
        ("--redknot-kv-budget=900T", "are free for KV here; lower it or raise --mem-fraction-static"),
        ("--max-total-tokens=10", "--max-total-tokens 10 cannot hold a single request"),
        ("--max-total-tokens=-5", "--max-total-tokens -5 cannot hold a single request"),
        ("--mem-fraction-static=0.0000001", "KV memory gives 0 global and 0 local slots"),
        ("--nonsense=1", "unrecognized arguments: --nonsense=1"),
    ],
)
def test_what_would_be_refused_is_said(flag: str, reason: str) -> None:
    with pytest.raises(StartError) as refused:
        _estimate(flag)
    assert reason in str(refused.value) and len(str(refused.value).splitlines()) == 1


def test_a_refusal_is_a_problem_of_the_report(capsys: pytest.CaptureFixture[str]) -> None:
    code, said = _doctor(capsys, "--redknot-segment-tokens=100000000000")
    assert code == 1 and "leave no room for a request" in said and "1 problem(s) to solve first" in said, said
    assert "Traceback" not in said


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        # Tokens are a limit on what bytes give, as in SGLang, and never more than that.
        (("--redknot-kv-budget=64M", "--max-total-tokens=8192"), r"    8192 global slots"),
        (
            ("--redknot-kv-budget=64M", "--max-total-tokens=99999999"),
            r"  KV 64\.0 MiB \(--redknot-kv-budget; --max-total-",
        ),
        (("--max-total-tokens=99999999999",), r"  KV \d+\.\d [GM]iB \(SGLang's share of what is free now"),
        (("--redknot-kv-budget=64M", "--dp-size=2"), r"each of 2 rank\(s\)"),
    ],
)
def test_the_flags_together_decide(flags: tuple[str, ...], says: str) -> None:
    said = _estimate(*flags)
    assert re.search(says, said), said


def _save(path: Path, **tensors: torch.Tensor) -> None:
    save_file(tensors, path)


def test_weights_are_counted_as_they_are_loaded(tmp_path: Path) -> None:
    # Numbers are loaded in the model's dtype; quantized ones, and the integers that hold them, stay as they are.
    halves, words = torch.zeros(4, 8, dtype=torch.float16), torch.zeros(3, dtype=torch.int32)
    _save(tmp_path / "model-1.safetensors", a=halves, b=words)
    _save(
        tmp_path / "model-2.safetensors",
        c=torch.zeros(5, dtype=torch.float8_e4m3fn),
        d=torch.zeros(2, dtype=torch.bool),
    )
    expected = 32 * 4 + 3 * 4 + 5 + 2
    assert checkpoint_bytes(tmp_path, 4) == expected
    # Some checkpoints have all weights once more in one file, which is not loaded.
    _save(tmp_path / "consolidated.safetensors", a=halves)
    assert checkpoint_bytes(tmp_path, 4) == expected + 32 * 4
    names = {
        "a": "model-1.safetensors",
        "b": "model-1.safetensors",
        "c": "model-2.safetensors",
        "d": "model-2.safetensors",
    }
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    assert checkpoint_bytes(tmp_path, 4) == expected


def test_a_directory_without_weights_is_said(tmp_path: Path) -> None:
    with pytest.raises(StartError, match=r"there are no \*\.safetensors"):
        checkpoint_bytes(tmp_path, 4)


def test_flags_need_a_model() -> None:
    done = run_redknot("doctor", "--", "--max-total-tokens=1")
    assert done.returncode == 2 and "name its model with --model" in done.stderr
