# SPDX-License-Identifier: Apache-2.0
"""The report: what it says, what it lacks, and how a browser shows it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from redknot_sglang.certificate.document import certificate_path, seal, write_certificate
from redknot_sglang.cli.main import main
from redknot_sglang.errors import ReportError
from redknot_sglang.report import write_report
from redknot_sglang.report.page import render
from tests.report.made import TASKS, make_certificate, make_map, make_profile

BROWSER = Path(__file__).with_name("browser.py")
NO_BROWSER = (
    "no browser on this machine: pip install -r requirements-dev.txt brings one (PySide6-WebEngine); on a bare Debian it "
    "also needs apt-get install libnss3 libegl1 libgl1 libgbm1 libfontconfig1 libxkbcommon0 libxkbfile1 libxcomposite1 "
    "libxdamage1 libxrandr2 libxtst6 libasound2 libdbus-1-3; it said: "
)
MAP = make_map(6, 4)
SECTIONS = (
    "Classes and windows",
    "Evidence for each head",
    "What maps lose, and what they save",
    "Accuracy through the server",
    "Where this comes from",
)


def write_files(folder: Path, layers: int, heads: int) -> Path:
    """A head map with its profile and certificate beside it."""
    head_map = make_map(layers, heads)
    path = folder / "map.json"
    head_map.save(path)
    (folder / "map.profile.json").write_text(json.dumps(make_profile(head_map)))
    write_certificate(certificate_path(path), seal(make_certificate(head_map)))
    return path


def test_the_page_needs_nothing_from_outside() -> None:
    page = render(make_profile(MAP), MAP, seal(make_certificate(MAP)))
    assert not re.search(r"<(script|link|img|iframe|object)\b", page)
    addresses = set(re.findall(r"https?://[^\"' <]*", page))
    assert addresses == {"http://www.w3.org/2000/svg"}, "the name of SVG, which nobody fetches"
    assert "url(" not in page and "@import" not in page


def test_the_page_says_what_a_loss_is() -> None:
    profile = make_profile(MAP)
    assert "<dt>a loss is</dt><dd>the loss on given answers</dd>" in render(profile, MAP, None)
    profile["target"]["loss"] = "own"
    assert "own answers</dd>" in render(profile, MAP, None)


def test_figures_are_those_of_the_files() -> None:
    certificate = seal(make_certificate(MAP))
    page = render(make_profile(MAP), MAP, certificate)
    assert page.count("<svg xmlns") == 1 + 3 + 1 + 2, "classes, two methods and reuse, Pareto curve, two lengths"
    assert f"{sum(map(sum, MAP.is_global))} of 24 KV heads are global" in page
    assert page.count("window 128, sink 4</title>") == 24 - sum(map(sum, MAP.is_global)), "a cell for each local head"
    for cell in certificate["policies"]["none"]["cells"]:
        right = cell["policy"]["right"]
        assert f"{cell['task']}, none: {right} of {cell['n']} right" in page
    assert certificate["digest"] in page and "exact &#10003; passed" in page and "none &#10007; failed" in page
    assert "crossdoc at 1024 tokens: loses" in page
    assert "random (control)" in page and "ring is the chosen map: fewest bytes" in page


def test_controls_show_as_such_with_what_was_computed() -> None:
    certificate = make_certificate(MAP)
    assert "never certified" not in render(None, None, seal(certificate))
    control = {key: certificate["policies"]["none"][key] for key in ("cells", "means", "agreement")}
    control["cells"][0]["computed"] = {"rows": 0.123, "flops": None}
    certificate["controls"] = {"bm25:2": control}
    page = render(None, None, seal(certificate))
    assert "<h3>control bm25:2</h3><p>Documents chosen by the client; no policy, and never certified." in page
    assert "12.3 %</td><td>-</td>" in page


def test_flags_of_stock_alone_show() -> None:
    certificate = make_certificate(MAP)
    assert "stock SGLang was served with</dt><dd>the same flags</dd>" in render(None, None, seal(certificate))
    certificate["measured_on"]["stock_flags"] = ["--attention-backend", "fa3"]
    page = render(None, None, seal(certificate))
    assert "stock SGLang was served with</dt><dd>--attention-backend fa3</dd>" in page


def test_what_comes_from_files_is_escaped() -> None:
    profile = make_profile(MAP)
    profile["reason"] = profile["data"]["name"] = profile["methods"]["mass"]["unit"] = "<script>alert(1)</script>"
    certificate = make_certificate(MAP)
    certificate["model"]["architecture"] = '"><img src=x>'
    page = render(profile, MAP, seal(certificate))
    assert "<script" not in page and "<img" not in page


@pytest.mark.parametrize(
    ("given", "lacking"),
    [
        ({"head_map"}, ["No profile was given", "No certificate was given", "Not certified"]),
        ({"profile"}, ["No head map was given", "No certificate was given"]),
        ({"certificate"}, ["No head map was given", "No profile was given"]),
    ],
)
def test_what_is_missing_is_said(given: set[str], lacking: list[str], tmp_path: Path) -> None:
    head_map = write_files(tmp_path, 6, 4)
    files = {"head_map": head_map, "profile": tmp_path / "map.profile.json", "certificate": certificate_path(head_map)}
    out = tmp_path / "report.html"
    write_report(out, **{name: files[name] for name in given})
    page = out.read_text()
    assert all(words in page for words in (*lacking, *SECTIONS))


def test_a_certificate_of_another_map_shows() -> None:
    assert "about another head map" in render(None, make_map(6, 4, seed=5), seal(make_certificate(MAP)))


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("profile", "{", "is not JSON"),
        ("profile", '{"format": "redknot-profile", "version": 7}', "is not a redknot-profile of version 1"),
        ("profile", '{"format": "redknot-profile", "version": 1}', "not complete"),
        ("certificate", "[]", "is not a certificate"),
        ("head_map", "", "is empty"),
    ],
)
def test_bad_files_are_said(name: str, text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    path.write_text(text)
    with pytest.raises(ReportError, match=message):
        write_report(tmp_path / "out.html", **{name: path})
    with pytest.raises(ReportError, match="nothing to report"):
        write_report(tmp_path / "out.html")


def test_the_command_finds_what_lies_beside_the_map(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    head_map, out = write_files(tmp_path, 6, 4), tmp_path / "report.html"
    assert main(["report", "--head-map", str(head_map), "--out", str(out)]) == 0
    page = out.read_text()
    assert "No profile" not in page and "No certificate" not in page
    assert main(["report", "--head-map", str(tmp_path / "none.json"), "--out", str(out)]) == 2
    assert "no such file" in capsys.readouterr().err


def browse(page: Path, shot: Path, mode: str) -> dict[str, Any]:
    """What a headless Chromium makes of the page; skips the test where there is none."""
    words = [sys.executable, str(BROWSER), str(page), str(shot), mode]
    ran = subprocess.run(words, capture_output=True, text=True, timeout=120)
    if ran.returncode and re.search(r"No module named 'PySide6|ImportError|could not be loaded", ran.stderr):
        pytest.skip(NO_BROWSER + ran.stderr.strip().splitlines()[-1])
    assert ran.returncode == 0, ran.stderr[-2000:]
    return dict(json.loads(ran.stdout.splitlines()[-1]))


@pytest.fixture(scope="module", params=[(6, 4), (40, 8)], ids=["6 layers", "40 layers"])
def page(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A page for a small and for a deep model."""
    folder = tmp_path_factory.mktemp("report")
    head_map = write_files(folder, *request.param)
    out = folder / "report.html"
    write_report(out, head_map=head_map, profile=folder / "map.profile.json", certificate=certificate_path(head_map))
    yield out


