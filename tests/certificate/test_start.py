# SPDX-License-Identifier: Apache-2.0
"""The certificate where a server reads its flags, and what a server says that serves without one."""

from __future__ import annotations

import json
import lzma
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from redknot_sglang import active
from redknot_sglang.certificate.document import certificate_path, read_certificate
from redknot_sglang.config import RedKnotConfig
from redknot_sglang.errors import RedKnotError
from redknot_sglang.plan.options import resolve
from tests.certificate.made import certified_map
from tests.serving import harness
from tests.serving.harness import Server
from tests.serving.maps import make_map, save_map

POLICIES = {"exact": "pass", "blend:0.08": "pass", "none": "fail"}
PROMPT = list(range(400, 520))


def read_flags(args: list[str]) -> RedKnotConfig:
    """The configuration that the launcher makes of these flags. Raises SystemExit with what it would print."""
    from sglang.srt.plugins import load_plugins
    from sglang.srt.server_args import prepare_server_args

    load_plugins()
    config = active.config_of(prepare_server_args(harness.flags(args, certified=True)))
    assert config is not None
    return config


def flags(head_map: Path, *more: str) -> list[str]:
    return ["--redknot", f"--redknot-head-map={head_map}", *more]


def test_a_certificate_that_fits_is_found(tmp_path: Path) -> None:
    head_map = certified_map(tmp_path, policies=POLICIES)
    config = read_flags(flags(head_map, "--redknot-mode=segmented"))
    assert config.certification.digest == read_certificate(certificate_path(head_map)).digest
    assert config.certification.covers(config.policy) and config.policy == "blend:0.08"


def test_the_repair_of_requests_that_name_none_is_one_that_passed(tmp_path: Path) -> None:
    head_map = certified_map(tmp_path, policies={"exact": "pass", "blend:0.08": "fail", "boundary:16": "pass"})
    assert read_flags(flags(head_map, "--redknot-mode=segmented")).policy == "boundary:16"
    assert read_flags(flags(head_map)).repair == "boundary:16"


def test_where_none_passed_each_request_names_one(tmp_path: Path) -> None:
    head_map = certified_map(tmp_path, policies={"exact": "pass", "blend:0.08": "fail"})
    config = read_flags(flags(head_map))
    assert config.repair is None and config.policy == "exact"
    assert resolve({}, config, 9, [2, 5]) == {}
    named = resolve({"redknot_segments": [2, 5], "redknot_repair": "none"}, config, 9, None)
    assert named["redknot_repair"] == "none"
    with pytest.raises(
        RedKnotError, match="no repair policy of its own: .* give redknot_repair, one of none, boundary"
    ):
        resolve({"redknot_segments": [2, 5]}, config, 9, None)
    for more in (["--redknot-mode=segmented"], ["--redknot-segment-length=100"]):
        with pytest.raises(SystemExit, match="none passed in a certificate beside the head map"):
            read_flags(flags(head_map, *more))
    assert read_flags(flags(head_map, "--redknot-segment-length=100", "--redknot-uncertified")).repair is None


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (["--redknot-repair=boundary:8"], "policy boundary:8 is not in the certificate"),
        (["--redknot-repair=none", "--redknot-mode=segmented"], "policy none failed its certification"),
        (["--redknot-repair=blend:0.08", "--redknot-segment-lead=lead"], "policy blend:0.08+lead is not in"),
        (["--load-format=dummy"], "this server has dummy weights"),
        (['--json-model-override-args={"rope_theta": 5}'], "config.json differs"),
        (["--redknot-certificate-key=/nowhere"], "the key /nowhere cannot be read"),
    ],
)
def test_flags_that_are_not_certified_stop_the_server(more: list[str], sentence: str, tmp_path: Path) -> None:
    head_map = certified_map(tmp_path, policies=POLICIES)
    with pytest.raises(SystemExit) as stop:
        read_flags(flags(head_map, *more))
    message = str(stop.value.code)
    assert message.startswith("redknot: error: ") and sentence in message and len(message.splitlines()) == 1
    allowed = read_flags(flags(head_map, *more, "--redknot-uncertified"))
    assert sentence in str(allowed.certification.reason) and not allowed.certification.enforced


