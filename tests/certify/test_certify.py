# SPDX-License-Identifier: Apache-2.0
"""`redknot certify` against servers that answer from a function."""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from transformers import AutoTokenizer

from eval import tasks
from redknot_sglang import __version__
from redknot_sglang.certificate.check import Served, certify_start
from redknot_sglang.certificate.document import certificate_path, read_certificate
from redknot_sglang.certificate.fingerprint import fingerprint_model
from redknot_sglang.certify import servers as certify_servers
from redknot_sglang.certify.options import FIRST_SEED
from redknot_sglang.certify.questions import encode, read_data
from redknot_sglang.cli.main import main
from redknot_sglang.errors import DataError, ServerError
from redknot_sglang.heads import load_head_map
from redknot_sglang.work_file import WorkFile
from tests.certificate.test_check import make_keys
from tests.measure.fake_server import FakeServer, Reply, fake_server
from tests.serving.harness import HEAD_MAP, MODEL

LENGTH, N = 256, 6
SMALL = ["--tasks=lookup,crossdoc", f"--lengths={LENGTH}", f"-n={N}", "--device=cpu"]
TOKENIZER = AutoTokenizer.from_pretrained(MODEL)
Answer = Callable[[str, dict[str, Any]], Mapping[str, Any]]


def known_answers() -> dict[tuple[int, ...], tuple[str, str]]:
    """Task and answer by the prompt's tokens, found without the command's own code."""
    known = {}
    for task in ("lookup", "crossdoc"):
        for seed in range(FIRST_SEED, FIRST_SEED + N):
            example = tasks.make_example(task, LENGTH, seed)
            known[tuple(TOKENIZER.encode(tasks.render(example)))] = task, example.answer
    return known


KNOWN = known_answers()


class Servers:
    """Stand-ins for both servers: the flags they were started with, themselves, and the requests they got."""

    def __init__(self, wrong: Callable[[str, dict[str, Any]], bool] = lambda task, params: False) -> None:
        self.wrong = wrong
        self.started: list[list[str]] = []
        self.running: list[FakeServer] = []
        self.asked: list[tuple[int, dict[str, Any]]] = []

    @contextmanager
    def launch(self, args: Sequence[str], log: Path, **options: Any) -> Iterator[Any]:
        """In place of `measure.launch.launch`."""
        self.started.append(list(args))
        with fake_server(self._answer) as server:
            self.running.append(server)
            yield SimpleNamespace(url=server.url)

    def _answer(self, body: dict[str, Any]) -> Reply:
        if "GET" in body:
            return Reply(json={"model_path": str(MODEL), "load_format": "auto", "device": "cpu", "dtype": "float32"})
        params = body["sampling_params"]["custom_params"] or {}
        self.asked.append((len(self.started), params))
        task, text = KNOWN.get(tuple(body["input_ids"]), ("data", "four"))
        tokens = [1, 2, 3, 4]
        if self.wrong(task, params):
            text, tokens = "wrong", [1, 9]
        chosen = [[-0.1, token, None] for token in tokens] if body["return_logprob"] else None
        return Reply(json={"text": text, "output_ids": tokens, "meta_info": {"output_token_logprobs": chosen}})


@pytest.fixture
def head_map(tmp_path: Path) -> Path:
    """A copy of the embedded model's map, without certificate."""
    return Path(shutil.copy(HEAD_MAP, tmp_path / "map.json"))


def certify(
    monkeypatch: pytest.MonkeyPatch, servers: Servers, head_map: Path, *options: str
) -> tuple[int, dict[str, Any]]:
    """Exit code and certificate."""
    monkeypatch.setattr(certify_servers, "launch", servers.launch)
    code = main(["certify", str(MODEL), f"--head-map={head_map}", *SMALL, *options])
    return code, dict(read_certificate(certificate_path(head_map)).document)


def unaware_of_context(task: str, params: dict[str, Any]) -> bool:
    """What `none` does to questions that span documents."""
    return task == "crossdoc" and params.get("redknot_repair") == "none"


