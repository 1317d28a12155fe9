# SPDX-License-Identifier: Apache-2.0
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from redknot_sglang.cli.main import main
from tests.measure.fake_server import Reply, fake_server


def segments_of(seen: set[Any]) -> Callable[[dict[str, Any]], Reply]:
    """A server that remembers what it has seen; a token a character."""

    def answer(body: dict[str, Any]) -> Reply:
        if "GET" in body:
            return Reply(json=[{"tokens": len(text), "resident_tokens": len(text) - 1} for text in seen])
        entries = []
        for text in body["segments"]:
            entries.append({"tokens": len(text), "new": text not in seen})
            seen.add(text)
        return Reply(json=entries)

    return answer


def write(path: Path, *lines: Any) -> Path:
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return path


def preload(corpus: Path, url: str, *args: str) -> int:
    return main(["preload", str(corpus), "--url", url, *args])


def error_line(capsys: pytest.CaptureFixture[str]) -> str:
    err = capsys.readouterr().err
    assert err.startswith("redknot preload: error: ") and err.count("\n") == 1
    return err


def test_a_corpus_is_sent_in_batches_and_a_second_time_nothing_is_new(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    corpus = write(tmp_path / "c.jsonl", *({"text": "x" * n, "id": n} for n in (5, 6, 7)), "", {"text": "xxxxx"})
    with fake_server(segments_of(set())) as server:
        assert preload(corpus, server.url, "--batch=2") == 0
        assert [body["segments"] for body in server.bodies] == [["x" * 5, "x" * 6], ["x" * 7, "x" * 5]]
        assert all(set(body) == {"segments"} for body in server.bodies)
        assert capsys.readouterr().out.splitlines() == [
            "4 segments, 23 tokens: 3 new, 18 tokens",
            "the server lists 3 segments; 15 of their 18 tokens are cached now",
        ]
        assert preload(corpus, server.url + "/v1") == 0
        assert "4 segments, 23 tokens: 0 new, 0 tokens" in capsys.readouterr().out
        assert len(server.bodies) == 3


def test_options_reach_the_server(tmp_path: Path) -> None:
    corpus = write(tmp_path / "c.jsonl", {"body": [1, 2]})
    with fake_server(lambda body: Reply(json=[])) as server:
        options = ["--field=body", "--lead=You are", "--extra-key=t", "--repair=none"]
        assert preload(corpus, server.url, *options) == 0
    assert server.bodies == [{"segments": [[1, 2]], "lead": "You are", "extra_key": "t", "repair": "none"}]


def test_a_list_that_only_administrators_see_is_no_failure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    corpus = write(tmp_path / "c.jsonl", {"text": "x"})
    with fake_server(lambda body: Reply(status=401, json={}) if "GET" in body else Reply(json=[])) as server:
        assert preload(corpus, server.url) == 0
    assert "needs the server's admin key" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("line", "names"),
    [
        ("{", "line 2 is not JSON"),
        ("[1]", "line 2 is not a JSON object"),
        ('{"body": "x", "id": 1}', "line 2 has no field 'text', only body, id; name it with --field"),
        ("{}", "only an empty object"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str], line: str, names: str) -> None:
    corpus = write(tmp_path / "c.jsonl", {"text": "x"}, line)
    with fake_server(segments_of(set())) as server:
        assert preload(corpus, server.url, "--batch=1") == 2
        assert len(server.bodies) == 1, "what stands before it is sent"
    assert names in error_line(capsys)


def test_bytes_that_are_no_text_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    corpus = tmp_path / "c.jsonl"
    corpus.write_bytes(b'{"text": "\xff"}\n')
    assert preload(corpus, "http://127.0.0.1:1") == 2
    assert "line 1 is not JSON" in error_line(capsys)


@pytest.mark.parametrize(
    ("reply", "names"),
    [
        (Reply(status=400, json={"error": {"message": "segment 0 is too long"}}), "(400): segment 0 is too long"),
        (Reply(status=404, json={"detail": "Not Found"}), "start the server with --redknot"),
        (Reply(status=401, json={"error": "Unauthorized"}), "--api-key"),
        (Reply(status=503, json={"detail": "queue full"}), "(503)"),
    ],
)
def test_what_the_server_refuses_is_said_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], reply: Reply, names: str
) -> None:
    corpus = write(tmp_path / "c.jsonl", "", *[{"text": "x"}] * 3)
    with fake_server(lambda body: reply) as server:
        assert preload(corpus, server.url) == 2
    err = error_line(capsys)
    assert names in err and "lines 2 to 4" in err


def test_no_server_no_corpus_and_no_batch(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    corpus = write(tmp_path / "c.jsonl", {"text": "x"})
    assert preload(corpus, "http://127.0.0.1:1") == 2
    assert "no server answers at http://127.0.0.1" in error_line(capsys)
    assert preload(corpus, "nonsense") == 2
    assert "nonsense" in error_line(capsys)
    assert preload(tmp_path / "none.jsonl", "http://127.0.0.1:1") == 2
    assert "none.jsonl cannot be read: No such file" in error_line(capsys)
    assert preload(corpus, "http://127.0.0.1:1", "--batch=0") == 2
    assert "--batch must be at least 1" in error_line(capsys)