@pytest.mark.parametrize("mode", ["light", "dark"])
def test_a_browser_shows_it(page: Path, mode: str, tmp_path: Path) -> None:
    shot = tmp_path / "shot.png"
    found = browse(page, shot, mode)
    assert found["requests"] == [page.as_uri()], "nothing else is fetched"
    assert all(words in found["text"] for words in (*SECTIONS, *TASKS, "certificate digest"))
    assert found["width"] <= 1100, "nothing makes the page wider than the window"
    assert len(found["figures"]) == 7
    for figure in found["figures"]:
        assert figure["shapes"] >= 8 and figure["words"], figure["title"]
        for word in figure["words"]:
            assert _inside(word["box"], figure["box"]), (figure["title"], word["text"])
        for one, other in combinations(figure["words"], 2):
            assert not _overlap(one["box"], other["box"]), (figure["title"], one["text"], other["text"])
    red, green, blue = map(int, re.findall(r"\d+", found["background"])[:3])
    assert (min(red, green, blue) > 200) == (mode == "light")
    with Image.open(shot) as image:
        colors = image.convert("RGB").getcolors(1 << 20)
        assert image.width == 1100 and image.height > 1500
    # The commonest colour is the page's, and figures bring many more.
    assert colors is not None and max(colors)[1] == (red, green, blue) and len(colors) > 50


def _inside(word: list[float], box: list[float]) -> bool:
    return word[0] >= box[0] - 1 and word[1] >= box[1] - 1 and word[2] <= box[2] + 1 and word[3] <= box[3] + 1


def _overlap(a: list[float], b: list[float]) -> bool:
    return min(a[2], b[2]) - max(a[0], b[0]) > 0.5 and min(a[3], b[3]) - max(a[1], b[1]) > 0.5
