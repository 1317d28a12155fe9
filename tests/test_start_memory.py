# SPDX-License-Identifier: Apache-2.0
"""`redknot doctor --model`: what a start would take, and why it would be refused."""

from __future__ import annotations

import re

import pytest

from tests.serving.harness import FLAGS, HEAD_MAP, MODEL, ON_CPU, run_redknot

pytestmark = pytest.mark.skipif(not ON_CPU, reason="the flags are a CPU server's")
# Without the harness's own number of tokens.
HERE = [flag for flag in FLAGS if not flag.startswith("--max-total-tokens")]


def _doctor(*flags: str) -> tuple[int, str]:
    done = run_redknot("doctor", f"--model={MODEL}", "--", *HERE, f"--redknot-head-map={HEAD_MAP}", *flags)
    return done.returncode, done.stdout + done.stderr


def test_what_a_start_would_take_is_what_it_takes() -> None:
    code, said = _doctor("--max-total-tokens=8192", "--redknot-context-length=1024")
    assert code == 0 and "weights 20.0 MiB" in said and "8192 global slots" in said, said
    global_bytes, local_slots, local_bytes = (
        int(re.search(pattern, said)[1])  # type: ignore[index]
        for pattern in (r"global slots of (\d+) bytes", r"(\d+) local slots", r"local slots of (\d+) bytes")
    )
    # Six of 24 KV heads of 64 are global, K and V in float32; the rest and the probe's rows are local.
    assert global_bytes == 6 * 2 * 64 * 4 and local_bytes > 18 * 2 * 64 * 4
    total = (8192 * global_bytes + local_slots * local_bytes) / 2**20
    assert f"KV {total:.1f} MiB (--max-total-tokens)" in said


def test_without_a_size_it_says_what_sglang_would_take_and_what_makes_it_less() -> None:
    code, said = _doctor()
    assert code == 0 and re.search(r"KV \d+\.\d GiB \(SGLang's share of what is free now", said), said
    assert "--max-total-tokens or --redknot-kv-budget makes it less" in said


@pytest.mark.parametrize(
    ("flag", "reason"),
    [
        ("--redknot-segment-tokens=100000000000", "leave no room for a request"),
        ("--redknot-kv-budget=1K", "cannot hold a single request"),
        ("--nonsense=1", "unrecognized arguments: --nonsense=1"),
    ],
)
def test_what_would_be_refused_is_said(flag: str, reason: str) -> None:
    code, said = _doctor(flag)
    assert code == 1 and reason in said and "Traceback" not in said, said


def test_flags_need_a_model() -> None:
    done = run_redknot("doctor", "--", "--max-total-tokens=1")
    assert done.returncode == 2 and "name its model with --model" in done.stderr
