# SPDX-License-Identifier: Apache-2.0
"""Traces are read as they are written, bad ones are refused, and policies keep what their names say."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from eval import bench_retention
from eval.retention.block_tree import POLICIES, BlockTree, distinct_tokens, request_hits, token_hits
from eval.retention.segmented import SEGMENTED
from eval.retention.traces import MADE, Request, make, read, write
from tests.versions import needs_host_tier


@pytest.mark.parametrize("kind", MADE)
def test_made_up_traces_are_tree_like_and_the_same_each_time(kind: str, tmp_path: Path) -> None:
    requests = make(kind, 3, 300)
    assert requests == make(kind, 3, 300) and len(requests) == 300
    write(tmp_path / "t.jsonl", requests)
    assert read(tmp_path / "t.jsonl") == requests
    before: dict[int, int] = {}
    for request in requests:
        for above, block in zip([-1, *request.hash_ids], request.hash_ids, strict=False):
            assert before.setdefault(block, above) == above, "a block's name stands for all before it"


@pytest.mark.parametrize("kind", SEGMENTED)
def test_documents_of_made_up_traces_are_the_same_wherever_they_stand(kind: str) -> None:
    contents: dict[int, int] = {}
    for request in make(kind, 3, 300):
        assert len(request.documents) == 4
        for first, names in request.documents:
            for block, content in zip(request.hash_ids[first : first + len(names)], names, strict=True):
                assert contents.setdefault(block, content) == content, "a block of a path has one content"
    assert len(set(contents.values())) < len(contents), "the same content in several paths"


def test_a_segmented_request_finds_its_documents_or_its_own_path() -> None:
    tree = BlockTree(100 * 512, POLICIES["redknot"](100 * 512, lambda position: 1))

    def ask(path: list[int], *documents: tuple[int, list[int]]) -> int:
        return tree.ask(Request(0, 512 * len(path), 1, path, list(documents))) // 512

    first, second = [90, 91], [92, 93, 94]
    assert ask([0, 1, 2, 3], (1, first)) == 0
    assert ask([0, 4, 5, 6, 1000], (1, second)) == 1, "the block that both begin with"
    assert ask([0, 7, 8, 9, 10, 11, 12], (1, second), (4, first)) == 1 + 5
    assert ask([0, 7, 8, 9, 10, 11, 12, 13], (1, second), (4, first)) == 7, "what it went on from, documents included"
    assert ask([0, 7, 8, 9, 10, 14, 15, 16], (1, second), (4, [95, 96])) == 5


@pytest.mark.parametrize("kind", SEGMENTED)
def test_documents_outlast_the_paths_that_are_made_of_them(kind: str) -> None:
    requests = make(kind, 1, 600)
    capacity = distinct_tokens(requests) // 30
    found = {
        policy: request_hits(requests, capacity, POLICIES[policy](capacity, lambda position: 1))
        for policy in ("lru", "redknot")
    }
    (lru, total), (ours, _) = found["lru"], found["redknot"]
    assert ours > lru + (0.05 * total if kind == "permuted_drifting" else -0.005 * total), found


def test_what_is_no_trace_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "bad.jsonl"
    for line, message in (("{", "line 1 is no request"), ('{"timestamp": 1}', "line 1 is no request")):
        path.write_text(line)
        with pytest.raises(ValueError, match=message):
            read(path)
    write(path, [Request(0, 512, 1, [1], [(0, [5, 6])])])
    with pytest.raises(ValueError, match="a document ends behind the last block"):
        read(path)
    write(path, [Request(0, 512, 1, [1, 2])])
    with pytest.raises(ValueError, match="512 tokens in 2 blocks"):
        read(path)


def test_last_blocks_are_shorter_and_a_cache_holds_what_fits() -> None:
    assert Request(0, 700, 1, [1, 2]).blocks() == [(1, 512), (2, 188)]
    for policy, made in POLICIES.items():
        tree = BlockTree(2000, made(2000, lambda position: 1))
        for request in make("conversations", 1, 200):
            path = request.blocks()[:3]
            assert tree.access(path) <= sum(tokens for _, tokens in path), policy
            assert tree.held == sum(node.tokens for node in tree.nodes.values()) <= 2000


def test_policies_differ_as_their_names_say() -> None:
    twice, fresh = [[(1, 8)], [(2, 8)], [(1, 8)], [(2, 8)]], [[(name, 8)] for name in range(10, 14)]
    rates = {
        policy: token_hits([*twice, *fresh, *twice[:2]], 32, made(32, lambda position: 1))[0]
        for policy, made in POLICIES.items()
        if policy != "redknot"
    }
    assert rates == {"lru": 16, "lfu": 32, "slru": 32}


def test_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    result = tmp_path / "r.json"
    argv = ["bench", "--kinds", "news", "--requests", "200", "--shares", "0.1", "--json", str(result)]
    monkeypatch.setattr(sys, "argv", [*argv, "--write", str(tmp_path / "kept")])
    bench_retention.main()
    (row,) = json.loads(result.read_text())["rows"]
    assert set(row["hit_rate"]) == set(POLICIES) and "news" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["bench", str(tmp_path / "kept" / "news.jsonl"), *argv[5:]])
    bench_retention.main()
    (again,) = json.loads(result.read_text())["rows"]
    assert again["hit_rate"] == row["hit_rate"]


@needs_host_tier
# The bench's tree is that of the pinned version.
@pytest.mark.pinned
def test_lifetimes_lose_nothing_that_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    result = tmp_path / "r.json"
    argv = [
        "bench",
        "--lifetimes",
        "--kinds",
        "conversations",
        "--requests",
        "250",
        "--shares",
        "0.1",
        "--json",
        str(result),
    ]
    monkeypatch.setattr(sys, "argv", argv)
    bench_retention.main()
    (row,) = json.loads(result.read_text())["rows"]
    without, with_them = row["without"], row["with"]
    assert without["cooled"] == 0 < with_them["cooled"] and with_them["demoted"] < without["demoted"]
    assert with_them["found"] >= without["found"] - 0.5, row
    assert "conversations 0.1" in capsys.readouterr().out
