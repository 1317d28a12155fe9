# SPDX-License-Identifier: Apache-2.0
"""The benchmark of a store: flags, what is asked and counted, and the table. tests/serving/test_mooncake.py has such servers."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from eval import bench_store
from eval.gpu.ask import NotMeasured, Reply
from eval.servers import REDKNOT, STOCK, Served

DOCUMENT, TAIL = 40, 4


class Store:
    """A master whose store gets objects for each prompt that is asked, 34 of RedKnot's and 64 of stock's."""

    def __init__(self, _: Path) -> None:
        self.port, self.side, self.asked, self.alive = 5, "", 0, True

    def start(self) -> None:
        pass

    def settings(self, segment_bytes: int) -> dict[str, Any]:
        return {"global_segment_size": segment_bytes}

    def counts(self) -> dict[str, int]:
        each = 34 if self.side == REDKNOT else 64
        return {"objects": each * self.asked, "bytes": 1000 * each * self.asked}

    def kill(self) -> None:
        self.alive = False


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Store:
    made = Store(Path())
    monkeypatch.setattr(bench_store, "Master", lambda _: made)
    monkeypatch.setattr(bench_store, "_STILL", 0.0)
    monkeypatch.setattr(bench_store, "flush", lambda url: None)

    def launch(flags: list[str], *_: Any, **__: Any) -> Any:
        made.side, made.asked = REDKNOT if "--redknot" in flags else STOCK, 0
        return nullcontext(type("Server", (), {"url": made.side}))

    def generate(url: str, prompts: list[list[int]], _: int, params: dict[str, Any] | None) -> Reply:
        (prompt,) = prompts
        assert (params is None) == (url == STOCK)
        made.asked += 1
        tailed = len(prompt) == DOCUMENT + TAIL
        assert tailed or len(prompt) == DOCUMENT
        details = {"storage": DOCUMENT} if tailed else {}
        return Reply(0.5 if tailed else 2.0, [{"cached_tokens": DOCUMENT, "cached_tokens_details": details}])

    monkeypatch.setattr(bench_store, "launch", launch)
    monkeypatch.setattr(bench_store, "generate", generate)
    monkeypatch.setattr(bench_store, "origin", lambda args: {})
    return made


def run(folder: Path, *more: str) -> int:
    words = ["--shape=qwen3-8b", "--documents=3", f"--document-tokens={DOCUMENT}", f"--tail-tokens={TAIL}", *more]
    return bench_store.main([*words, f"--json={folder / 'store.json'}"])


def test_objects_and_bytes_are_those_of_a_document(
    store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path) == 0
    sides = json.loads((tmp_path / "store.json").read_text())["sides"]
    assert [(sides[side]["objects"], sides[side]["bytes"]) for side in (STOCK, REDKNOT)] == [(64, 64_000), (34, 34_000)]
    assert sides[REDKNOT]["median_s"] == 0.5 and sides[REDKNOT]["cold_s"] == [2.0] * 3
    shown = capsys.readouterr().out
    assert "1.9x" in shown and "2000.0" in shown and "500.0" in shown
    assert not store.alive


def test_a_document_that_does_not_come_from_the_store_is_an_error(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = bench_store.generate

    def generate(url: str, prompts: list[list[int]], tokens: int, params: dict[str, Any] | None) -> Reply:
        reply = whole(url, prompts, tokens, params)
        if url == REDKNOT:
            reply.metas[0]["cached_tokens_details"] = {"host": DOCUMENT}
        return reply

    monkeypatch.setattr(bench_store, "generate", generate)
    assert run(tmp_path) == 1
    assert "redknot: of document 0 came 40 tokens, {'host': 40}" in capsys.readouterr().out
    sides = json.loads((tmp_path / "store.json").read_text())["sides"]
    assert "error" in sides[REDKNOT] and sides[STOCK]["objects"] == 64


def test_a_store_that_does_not_come_to_rest_is_an_error(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_store, "_PATIENCE", 0.3)
    store.asked = 0
    with pytest.raises(NotMeasured, match="did not come to rest"):
        bench_store.written(store)  # type: ignore[arg-type]


def test_both_sides_get_the_same_room_and_stock_pages(tmp_path: Path) -> None:
    args = type("Args", (), {})()
    args.document_tokens, args.tail_tokens, args.documents, args.page = 2048, 32, 8, 64
    args.mem_fraction, args.stock_flags = 0.8, "--attention-backend=fa3"
    served = Served("qwen3-8b", None, "one_of_eight.json", 1)
    store: Any = Store(tmp_path)
    flags = {side: bench_store.commands(served, side, store, args) for side in (STOCK, REDKNOT)}
    rooms = {flag for side in flags for flag in flags[side] if flag.startswith("--max-total-tokens")}
    assert rooms == {f"--max-total-tokens={2 * 9 * 2080}"}
    assert {"--page-size=64", "--hicache-mem-layout=page_first", "--attention-backend=fa3"} <= set(flags[STOCK])
    assert "--redknot" in flags[REDKNOT] and not any(flag.startswith("--page-size") for flag in flags[REDKNOT])
