# SPDX-License-Identifier: Apache-2.0
"""Commands in documents: flags and targets are there, and each kind is run by what is named here, or listed as run by nobody."""

from __future__ import annotations

import re
from importlib.util import find_spec

import pytest

from redknot_sglang.cli.main import build_parser
from tests.release.built import ROOT
from tests.release.commands import server_parser, shown

# A kind of command, by its first words, and the test or the target of CI that runs it.
RUN_BY = {
    "redknot doctor": "tests/release/test_install.py",
    "redknot profile": "tests/serving/test_calibrate.py",
    "redknot certify": "tests/serving/test_calibrate.py",
    "redknot heads": "tests/cli/test_heads.py",
    "redknot report": "tests/serving/test_calibrate.py",
    "redknot preload": "tests/cli/test_preload.py",
    "redknot inspect": "tests/cli/test_inspect.py",
    "redknot route": "tests/serving/test_compose.py",
    "python -m sglang.launch_server": "tests/serving/test_stock_parity.py",
    "python -m eval.real.questions": "tests/eval/real/test_questions.py",
    "python -m eval.real.certificate": "tests/eval/real/test_certificate.py",
    "python -m eval.real.pareto": "tests/eval/real/test_pareto.py",
    "python -m eval.bench_rag": "tests/eval/rag",
    "python -m eval.bench_gpu": "tests/eval/gpu/test_bench_gpu.py",
    "python -m eval.gpu.table": "tests/eval/gpu/test_table.py",
    "python -m eval.headline": "tests/eval/test_headline.py",
    "pip install": "tests/release/test_install.py",
    "curl": "tests/serving/test_compose.py",
    "docker compose": "tests/serving/test_compose.py",
    "make demo": "tests/serving/test_demo_command.py",
    "make real": "tests/eval/real/test_get.py",
    "make install": "Makefile",
    "make help": "Makefile",
    "make test": ".ci/run",
    "make lint": ".ci/run",
    "make docs": ".ci/run",
}
# Nobody runs these here: they need a GPU, a cluster, a builder of images, or hours.
NOT_RUN = (
    "make bench-gpu",
    "make test-gpu",
    "make test-nightly",
    "docker build",
    "kubectl apply",
    "make dist",
    "make test-install",
)
COMMANDS = list(shown())


@pytest.mark.parametrize(
    ("page", "words"), COMMANDS, ids=[f"{page}: {' '.join(words)[:60]}" for page, words in COMMANDS]
)
def test_a_command_can_be_given_and_is_run_somewhere(page: str, words: list[str]) -> None:
    line = " ".join(words)
    kinds = [kind for kind in (*RUN_BY, *NOT_RUN) if line.startswith(kind)]
    assert kinds, f"name in this file what runs `{line}` of {page}"
    if words[0] == "redknot":
        build_parser().parse_args(words[1 : words.index("--") if "--" in words else None])
    elif words[:3] == ["python", "-m", "sglang.launch_server"]:
        rest = words[3:]
        server_parser().parse_args(rest if any("--model-path" in word for word in rest) else ["--model-path=M", *rest])
    elif words[0] == "python":
        assert find_spec(words[2]) is not None
    elif words[0] == "make":
        assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), re.MULTILINE)


def test_what_runs_them_is_there() -> None:
    assert all((ROOT / place).exists() for place in RUN_BY.values())