def test_the_flag_needs_redknot() -> None:
    with pytest.raises(SystemExit) as stop:
        read_flags(["--redknot-uncertified"])
    assert "--redknot-uncertified has no effect without --redknot" in str(stop.value.code)


def test_the_shipped_map_is_certified() -> None:
    found = read_flags(flags(harness.HEAD_MAP, "--redknot-mode=segmented")).certification
    assert {"exact", "blend:0.08"} <= set(found.policies) and found.reason is None


def test_the_calibrated_map_is_certified_on_prompts_of_its_own(tmp_path: Path) -> None:
    results = Path(harness.__file__).parents[2] / "eval" / "results"
    head_map = tmp_path / "calibrated_map.json"
    head_map.write_bytes((results / head_map.name).read_bytes())
    path = certificate_path(head_map)
    path.write_bytes(lzma.decompress((results / f"{path.name}.xz").read_bytes()))
    found = read_flags(flags(head_map, "--redknot-mode=segmented")).certification
    assert set(found.policies) == {"exact", "blend:0.08"} and found.reason is None
    document, provenance = read_certificate(path).document, json.loads(head_map.read_text())["provenance"]
    settings = document["settings"]
    assert (settings["n"], settings["lengths"]) == (400, [1024, 2048, 4096])
    assert settings["seeds"][0] > provenance["data"]["seeds"][1] and provenance["kv"] < 0.45
    for policy in document["policies"].values():
        assert len(policy["cells"]) == 15 and all(cell["loss_points"] <= 2 for cell in policy["cells"])
        assert all(mean["loss_points"] <= 1 for mean in policy["means"])


@pytest.fixture(scope="module")
def uncertified_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A map that nobody certified."""
    path = save_map(make_map(40, 4), tmp_path_factory.mktemp("map"))
    with harness.launch([*flags(path), "--enable-metrics"]) as server:
        yield server


@pytest.mark.serving
def test_an_uncertified_server_says_so(uncertified_server: Server) -> None:
    meta = uncertified_server.generate(PROMPT, 2)["meta_info"]["redknot"]
    assert (meta["certified"], meta["certificate"]) == (False, None)
    for state in (
        uncertified_server.get("/redknot/status"),
        uncertified_server.get("/server_info")["internal_states"][0]["redknot"],
    ):
        assert state["certificate"]["certified"] is False and state["certificate"]["uncertified_allowed"] is True
        assert "there is no certificate" in state["certificate"]["reason"]
    metrics = requests.get(uncertified_server.url + "/metrics", timeout=60).text
    assert re.findall(r"^redknot:certified\{(.*)\} (\S+)$", metrics, re.M) == [('certificate="",policy="exact"', "0.0")]


@pytest.mark.serving
def test_a_certified_server_says_so_and_refuses_other_policies(tmp_path: Path) -> None:
    head_map = certified_map(tmp_path, policies=POLICIES)
    digest = read_certificate(certificate_path(head_map)).digest
    with harness.launch([*flags(head_map), "--enable-metrics"], certified=True) as server:
        exact = server.generate(PROMPT, 2)["meta_info"]["redknot"]
        assert (exact["certified"], exact["certificate"]) == (True, digest)
        segments = {"redknot_segments": [10, 60]}
        blend = server.generate(PROMPT, 2, sampling_params={"custom_params": segments})["meta_info"]["redknot"]
        assert (blend["policy"], blend["certified"]) == ("blend:0.08", True)
        for repair in ("none", "boundary:4"):
            sampling = {"custom_params": segments | {"redknot_repair": repair}}
            answer = server.post("/generate", {"input_ids": PROMPT, "sampling_params": sampling})
            assert answer.status_code == 400
            assert f"policy {repair} is not certified on this server (certified: exact, blend:0.08)" in answer.text
        preload = server.post("/redknot/segments", {"segments": [PROMPT], "repair": "none"})
        assert preload.status_code == 400 and "is not certified" in preload.text
        assert server.get("/redknot/status")["certificate"]["digest"] == digest
        metrics = requests.get(server.url + "/metrics", timeout=60).text
        assert f'redknot:certified{{certificate="{digest}",policy="exact"}} 1.0' in metrics
