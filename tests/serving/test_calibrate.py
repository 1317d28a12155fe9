# SPDX-License-Identifier: Apache-2.0
"""The whole path: a head map is found by measurement, certified through servers, and served with its certificate."""

from __future__ import annotations

from pathlib import Path

import pytest

from redknot_sglang.certificate.document import certificate_path, read_certificate
from redknot_sglang.certify import servers
from redknot_sglang.cli.main import main
from redknot_sglang.heads import load_head_map
from tests.serving import harness

pytestmark = pytest.mark.serving

# So small that figures mean little; the sizes that mean something are in eval/NOTES.md.
PROFILE = "--data tasks --lengths 512 --n 1 --seed 100000 --target-kv 0.45 --at 4096 --windows 128 --methods mass"
CERTIFY = "--tasks lookup,tracking --lengths 512 -n 10 --controls bm25:1,none"


def test_profile_certify_serve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, full: bool) -> None:
    path, page = tmp_path / "map.json", tmp_path / "report.html"
    flags = PROFILE.split() + ["--points", "1", "--reuse", "none", "--dtype", "float32", f"--report={page}"]
    done = harness.run_redknot("profile", str(harness.MODEL), *flags, f"--out={path}")
    assert done.returncode == 0, done.stderr
    head_map = load_head_map(path)
    assert not head_map.all_global and head_map.window == 128
    assert "<svg" in page.read_text()

    code, log = harness.refused(["--redknot", f"--redknot-head-map={path}"])
    assert code != 0 and "there is no certificate" in log
    # In this process, so that its servers can be forked; at full size as users run it.
    harness.fork_servers_of(servers, monkeypatch, full)
    certify = ["certify", str(harness.MODEL), f"--head-map={path}", *CERTIFY.split()]
    assert (harness.run_redknot(*certify, timeout=500).returncode if full else main(certify)) == 0
    certificate = read_certificate(certificate_path(path))
    assert set(certificate.verdicts) == {"exact"}
    one, nothing = (certificate.document["controls"][name]["cells"][0] for name in ("bm25:1", "no-documents"))
    exact = certificate.document["policies"]["exact"]["cells"][0]
    assert one["n"] == 10 and nothing["policy"]["right"] < one["policy"]["right"] <= exact["policy"]["right"]
    for what in ("rows", "flops"):
        assert 0 < nothing["computed"][what] < one["computed"][what] < exact["computed"][what] <= 1

    with harness.launch(
        ["--redknot", f"--redknot-head-map={path}"], certified=True, forked=not full and harness.ON_CPU
    ) as server:
        said = server.generate(list(range(400, 520)), 2)["meta_info"]["redknot"]
        assert (said["certified"], said["certificate"]) == (True, certificate.digest)
