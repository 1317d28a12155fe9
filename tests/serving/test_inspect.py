# SPDX-License-Identifier: Apache-2.0
"""`/redknot/inspect` of real servers: what it shows and hides, who may see it, and that requests do not notice."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import requests

from redknot_sglang.cli.main import main
from redknot_sglang.radix.inventory import tenant_label
from tests.report.test_page import browse
from tests.serving import harness
from tests.serving.answers import agree, ask
from tests.serving.conversations import settle
from tests.serving.prompts import noise, text, tokenizer
from tests.serving.segmented import SMALL
from tests.serving.shared import SharedServers
from tests.versions import needs_host_tier

pytestmark = pytest.mark.serving

PATH = "/redknot/inspect"
TENANT = "ACME & Sons"
KEY = "only for admins"


def test_a_server_shows_what_it_has_and_hides_whose_and_what(
    servers: SharedServers, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server, rng = servers.get(*SMALL), random.Random("inspect")
    prompt, document = noise(rng, 300), noise(rng, 200)
    for _ in range(2):
        server.generate(prompt, 4, extra_key=TENANT)
    assert server.post("/redknot/segments", {"segments": [document], "repair": "boundary:16"}).status_code == 200
    settle(server)
    found = server.get(PATH + ".json")
    assert not found["texts"]
    (rank,) = found["ranks"]
    cache, status = rank["cache"], server.get("/redknot/status")
    assert rank["status"]["tree"] == status["tree"] and cache["policy"] == "redknot"
    pieces = {(piece["tenant"], piece["kind"]): piece for piece in cache["pieces"] if piece["end"] > 100}
    label = tenant_label(TENANT, False)
    asked, computed = pieces[label, "prompt"], pieces[None, "document"]
    assert computed["end"] == 200 and computed["classes"]["local"]["device"] == 128 + 4
    held = sum(p["classes"]["global"]["device"] for p in cache["pieces"])
    assert held == status["tree"]["global"]["evictable"] == 303 + 200
    # The document came after it, and time is what requests bring.
    assert asked["classes"]["global"]["age"] >= 200 > computed["classes"]["global"]["age"]
    page = requests.get(server.url + PATH, timeout=60)
    assert (
        page.headers["content-type"].startswith("text/html")
        and "default-src 'none'" in page.headers["content-security-policy"]
    )
    for shown in (page.text, str(found)):
        assert TENANT not in shown and "ACME" not in shown and label is not None and label in shown
    path = tmp_path / "page.html"
    path.write_text(page.text)
    seen = browse(path, tmp_path / "shot.png", "light")
    assert (
        seen["requests"] == [path.as_uri()] and f"tenant {label}" in seen["text"] and "What goes next" in seen["text"]
    )
    assert main(["inspect", server.url]) == 0
    assert f"tenant {label}" in capsys.readouterr().out
    server.flush()
    assert server.get(PATH + ".json")["ranks"][0]["cache"]["pieces"] == []


@needs_host_tier
def test_with_the_flag_admins_see_names_and_texts_while_requests_run() -> None:
    flags = (*SMALL, "--redknot-inspect-texts", f"--admin-api-key={KEY}", "--radix-eviction-policy=lru")
    host = ("--enable-hierarchical-cache", "--hicache-ratio=4")
    headers, rng = {"Authorization": f"Bearer {KEY}"}, random.Random("texts")
    words = text(rng)
    with harness.launch([*flags, *host]) as server:
        assert requests.get(server.url + PATH, timeout=60).status_code in (401, 403)
        assert requests.get(server.url + PATH + ".json", timeout=60).status_code in (401, 403)

        def inspected() -> dict[str, object]:
            answer = requests.get(server.url + PATH + ".json", headers=headers, timeout=60)
            answer.raise_for_status()
            (rank,) = answer.json()["ranks"]
            return dict(rank["cache"])

        prompts = [noise(rng, 200) for _ in range(4)]
        cold = [ask(server, prompt, 40) for prompt in prompts]
        server.generate(words, 1, extra_key=TENANT)
        with ThreadPoolExecutor(8) as pool:
            again = [pool.submit(ask, server, prompt, 40) for prompt in prompts]
            looks = [pool.submit(inspected) for _ in range(20)]
            for answer, expected in zip(again, cold, strict=True):
                agree(answer.result(), expected, 1e-4)
            assert all(look.result()["policy"] == "LRUStrategy" for look in looks)
        settled = inspected()
        pieces = settled["pieces"]
        assert isinstance(pieces, list)
        (piece,) = [piece for piece in pieces if piece["tenant"] == TENANT]
        assert piece["text"] == tokenizer().decode(words[:32]) and piece["classes"]["global"]["both"] > 100
        page = requests.get(server.url + PATH, headers=headers, timeout=60).text
        assert "ACME &amp; Sons" in page
