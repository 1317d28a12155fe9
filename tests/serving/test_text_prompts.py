# SPDX-License-Identifier: Apache-2.0
"""Prompts of text on one server: a separator that is a word, at every endpoint, and parameters of a logit processor beside ours."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.serving import harness

pytestmark = pytest.mark.serving
# A word of the embedded tokenizer, as "###" and "---" are of most.
SEPARATOR = "manager"
SEGMENTED = {"redknot_mode": "segmented"}
# With and without spaces, the word is another token of the text's own.
TEXTS = ("lead{0}doc one here{0}ask", "lead {0} doc one here {0} ask")


@pytest.fixture(scope="module")
def server() -> Iterator[harness.Server]:
    args = [
        "--redknot",
        f"--redknot-head-map={harness.HEAD_MAP}",
        "--redknot-segment-length=300",
        "--redknot-repair=boundary:4",
    ]
    with harness.launch([*args, f"--redknot-separator={SEPARATOR}", "--enable-custom-logit-processor"]) as running:
        yield running


@pytest.mark.parametrize("text", TEXTS)
def test_a_word_separates_at_every_endpoint(server: harness.Server, text: str) -> None:
    prompt = text.format(SEPARATOR)
    answer = server.generate(prompt, 2, sampling_params={"custom_params": SEGMENTED})
    report = answer["meta_info"]["redknot"]
    # The policy is that of the server's flag.
    assert (report["segments"], report["policy"]) == (1, "boundary:4")
    # A prompt that names no segments is refused there, too, if it asks for them.
    for path, body in (
        ("/v1/completions", {"prompt": prompt}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": prompt}]}),
    ):
        asked = {"model": "default", "max_tokens": 2, "custom_params": SEGMENTED}
        found = server.post(path, {**asked, **body})
        assert found.status_code == 200, found.text
        words = {**asked, **_without(body)}
        assert server.post(path, words).status_code == 400


def _without(body: dict[str, Any]) -> dict[str, Any]:
    plain = "no words in between"
    return {"prompt": plain} if "prompt" in body else {"messages": [{"role": "user", "content": plain}]}


def test_a_batch_is_cut_like_its_prompts(server: harness.Server) -> None:
    texts = [text.format(SEPARATOR) for text in TEXTS]
    sampling = {"temperature": 0, "max_new_tokens": 3, "ignore_eos": True, "custom_params": SEGMENTED}
    batch = server.post("/generate", {"text": texts, "sampling_params": sampling})
    assert batch.status_code == 200, batch.text
    for text, found in zip(texts, batch.json(), strict=True):
        alone = server.generate(text, 3, sampling_params={"custom_params": SEGMENTED})
        assert found["output_ids"] == alone["output_ids"] and found["meta_info"]["redknot"]["segments"] == 1


@pytest.mark.parametrize("mode", [{}, {"redknot_mode": "exact"}, SEGMENTED], ids=["no mode", "exact", "segmented"])
def test_a_logit_processor_gets_its_parameters_in_every_mode(server: harness.Server, mode: dict[str, str]) -> None:
    from sglang.srt.sampling.custom_logit_processor import DisallowedTokensLogitsProcessor

    prompt = TEXTS[0].format(SEPARATOR)
    banned = server.generate(prompt, 4, sampling_params={"custom_params": mode})["output_ids"]
    answer = server.generate(
        prompt,
        4,
        custom_logit_processor=DisallowedTokensLogitsProcessor.to_str(),
        sampling_params={"custom_params": {"token_ids": banned, **mode}},
    )
    assert not set(answer["output_ids"]) & set(banned)
    assert answer["meta_info"]["redknot"]["mode"] == mode.get("redknot_mode", "exact")
