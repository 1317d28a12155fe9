# SPDX-License-Identifier: Apache-2.0
"""The prompts that eval.real.speed times, and its table."""

from __future__ import annotations

import json
from itertools import islice, takewhile
from pathlib import Path
from typing import Any

import pytest

from eval.real.speed import Text, flags, make_parser, run, table
from redknot_sglang.certify.questions import load_tokenizer
from redknot_sglang.errors import CliError
from tests.serving.harness import MODEL

TOKENIZER = load_tokenizer(MODEL)
LEAD = "Read these. "
PASSAGES = [
    f"Passage {number} tells about {word}. " for number, word in enumerate(("wheels", "doors", "lamps", "roofs"))
]
QUESTIONS = ["What about wheels?", "And the roofs?"]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Two questions over the same passages in two orders."""
    lines = [
        {"prompt": LEAD + "".join(documents) + question, "documents": documents, "answers": ["yes"]}
        for documents, question in zip((PASSAGES, PASSAGES[::-1]), QUESTIONS, strict=True)
    ]
    path = tmp_path / "q.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    return path


def _ids(text: str) -> list[int]:
    return list(TOKENIZER.encode(text, add_special_tokens=False))


def test_documents_are_made_of_passages_each_once(file: Path) -> None:
    size = len(_ids(PASSAGES[0])) + 1
    text = Text(file, TOKENIZER, 2, size)
    assert text.lead == _ids(LEAD)
    # The second passage ends the first document, and what is left of it is dropped.
    assert text.documents[0] == (_ids(PASSAGES[0]) + _ids(PASSAGES[1]))[:size]
    assert text.documents[1] == (_ids(PASSAGES[2]) + _ids(PASSAGES[3]))[:size]
    with pytest.raises(CliError, match="passages for 2 documents"):
        Text(file, TOKENIZER, 3, size)


def test_prompts_are_the_documents_in_new_orders_and_a_question(file: Path) -> None:
    text = Text(file, TOKENIZER, 2, len(_ids(PASSAGES[0])) + 1)
    orders = set()
    for number, (ids, offsets) in enumerate(islice(text.prompts(seed=3), 8)):
        parts = [ids[start:end] for start, end in zip(offsets[::2], offsets[1::2], strict=True)]
        assert ids[: offsets[0]] == text.lead and ids[offsets[-1] :] == _ids(QUESTIONS[number % 2])
        assert sorted(parts) == sorted(text.documents) and len(ids) <= text.longest
        orders.add(parts[0] == text.documents[0])
    assert orders == {True, False}
    assert max(len(ids) for ids, _ in islice(text.prompts(seed=3), 8)) == text.longest


def test_the_table_compares_with_stock_over_the_same_documents() -> None:
    def cell(documents: int, side: str, seconds: float, told: dict[str, int] | None) -> dict[str, Any]:
        return {
            "documents": documents,
            "side": side,
            "median_s": seconds,
            "n": 3,
            "tokens": [90],
            "rows": [{"redknot": told}],
        }

    told = {"computed_tokens": 7, "flops": 1, "dense_flops": 4}
    shown = table(
        [
            cell(2, "stock", 0.4, None),
            cell(2, "none", 0.1, told),
            cell(4, "stock", 0.9, None),
            cell(4, "none", 0.1, told),
        ]
    )
    lines = [line.split() for line in shown.splitlines()[2:]]
    assert [line[4] for line in lines] == ["1.00x", "4.00x", "1.00x", "9.00x"]
    assert lines[1][-3:] == ["7", "0.250", "3"]


def _flags(*more: str) -> dict[str, list[str]]:
    words = ["m", "--head-map=map.json", "--data=q.jsonl", "--json=x.json", *more]
    return flags(make_parser().parse_args(words), longest=900, document=100)


def test_each_side_has_the_prefill_graphs_that_are_named_for_it() -> None:
    off = _flags()
    assert all("--cuda-graph-backend-prefill=disabled" in side for side in off.values())
    assert not any("--enable-metrics" in side for side in off.values())
    on = _flags("--stock-prefill-graphs=64,8192", "--redknot-prefill-graphs=32,64,1152", "--stages")
    for side, sizes in (("stock", ["64", "8192"]), ("redknot", ["32", "64", "1152"])):
        behind = on[side][on[side].index("--cuda-graph-bs-prefill") + 1 :]
        assert list(takewhile(str.isdigit, behind)) == sizes and "--enable-metrics" in on[side]
        assert "--cuda-graph-backend-prefill=breakable" in on[side]
        assert "--cuda-graph-backend-prefill=disabled" not in on[side]


def test_prefill_graphs_are_refused_on_a_cpu(tmp_path: Path) -> None:
    words = ["m", "--head-map=map.json", "--data=q.jsonl", f"--json={tmp_path}/x.json", "--device=cpu"]
    with pytest.raises(CliError, match="are of a GPU"):
        run(make_parser().parse_args([*words, "--redknot-prefill-graphs=32"]))