def test_a_map_that_loses_nothing_is_certified(monkeypatch: pytest.MonkeyPatch, head_map: Path) -> None:
    servers = Servers()
    code, document = certify(monkeypatch, servers, head_map, "--repair=blend:0.05")
    assert code == 0 and document["verdict"] == "pass"
    assert list(document["policies"]) == ["exact", "blend:0.05"]
    for entry in document["policies"].values():
        assert [(c["task"], c["n"], c["policy"]["right"]) for c in entry["cells"]] == [
            ("lookup", N, N),
            ("crossdoc", N, N),
        ]
    assert document["settings"]["seeds"] == [FIRST_SEED, FIRST_SEED + N - 1]
    assert document["measured_on"]["dtype"] == "float32"
    assert [file["name"] for file in document["model"]["files"]] == ["model.safetensors"]
    served = Served(
        load_head_map(head_map),
        head_map,
        lambda: fingerprint_model(MODEL),
        "0.5.17",
        __version__,
        ("exact", "blend:0.05"),
    )
    assert certify_start(served, None, uncertified=False).digest == document["digest"], "a server takes it"


def test_every_side_is_asked_the_same_and_policies_by_request(monkeypatch: pytest.MonkeyPatch, head_map: Path) -> None:
    servers = Servers()
    certify(
        monkeypatch,
        servers,
        head_map,
        "--repair=none, boundary:16",
        "--",
        "--dtype",
        "float32",
        "--redknot-attention=torch",
    )
    stock, redknot = servers.started
    assert not any(flag.startswith("--redknot") for flag in stock) and "--dtype=float32" in stock
    assert {"--redknot", f"--redknot-head-map={head_map}", "--redknot-uncertified", "--redknot-attention=torch"} <= set(
        redknot
    )
    assert "--dtype=float32" in redknot
    asked = [(side, params.get("redknot_mode"), params.get("redknot_repair")) for side, params in servers.asked]
    expected = [(1, None, None), (2, "exact", None), (2, "segmented", "none"), (2, "segmented", "boundary:16")]
    assert {kind: asked.count(kind) for kind in set(asked)} == dict.fromkeys(expected, 2 * N)
    assert all(params["redknot_segments"] for _, params in servers.asked if "redknot_repair" in params)


def test_stock_has_flags_of_its_own_which_come_last_and_are_recorded(
    monkeypatch: pytest.MonkeyPatch, head_map: Path
) -> None:
    servers = Servers()
    own = "--attention-backend fa3 --cuda-graph-bs 1 2 --chat-template 'my file'"
    both = ["--attention-backend=triton", "--redknot-attention", "torch", "--cuda-graph-bs", "4", "8"]
    code, document = certify(monkeypatch, servers, head_map, "--stock-flags", own, "--", *both)
    stock, redknot = servers.started
    shared = ["--attention-backend=triton", "--cuda-graph-bs", "4", "8"]
    alone = ["--attention-backend=fa3", "--cuda-graph-bs", "1", "2", "--chat-template=my file"]
    assert code == 0 and stock[-len(shared + alone) :] == shared + alone
    assert redknot[-5:] == ["--attention-backend=triton", "--redknot-attention=torch", "--cuda-graph-bs", "4", "8"]
    assert document["measured_on"]["flags"] == both
    assert document["measured_on"]["stock_flags"] == [
        *("--attention-backend", "fa3"),
        *("--cuda-graph-bs", "1", "2"),
        *("--chat-template", "my file"),
    ]


@pytest.mark.parametrize("flags", ["--attention-backend=fa3", "--attention-backend fa3"])
def test_sglang_takes_the_last_of_a_flag(flags: str, monkeypatch: pytest.MonkeyPatch, head_map: Path) -> None:
    servers = Servers()
    certify(monkeypatch, servers, head_map, f"--stock-flags={flags}")
    parser = argparse.ArgumentParser()
    parser.add_argument("--attention-backend")
    found = [parser.parse_known_args(flags)[0].attention_backend for flags in servers.started]
    assert found == ["fa3", "torch_native"]


