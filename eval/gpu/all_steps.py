# SPDX-License-Identifier: Apache-2.0
"""The GPU measurements that `eval.everything` runs, with what each needs and may take.

Seconds are of an H200 whose host imports SGLang in a minute, the first compilation of kernels included.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Step:
    """One measurement.

    name: of its folder and its log. gpus: how many it needs. seconds: after which it is interrupted. words: its command behind
    `python -m`; {out} is its folder, {models} that of `--models`. environment: added to that of the process.
    """

    name: str
    gpus: int
    seconds: int
    words: str
    environment: Mapping[str, str]

    @property
    def needs_models(self) -> bool:
        """Whether it reads pretrained weights."""
        return "{models}" in self.words


_TIMES = (
    "eval.bench_gpu --shape qwen3-8b --maps one_of_eight --lengths 8K,32K --decode 8K:1,32K:1,32K:8 --requests 5 "
    "--segment-lengths 32K --policies boundary:16,question:2 --retrieval 10.3,14.0,14.2,20.1 --json {out}/gpu.json"
)
# Sizes of prefill graphs that the rows of these requests fit into: the whole prompt, and question, tail and a chosen document.
_GRAPHS = "--stock-prefill-graphs=64,1024,7552,7936,8192 --redknot-prefill-graphs=16,32,64,128,320,576,1088,2176,7552,7936,8192"
_EIGHT_BITS = "--redknot-flag=--kv-cache-dtype=fp8_e4m3"
_TWO = "--stock-flag=--tp-size=2 --redknot-flag=--tp-size=2"
_RANKS = "eval.bench_ranks --shape qwen3-8b --maps one_of_eight --flag=--redknot-repair=none --json {out}/ranks.json"
_TIERS = 'eval.bench_tiers --shape qwen3-8b --stock-flags="--attention-backend=fa3" --json {out}/tiers.json'
_TESTS = "pytest -x -q -s -p no:cacheprovider -m gpu --basetemp={out}/tmp"
_TCP = {"MC_FORCE_TCP": "1"}

STEPS = tuple(
    Step(name, gpus, seconds, words, environment)
    for name, gpus, seconds, words, environment in (
        ("two_ranks", 2, 420, f"{_TIMES} --steps cold,segments,decode {_GRAPHS} {_TWO}", {}),
        ("two_ranks_tests", 2, 400, f"{_TESTS} tests/gpu/test_ranks.py", {}),
        ("ranks", 2, 240, f"{_RANKS} --ranks 1,2", {}),
        (
            "apart",
            2,
            420,
            'eval.bench_apart --shape qwen3-8b --lengths 32768 --stock-flags="--attention-backend=fa3" --json {out}/apart.json',
            {},
        ),
        ("one_rank", 1, 420, f"{_TIMES} --steps cold,segments,decode {_GRAPHS}", {}),
        (
            "choosing_trace",
            1,
            240,
            "eval.bench_segment_hit --shape qwen3-8b --head-map retrieval.json --documents 16 --document-tokens 2038 "
            "--policies question:2 --trace {out} --json {out}/hit.json",
            {},
        ),
        ("eight_bits", 1, 240, f"{_TIMES} --steps cold,decode {_EIGHT_BITS}", {}),
        ("eight_bits_held", 1, 120, f"{_RANKS} --ranks 1 --flag=--kv-cache-dtype=fp8_e4m3", {}),
        ("eight_bits_tests", 1, 400, f"{_TESTS} tests/gpu/test_fp8.py", {}),
        ("drafts", 1, 400, f"{_TESTS} tests/gpu/test_speculation.py -k fa3", {}),
        (
            "drafts_speed",
            1,
            300,
            "eval.real.drafts {models}/qwen2.5-coder-1.5b --head-map eval/results/real/qwen2.5-coder-1.5b.json "
            "--stock-flags=--attention-backend=fa3 --json {out}/drafts.json",
            {},
        ),
        (
            "experts",
            1,
            450,
            "eval.bench_gpu --shape qwen3-30b-a3b --maps one_of_eight --steps cold,segments,decode --lengths 8K,32K "
            "--decode 8K:1,32K:1,32K:8 --segment-lengths 32K --policies boundary:16 --requests 5 --together 1 --json {out}/gpu.json",
            {},
        ),
        ("copies", 1, 120, "eval.bench_copy --json {out}/copy.json", {}),
        (
            "small_tests",
            1,
            400,
            f"{_TESTS} tests/gpu/test_run_copies.py tests/gpu/test_question_graphs.py tests/gpu/test_prefill_graphs.py",
            {},
        ),
        ("tiers_32k", 1, 450, f"{_TIERS} --lengths 32768 --stream-tokens 512 --together", {}),
        ("tiers_128k", 1, 500, f"{_TIERS} --lengths 131072 --requests 6 --repeats 0", {}),
        (
            "store",
            1,
            300,
            "eval.bench_store --shape qwen3-8b --document-tokens 2048 --stock-flags=--attention-backend=fa3 --json {out}/store.json",
            _TCP,
        ),
        (
            "tier_rag",
            1,
            400,
            "eval.bench_tier_rag --shape qwen3-8b --document-tokens 2048 --per-request 4 --kv-gib 3 --host-ratio 3 --chunk 8192 --rate 2.5 "
            "--requests 50 --policy boundary:16 --stock-flags=--page-size=64 --together 2 --json {out}/tier_rag.json",
            {},
        ),
        (
            "eight_bits_accuracy",
            1,
            500,
            "eval.real.certificate qwen2.5-coder-1.5b --questions {models}/nq.jsonl.gz --models {models} --lengths 2048,8192 "
            "--flag=--kv-cache-dtype=fp8_e4m3 --stock-backend=flashinfer --out {out}",
            {},
        ),
        ("kernels_tests", 1, 400, f"{_TESTS} tests/gpu/test_kernels.py tests/gpu/test_scattered.py", {}),
    )
)
