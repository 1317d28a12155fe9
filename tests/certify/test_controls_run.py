# SPDX-License-Identifier: Apache-2.0
"""`redknot certify --controls` against servers that answer what stands in the prompt."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from eval import tasks
from redknot_sglang import __version__
from redknot_sglang.certificate.check import Served, certify_start
from redknot_sglang.certificate.document import certificate_path, read_certificate
from redknot_sglang.certificate.fingerprint import fingerprint_model
from redknot_sglang.certify import servers as certify_servers
from redknot_sglang.certify.options import FIRST_SEED
from redknot_sglang.cli.main import main
from redknot_sglang.errors import CertificateError
from redknot_sglang.heads import load_head_map
from tests.certify.test_certify import LENGTH, MODEL, SMALL, TOKENIZER, N, Servers, certify, head_map
from tests.measure.fake_server import Reply

__all__ = ["head_map"]

LOOKUP = ["--tasks=lookup", "--concurrency=1"]
EXAMPLES = [tasks.make_example("lookup", LENGTH, seed) for seed in range(FIRST_SEED, FIRST_SEED + N)]
WHOLE = [TOKENIZER.encode(tasks.render(example)) for example in EXAMPLES]
BARE = [len(TOKENIZER.encode(tasks.render(example))) - tokens for example, tokens in zip(EXAMPLES, (
    sum(len(TOKENIZER.encode(document, add_special_tokens=False)) for document in example.documents) for example in EXAMPLES
), strict=True)]  # fmt: skip


class Readers(Servers):
    """They know no more than the prompt says. Each row takes 10 operations, 20 in dense prefill."""

    def __init__(self, after: int = 10**9) -> None:
        super().__init__()
        self.after = after
        self.prompts: list[tuple[int, ...]] = []

    def _answer(self, body: dict[str, Any]) -> Reply:
        reply = super()._answer(body)
        if "GET" in body:
            return reply
        self.prompts.append(tuple(body["input_ids"]))
        if len(self.prompts) > self.after:
            return Reply(status=503)
        text = TOKENIZER.decode(body["input_ids"])
        told = [
            e.answer
            for e in EXAMPLES
            if f"{e.question}<" in text and any(e.answer in d for d in e.documents if d in text)
        ]
        rows = len(body["input_ids"])
        report = {"computed_rows": rows, "flops": 10 * rows, "dense_flops": 20 * rows}
        meta = {"redknot": report} if len(self.started) == 2 else {}
        return Reply(json={"text": (told or ["nothing"])[0], "output_ids": [1], "meta_info": meta})


def test_controls_are_measured_beside_policies_and_certify_nothing(
    monkeypatch: pytest.MonkeyPatch, head_map: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    servers = Readers()
    controls = "--controls=bm25:1,random:1,oracle:1,none"
    code, document = certify(monkeypatch, servers, head_map, *LOOKUP, "--repair=question:1", controls)
    assert code == 0 and document["verdict"] == "pass", "a control that loses is no failure"
    assert list(document["policies"]) == ["exact", "question:1"]
    assert list(document["controls"]) == ["bm25:1", "random:1", "oracle:1", "no-documents"]
    found = {name: entry["cells"][0] for name, entry in document["controls"].items()}
    assert [cell["n"] for cell in found.values()] == [N] * 4
    assert all(cell["dense"]["right"] == N for cell in found.values())
    assert (found["oracle:1"]["policy"]["right"], found["no-documents"]["policy"]["right"]) == (N, 0)
    assert found["no-documents"]["loss_points"] == 100 and found["no-documents"]["loss_interval_95"][0] > 40
    assert 0 < found["random:1"]["policy"]["right"] < N and found["bm25:1"]["policy"]["right"] > N // 2
    whole = sum(map(len, WHOLE))
    assert document["policies"]["exact"]["cells"][0]["computed"] == {"rows": 1.0, "flops": 0.5}
    share = sum(BARE) / whole
    assert found["no-documents"]["computed"] == pytest.approx({"rows": share, "flops": share / 2}, abs=1e-6)
    assert "bm25s" in document["versions"] and document["settings"]["control_seed"] == FIRST_SEED
    printed = capsys.readouterr().out
    assert "control oracle:1\n" in printed and "exact: pass\n" in printed
    assert f"{100 * share:.1f} %" in printed and " 50.0 %" in printed

    served = Served(
        load_head_map(head_map), head_map, lambda: fingerprint_model(MODEL), "0.5.17", __version__, ("oracle:1",)
    )
    with pytest.raises(CertificateError, match="policy oracle:1 is not in the certificate"):
        certify_start(served, None, uncertified=False)
    assert set(read_certificate(certificate_path(head_map)).verdicts) == {"exact", "question:1"}


def test_controls_ask_in_exact_mode_and_begin_with_an_empty_cache(
    monkeypatch: pytest.MonkeyPatch, head_map: Path
) -> None:
    servers = Readers()
    certify(monkeypatch, servers, head_map, *LOOKUP, "--repair=none", "--controls=random:1,no-documents")
    asked = [params for side, params in servers.asked if side == 2]
    assert asked[2 * N :] == [{"redknot_mode": "exact"}] * 2 * N
    assert all(params["redknot_segments"] for params in asked[N : 2 * N])
    stock, redknot = servers.running
    assert redknot.flushes == 4, "exact, none and two controls"


def test_controls_that_keep_the_same_are_asked_once(monkeypatch: pytest.MonkeyPatch, head_map: Path) -> None:
    servers = Readers()
    many = "--controls=oracle:99,bm25:99,random:99,random:1000"
    _, document = certify(monkeypatch, servers, head_map, *LOOKUP, many)
    assert len(servers.prompts) == 3 * N and servers.prompts[2 * N :] == servers.prompts[:N], "the whole prompts"
    assert [entry["cells"][0]["policy"]["right"] for entry in document["controls"].values()] == [N] * 4


@pytest.mark.parametrize("after", [2 * N + 2, 3 * N + 1])
def test_a_run_that_was_cut_goes_on_with_its_controls(
    after: int, monkeypatch: pytest.MonkeyPatch, head_map: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = [*LOOKUP, "--controls=oracle:1,no-documents"]
    _, wanted = certify(monkeypatch, Readers(), head_map, *options)
    certificate_path(head_map).unlink()
    monkeypatch.setattr(certify_servers, "launch", Readers(after).launch)
    assert main(["certify", str(MODEL), f"--head-map={head_map}", *SMALL, *options]) == 2
    rest = Readers()
    rest.started.append([])
    _, found = certify(monkeypatch, rest, head_map, *options)
    assert found == wanted and len(rest.prompts) == 4 * N - after
    assert f"{after} of {4 * N} answers are known" in capsys.readouterr().err


def test_without_controls_a_certificate_has_none(monkeypatch: pytest.MonkeyPatch, head_map: Path) -> None:
    _, document = certify(monkeypatch, Readers(), head_map, *LOOKUP)
    assert document["controls"] == {} and document["settings"]["control_seed"] is None
    assert "bm25s" not in document["versions"]


@pytest.mark.parametrize(
    ("options", "message"),
    [(["--controls=magic:1"], "'magic:1' is none"), (["--controls=bm25:1", "--tasks=none"], "nothing to ask")],
)
def test_what_cannot_be_done_is_said(
    options: list[str], message: str, head_map: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["certify", str(MODEL), f"--head-map={head_map}", *SMALL, *options]) == 2
    assert message in capsys.readouterr().err


def test_controls_need_documents(head_map: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = tmp_path / "own.jsonl"
    data.write_text('{"prompt": "a b c"}')
    options = ["--tasks=none", f"--data={data}", "--controls=oracle:1"]
    assert main(["certify", str(MODEL), f"--head-map={head_map}", *SMALL, *options]) == 2
    assert "--controls needs prompts with documents" in capsys.readouterr().err