def test_what_loses_answers_fails_and_is_written_too(
    monkeypatch: pytest.MonkeyPatch, head_map: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, document = certify(monkeypatch, Servers(unaware_of_context), head_map, "--repair=none,blend:0.05")
    assert code == 1 and document["verdict"] == "fail"
    verdicts = {name: entry["verdict"] for name, entry in document["policies"].items()}
    assert verdicts == {"exact": "pass", "none": "fail", "blend:0.05": "pass"}
    assert "crossdoc at 256 tokens: loses 100.00 points, allowed are 2" in document["policies"]["none"]["reasons"]
    printed = capsys.readouterr().out
    assert "none: fail" in printed and "verdict: fail" in printed


def test_the_lead_policy_is_part_of_a_policys_name(monkeypatch: pytest.MonkeyPatch, head_map: Path) -> None:
    servers = Servers()
    _, document = certify(monkeypatch, servers, head_map, "--repair=none", "--lead=lead")
    assert list(document["policies"]) == ["exact", "none+lead"]
    assert "--redknot-segment-lead=lead" in servers.started[1]


def test_pools_are_sized_for_the_policy_that_keeps_most(monkeypatch: pytest.MonkeyPatch, head_map: Path) -> None:
    servers = Servers()
    certify(monkeypatch, servers, head_map, "--repair=none,blend:0.05,boundary:4")
    assert "--redknot-repair=blend:0.05" in servers.started[1]
    assert not any(flag.startswith("--redknot") for flag in servers.started[0])


def test_own_data_with_and_without_answers(monkeypatch: pytest.MonkeyPatch, head_map: Path, tmp_path: Path) -> None:
    data = tmp_path / "own.jsonl"
    lines: list[dict[str, Any]] = [{"prompt": "Two and two?", "answer": " FOUR"}, {"prompt": "Go on:"}]
    data.write_text("\n".join(map(json.dumps, lines)) + "\n\n")
    servers = Servers(lambda task, params: task == "data" and params != {})
    code, document = certify(monkeypatch, servers, head_map, "--tasks=none", f"--data={data}")
    exact = document["policies"]["exact"]
    assert code == 1 and len(exact["reasons"]) == 2
    assert (exact["cells"][0]["task"], exact["cells"][0]["dense"]["right"]) == ("data", 1)
    assert exact["agreement"]["agreed_tokens"] == 0.25
    assert [file["prompts"] for file in document["settings"]["data"]] == [2] and document["settings"]["tasks"] == []
    assert certify(monkeypatch, Servers(), head_map, "--tasks=none", f"--data={data}")[0] == 0


def test_each_of_several_files_has_figures_of_its_own(
    monkeypatch: pytest.MonkeyPatch, head_map: Path, tmp_path: Path
) -> None:
    options = ["--tasks=none"]
    for name, answers in (("nq_2k", ["four", "five"]), ("nq_8k", ["four"])):
        lines = [{"prompt": f"{name}: two and {answer}?", "answer": answer} for answer in answers]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, lines)))
        options.append(f"--data={tmp_path / name}.jsonl")
    code, document = certify(monkeypatch, Servers(), head_map, *options)
    cells = document["policies"]["exact"]["cells"]
    assert code == 0 and [(cell["task"], cell["n"], cell["dense"]["right"]) for cell in cells] == [
        ("nq_2k", 2, 1),
        ("nq_8k", 1, 1),
    ]
    assert [file["name"] for file in document["settings"]["data"]] == ["nq_2k.jsonl", "nq_8k.jsonl"]
    (tmp_path / "other").mkdir()
    shutil.copy(tmp_path / "nq_2k.jsonl", tmp_path / "other")
    assert certify(monkeypatch, Servers(), head_map, *options, f"--data={tmp_path}/other/nq_2k.jsonl")[0] == 2


def test_any_of_several_answers_is_right(monkeypatch: pytest.MonkeyPatch, head_map: Path, tmp_path: Path) -> None:
    data = tmp_path / "own.jsonl"
    lines: list[dict[str, Any]] = [
        {"prompt": "Two and two?", "answers": ["4", " FOUR"]},
        {"prompt": "Two and two more?", "answers": ["five", "6"]},
    ]
    data.write_text("\n".join(map(json.dumps, lines)))
    _, document = certify(monkeypatch, Servers(), head_map, "--tasks=none", f"--data={data}")
    cell = document["policies"]["exact"]["cells"][0]
    assert (cell["n"], cell["dense"]["right"], cell["policy"]["right"]) == (2, 1, 1)
    assert document["policies"]["exact"]["agreement"] is None, "both have answers"


