# SPDX-License-Identifier: Apache-2.0
"""What the steps ask, against a server that caches by prefix; what they refuse to call a measurement."""

from __future__ import annotations

import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest

from eval.gpu import cold, concurrency, decode, prefix, segments, serving
from eval.gpu.ask import NotMeasured, Reply, generate, noise
from redknot_sglang.measure.launch import Server
from tests.eval.gpu.fake_radix import by_the_token, fake_radix

VOCABULARY = 2048


def server(url: str, log: Path) -> Server:
    """As `launch` gives it, with a process that has ended."""
    return Server(url, subprocess.Popen(["true"]), log)


def test_prompts_depend_on_their_names_only() -> None:
    assert noise(VOCABULARY, 50, "a", 1) == noise(VOCABULARY, 50, "a", 1) != noise(VOCABULARY, 50, "a", 2)
    assert all(300 <= token < VOCABULARY for token in noise(VOCABULARY, 1000, "b"))


def test_cold_prompts_are_new_and_the_cache_is_empty() -> None:
    with fake_radix() as stock, fake_radix(is_redknot=True) as redknot:
        cells = [cold.measure(fake.url, side, 64, VOCABULARY, 3) for side, fake in (("stock", stock), ("m", redknot))]
    assert [len(cell.samples) for cell in cells] == [3, 3] and stock.flushes == 4
    prompts = [body["input_ids"] for body in stock.bodies]
    # The warm-up, then three; the same on both sides.
    assert len({tuple(ids) for ids in prompts}) == 4 and prompts == [body["input_ids"] for body in redknot.bodies]
    assert {body["sampling_params"]["max_new_tokens"] for body in stock.bodies} == {1}


def test_a_cold_prompt_that_was_cached_is_no_measurement() -> None:
    with fake_radix() as fake:
        fake.flush = lambda: None  # type: ignore[method-assign]
        cold.measure(fake.url, "stock", 64, VOCABULARY, 1)
        with pytest.raises(NotMeasured, match="came from a flushed cache"):
            cold.measure(fake.url, "stock", 64, VOCABULARY, 1)


def test_prefix_hits_compute_the_new_tokens_only() -> None:
    rows = prefix.boundary_rows(16, 16, 128)
    assert rows == 384
    with fake_radix() as fake:
        cells = prefix.measure(fake.url, "stock", 100, VOCABULARY, 2, [8, 24])
    assert [(cell.case, len(cell.samples), cell.details["cached"]) for cell in cells] == [
        ("+8", 2, 100),
        ("+24", 2, 100),
    ]
    lengths = [len(body["input_ids"]) for body in fake.bodies]
    assert lengths == [100] + [108] * 4 + [124] * 4
    with fake_radix(keeps=False) as forgets, pytest.raises(NotMeasured, match="only 0 of 100"):
        prefix.measure(forgets.url, "stock", 100, VOCABULARY, 1, [8])


def test_decode_times_the_difference_of_two_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode, "generate", by_the_token)
    with fake_radix() as fake:
        cell = decode.measure(fake.url, "stock", 100, VOCABULARY, 2, batch=4, distinct=2, steps=8)
    assert cell.samples == pytest.approx([0.01, 0.01]) and len(cell.details["seconds"]) == 2
    bodies = fake.bodies
    assert [len(body["input_ids"]) for body in bodies[:2]] == [100, 100]
    answers = [body["sampling_params"]["max_new_tokens"] for body in bodies[2:]]
    assert answers == [48, 48, 56, 48, 56]
    heads = {tuple(ids[:100]) for body in bodies[2:] for ids in body["input_ids"]}
    assert len(heads) == 2 and all(len(body["input_ids"]) == 4 for body in bodies[2:])
    # No request finds more in the cache than the prompt.
    tails = [tuple(ids[100:]) for body in bodies[2:] for ids in body["input_ids"]]
    assert len(set(tails)) == len(tails) == 20


