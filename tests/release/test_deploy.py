# SPDX-License-Identifier: Apache-2.0
"""deploy/: the dashboard asks for metrics that there are, and the Kubernetes example fits the server. Neither Grafana nor a cluster is here."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import prometheus_client
import pytest
import sglang.srt
import yaml

from redknot_sglang.serve import metrics
from redknot_sglang.versions import PINNED_SGLANG
from tests.release.built import ROOT
from tests.release.commands import server_parser

DASHBOARD = json.loads((ROOT / "deploy" / "grafana" / "redknot.json").read_text())
EXPRESSIONS = [target["expr"] for panel in DASHBOARD["panels"] for target in panel.get("targets", ())]
SUFFIXES = {"Gauge": ("",), "Counter": ("_total",), "Histogram": ("_bucket", "_sum", "_count")}
# What Prometheus and histograms add to the labels that a server gives.
ADDED = {"instance", "le"}


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> dict[str, set[str]]:
    """The labels of every metric that the code registers, by each name that `/metrics` has for it."""
    found: dict[str, set[str]] = {}

    def recorder(kind: str) -> Any:
        def register(name: str, text: str, labelnames: tuple[str, ...] = (), **options: Any) -> MagicMock:
            found.update({name + suffix: set(labelnames) for suffix in SUFFIXES[kind]})
            return MagicMock()

        return register

    for kind in SUFFIXES:
        monkeypatch.setattr(prometheus_client, kind, recorder(kind))
    config: Any = SimpleNamespace(policy="exact", certification=MagicMock())
    dealing = SimpleNamespace(ranks=1, globals_of=lambda rank: 1)
    allocator = MagicMock(get_kvcache=lambda: SimpleNamespace(dealing=dealing))
    made: dict[Any, tuple[Any, ...]] = {
        metrics.CertificationMetric: (config,),
        metrics.ClassMetrics: (allocator,),
        metrics.SegmentMetrics: (),
        metrics.TierMetrics: (),
        metrics.StoreMetrics: (),
        metrics.TransferMetrics: (),
    }
    classes = {kind for name, kind in vars(metrics).items() if name.endswith(("Metric", "Metrics"))}
    assert made.keys() == classes, "a class of metrics that this test does not make"
    for kind, arguments in made.items():
        kind(*arguments)
    return found


def test_the_dashboard_asks_for_what_is_registered(registered: dict[str, set[str]]) -> None:
    source = "".join(path.read_text() for path in Path(sglang.srt.__path__[0]).rglob("*metrics*.py"))
    stock = set(re.findall(r'"(sglang:\w+)"', source))
    for expression in EXPRESSIONS:
        for name in re.findall(r"\b(?:redknot|sglang):\w+", expression):
            if name.startswith("redknot:"):
                assert name in registered, expression
                by = {label for group in re.findall(r"by \(([^)]*)\)", expression) for label in group.split(", ")}
                asked = by | set(re.findall(r"(\w+)=~?\"", expression))
                assert asked <= registered[name] | ADDED, expression
            else:
                assert re.sub(r"_(bucket|sum|count)$", "", name) in stock, expression


def test_all_that_is_registered_is_on_the_dashboard_and_in_the_documents(registered: dict[str, set[str]]) -> None:
    documents = "".join(path.read_text() for path in (ROOT / "docs").glob("*.md"))
    names = {re.sub(r"_(bucket|sum|count)$", "", name) for name in registered}
    shown = {re.sub(r"_bucket$", "", name) for name in re.findall(r"\bredknot:\w+", " ".join(EXPRESSIONS))}
    # A colon and a space after the word is a line of a configuration file.
    assert shown == names == set(re.findall(r"\bredknot:\w+", documents))


def test_panels_do_not_lie_on_each_other_and_ids_are_unique() -> None:
    panels = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    cells = [
        (x, y)
        for place in (panel["gridPos"] for panel in panels)
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]
    assert len(set(cells)) == len(cells) and all(x < 24 for x, _ in cells)


def test_the_kubernetes_example_fits_the_server() -> None:
    deployment, service = yaml.safe_load_all((ROOT / "deploy" / "kubernetes" / "redknot.yaml").read_text())
    assert (deployment["kind"], service["kind"]) == ("Deployment", "Service")
    spec = deployment["spec"]
    labels = spec["template"]["metadata"]["labels"]
    assert spec["selector"]["matchLabels"] == labels == service["spec"]["selector"]
    pod = spec["template"]["spec"]
    (server,) = pod["containers"]
    assert server["command"][1:] == ["-m", "sglang.launch_server"]
    flags = server_parser().parse_args(server["args"])
    assert flags.redknot and flags.enable_metrics and flags.host == "0.0.0.0"
    (port,) = server["ports"]
    assert port["containerPort"] == flags.port
    assert service["spec"]["ports"][0]["targetPort"] == port["name"]
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert server[probe]["httpGet"] == {"path": "/health", "port": port["name"]}
    # Starts take minutes, and a busy server answers late.
    assert server["startupProbe"]["periodSeconds"] * server["startupProbe"]["failureThreshold"] >= 1800
    assert server["livenessProbe"]["periodSeconds"] * server["livenessProbe"]["failureThreshold"] >= 120
    assert int(server["resources"]["limits"]["nvidia.com/gpu"]) == flags.tp_size
    mounts = {mount["mountPath"]: mount["name"] for mount in server["volumeMounts"]}
    assert set(mounts.values()) == {volume["name"] for volume in pod["volumes"]}
    assert flags.model_path in mounts and str(flags.redknot_head_map).startswith(f"{flags.model_path}/")
    assert "/dev/shm" in mounts
    notes = spec["template"]["metadata"]["annotations"]
    assert notes["prometheus.io/port"] == str(flags.port)


def test_the_image_is_of_the_pinned_sglang_and_the_one_that_is_deployed() -> None:
    dockerfile = (ROOT / "deploy" / "kubernetes" / "Dockerfile").read_text()
    (tag,) = re.findall(r"--tag (\S+)", dockerfile)
    assert f"FROM lmsysorg/sglang:v{PINNED_SGLANG}\n" in dockerfile
    assert f"image: {tag}\n" in (ROOT / "deploy" / "kubernetes" / "redknot.yaml").read_text()