def test_certificates_are_signed_with_the_key(monkeypatch: pytest.MonkeyPatch, head_map: Path, tmp_path: Path) -> None:
    private, public = make_keys(tmp_path, "mine")
    certify(monkeypatch, Servers(), head_map, f"--key={private}")
    served = Served(
        load_head_map(head_map), head_map, lambda: fingerprint_model(MODEL), "0.5.17", __version__, ("exact",)
    )
    assert certify_start(served, public, uncertified=False).covers("exact")


def test_documents_are_the_segments_and_tokens_are_those_of_the_prompt() -> None:
    example = tasks.make_example("lookup", LENGTH, 3)
    ids, segments = encode(TOKENIZER, tasks.render(example), example.documents)
    assert list(ids) == TOKENIZER.encode(tasks.render(example))
    pairs = zip(segments[::2], segments[1::2], strict=True)
    assert [TOKENIZER.decode(list(ids[a:b])) for a, b in pairs] == example.documents


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("nonsense", "line 1: not JSON"),
        ("[1]", "line 1: not an object with a prompt"),
        ('{"prompt": ""}', "line 1: not an object with a prompt"),
        ('{"prompt": "a", "answer": " "}', "answer must be text that is not blank"),
        ('{"prompt": "a", "documents": "a"}', "documents must be a list"),
        ('{"prompt": "a b", "documents": ["b", "a"]}', "document 1 does not stand in the prompt"),
        ("", "has no prompts"),
    ],
)
def test_bad_data_is_said(line: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "own.jsonl"
    path.write_text(line)
    with pytest.raises(DataError, match=message):
        read_data(path, TOKENIZER)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--repair=magic"], "--repair: repair policy 'magic' is not known"),
        (["--lengths=1K"], "--lengths '1K' is not a list of lengths in tokens"),
        (["-n=0"], "-n must be at least 1"),
        (["--concurrency=0"], "--concurrency must be at least 1"),
        (["--tasks=nonsense"], "unknown task 'nonsense'"),
        (["--tasks=none"], "nothing to ask"),
        (["--lengths=20"], "length 20 is too short"),
        (["--data=/nowhere"], "/nowhere cannot be read"),
        (["--head-map=/nowhere"], "no such file"),
        (["--key=/nowhere"], "the key /nowhere cannot be read"),
        (["--stock-flags=--a 'b"], "cannot be cut into words: No closing quotation"),
        (["--stock-flags=fa3"], "--stock-flags 'fa3' must begin with a flag"),
        (["--stock-flags=--dtype half --redknot"], "--redknot is not for stock SGLang"),
    ],
)
def test_what_cannot_be_done_is_said(
    options: list[str], message: str, head_map: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["certify", str(MODEL), f"--head-map={head_map}", *SMALL, *options]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not certificate_path(head_map).exists()


def test_prompts_that_the_map_was_calibrated_on_are_refused(head_map: Path, capsys: pytest.CaptureFixture[str]) -> None:
    profile = head_map.with_name("map.profile.json")
    profile.write_text(json.dumps({"data": {"source": "tasks", "seeds": [0, FIRST_SEED + 2]}}))
    assert main(["certify", str(MODEL), f"--head-map={head_map}", *SMALL]) == 2
    assert f"not held out: take others, such as --seed {FIRST_SEED + 3}" in capsys.readouterr().err


class Cut(Servers):
    """Refuses every request from the `after`-th on."""

    def __init__(self, after: int) -> None:
        super().__init__()
        self.after = after

    def _answer(self, body: dict[str, Any]) -> Reply:
        reply = super()._answer(body)
        return reply if len(self.asked) <= self.after else Reply(status=503)


@pytest.mark.parametrize("after", [5, 2 * N, 3 * N + 2])
def test_a_run_that_was_cut_goes_on(
    after: int, monkeypatch: pytest.MonkeyPatch, head_map: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["certify", str(MODEL), f"--head-map={head_map}", *SMALL, "--repair=none", "--concurrency=1"]
    whole = Servers(unaware_of_context)
    _, wanted = certify(monkeypatch, whole, head_map, "--repair=none", "--concurrency=1")
    certificate_path(head_map).unlink()
    first = Cut(after)
    first.wrong = unaware_of_context
    monkeypatch.setattr(certify_servers, "launch", first.launch)
    assert main(options) == 2
    assert not certificate_path(head_map).exists()
    capsys.readouterr()
    second = Servers(unaware_of_context)
    _, found = certify(monkeypatch, second, head_map, "--repair=none", "--concurrency=1")
    assert found == wanted
    assert f"{after} of {6 * N} answers are known" in capsys.readouterr().err
    assert len(second.asked) == len(whole.asked) - after == 6 * N - after
    assert len(second.started) == (2 if after < 2 * N else 1), "stock has nothing more to say"
    assert not list(head_map.parent.glob("*.work"))


def test_answers_of_other_flags_or_another_map_do_not_count(monkeypatch: pytest.MonkeyPatch, head_map: Path) -> None:
    options = ["certify", str(MODEL), f"--head-map={head_map}", *SMALL]
    for changed in ([*options, "--fresh"], [*options, "--", "--chunked-prefill-size=64"], [*options, "--max-tokens=9"]):
        cut, after = Cut(3), Servers()
        monkeypatch.setattr(certify_servers, "launch", cut.launch)
        assert main(options) == 2 and list(head_map.parent.glob("*.work"))
        monkeypatch.setattr(certify_servers, "launch", after.launch)
        assert main(changed) == 0 and len(after.asked) == 4 * N
    monkeypatch.setattr(certify_servers, "launch", Cut(3).launch)
    assert main(options) == 2
    text = json.loads(head_map.read_text())
    head_map.write_text(json.dumps({**text, "local": {"window": 129, "sink": 4}}))
    other = Servers()
    monkeypatch.setattr(certify_servers, "launch", other.launch)
    assert main(options) == 0 and len(other.asked) == 4 * N


def test_other_flags_of_stock_ask_stock_again_and_nobody_else(monkeypatch: pytest.MonkeyPatch, head_map: Path) -> None:
    options = ["certify", str(MODEL), f"--head-map={head_map}", *SMALL, "--concurrency=1"]
    cut, after = Cut(2 * N + 3), Servers()
    monkeypatch.setattr(certify_servers, "launch", cut.launch)
    assert main([*options, "--stock-flags=--attention-backend=fa3"]) == 2
    monkeypatch.setattr(certify_servers, "launch", after.launch)
    assert main([*options, "--stock-flags=--attention-backend=triton"]) == 0
    sides = [side for side, _ in after.asked]
    assert (sides.count(1), sides.count(2)) == (2 * N, 2 * N - 3), "three answers of the map are known"


@pytest.mark.parametrize("message", ["cannot be read", "cannot be written"])
def test_a_work_file_that_does_not_work_is_said(
    message: str, monkeypatch: pytest.MonkeyPatch, head_map: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*args: Any, **options: Any) -> Any:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(WorkFile, "__init__" if message == "cannot be read" else "keep", broken)
    monkeypatch.setattr(certify_servers, "launch", Servers().launch)
    assert main(["certify", str(MODEL), f"--head-map={head_map}", *SMALL]) == 2
    assert f"map.certificate.json.work {message}: No space left on device" in capsys.readouterr().err
    assert not certificate_path(head_map).exists()


def test_a_server_that_does_not_start_or_refuses_is_an_error(
    monkeypatch: pytest.MonkeyPatch, head_map: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*args: Any, **options: Any) -> Any:
        raise ServerError("the server ended with exit code 1")

    monkeypatch.setattr(certify_servers, "launch", broken)
    assert main(["certify", str(MODEL), f"--head-map={head_map}", *SMALL]) == 2
    assert "ended with exit code 1" in capsys.readouterr().err
    servers = Servers()
    monkeypatch.setattr(servers, "_answer", lambda body: Reply(json={}) if "GET" in body else Reply(status=400))
    monkeypatch.setattr(certify_servers, "launch", servers.launch)
    assert main(["certify", str(MODEL), f"--head-map={head_map}", *SMALL]) == 2
    assert "the server refused a request (400)" in capsys.readouterr().err
    assert not certificate_path(head_map).exists()