def test_a_decode_step_that_takes_no_time_is_no_measurement(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = iter([0.0, 0.0, 1.0, 0.9])
    monkeypatch.setattr(decode, "generate", lambda url, prompts, n: Reply(next(seconds), [{"cached_tokens": 100}]))
    with fake_radix() as fake, pytest.raises(NotMeasured, match="--decode-steps"):
        decode.measure(fake.url, "stock", 100, VOCABULARY, 1, batch=1, distinct=1, steps=8)


@pytest.mark.parametrize(("batch", "room", "distinct"), [(1, 100, 1), (8, 1000, 1), (8, 3000, 2), (8, 10**6, 8)])
def test_a_batch_has_as_many_prompts_as_fit(batch: int, room: int, distinct: int) -> None:
    assert decode.distinct_prompts(batch, 1000, room, steps=8) == distinct


def test_segments_are_the_same_prompts_on_both_sides(tmp_path: Path) -> None:
    with fake_radix() as stock, fake_radix(is_redknot=True) as redknot:
        shape = 512, VOCABULARY, 3, 4, 16
        one = segments.measure(server(stock.url, tmp_path / "log"), "stock", "stock", *shape)
        two = segments.measure(server(redknot.url, tmp_path / "log"), "m", "boundary:16", *shape)
    assert (one.case, two.case) == ("", "boundary:16") and len(one.samples) == len(two.samples) == 3
    assert len(stock.bodies) == 1 + 3 and len(redknot.bodies) == 1 + 2 + 3 and stock.flushes == 1
    # Where two orders begin alike stock finds more than the lead, never everything.
    assert segments.LEAD / 512 <= one.details["cached_share"] < 0.9
    assert 500 < one.details["tokens"] <= 512 and two.details["redknot"]["computed_tokens"] == 32 + 16
    assert [body["input_ids"] for body in redknot.bodies[:4]] == [body["input_ids"] for body in stock.bodies]
    assert stock.bodies[0]["sampling_params"]["custom_params"] is None


def test_an_answer_that_is_too_short_is_no_measurement() -> None:
    with fake_radix() as fake:
        whole = fake.answer
        fake.answer = lambda ids, sampling: whole(ids, {**sampling, "max_new_tokens": 1})  # type: ignore[method-assign]
        with pytest.raises(NotMeasured, match="1 not of 2 tokens"):
            generate(fake.url, [[1, 2]], 2)


def test_held_requests_are_read_from_the_part_of_the_log_that_is_new(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("Decode batch, #running-req: 9, #queue-req: 1\n")
    lines = "Decode batch, #running-req: 3, #queue-req: 1\nDecode batch, #running-req: 4, #queue-req: 0\n"
    with fake_radix() as fake:
        whole = fake.answer

        def answer(ids: list[int], sampling: dict[str, int]) -> dict[str, object]:
            with log.open("a") as file:
                file.write(lines)
            return whole(ids, sampling)

        fake.answer = answer  # type: ignore[method-assign]
        cell = concurrency.measure(server(fake.url, log), "stock", 32, VOCABULARY, 5, 2**30)
        assert list(cell.samples) == [3] and cell.case == "1 GiB" and len(fake.bodies) == 5
        with pytest.raises(RuntimeError, match="never full"):
            concurrency.measure(server(fake.url, log), "stock", 32, VOCABULARY, 3, 2**30)


def test_serving_is_sglangs_own_benchmark(tmp_path: Path) -> None:
    with fake_radix() as fake:
        cell = serving.measure(fake.url, "stock", 64, tmp_path, prompts=5, answer=3)
    assert cell.case == "3 tokens, 5 at once" and cell.details["completed"] == 5 and cell.samples[0] > 0
    counted = fake.bodies[-5:]
    assert all(len(body["input_ids"]) == 64 and body["sampling_params"]["max_new_tokens"] == 3 for body in counted)
    assert not any(body["stream"] for body in counted) and len({tuple(body["input_ids"]) for body in counted}) == 5
    # Before its warm-up and behind it.
    assert fake.flushes >= 2


def test_serving_without_answers_is_no_measurement(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ended: subprocess.CompletedProcess[bytes] = subprocess.CompletedProcess([], 1)
    monkeypatch.setattr(serving, "subprocess", SimpleNamespace(run=lambda *a, **b: ended, STDOUT=subprocess.STDOUT))
    with fake_radix() as fake, pytest.raises(RuntimeError, match="0 of 2 requests were answered, exit code 1"):
        serving.measure(fake.url, "stock", 8, tmp_path, prompts=2, answer=1)
