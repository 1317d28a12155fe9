# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from statistics import mean

import pytest

from eval import bench_route
from eval.route.cache_aware import CacheAware
from eval.route.cluster import Cluster, simulate
from eval.route.traffic import Traffic, arrivals, wanted
from redknot_sglang.route.choice import Documents, Member, RoundRobin

TOPICAL = Traffic(topics=8)
SMALL = Traffic(corpus=12, documents=3, document_tokens=100, text_tokens=10, answer_tokens=5)


def test_traffic_is_what_it_says() -> None:
    some = list(arrivals(TOPICAL, 5.0, 2000, seed=3))
    assert some == list(arrivals(TOPICAL, 5.0, 2000, seed=3)) != list(arrivals(TOPICAL, 5.0, 2000, seed=4))
    assert some[-1].at == pytest.approx(400, rel=0.1)
    assert [one.documents for one in some] == [one.documents for one in arrivals(TOPICAL, 50.0, 2000, seed=3)]
    assert all(len(set(one.documents)) == 16 for one in some)
    main = mean(max(sum(d % 8 == topic for d in one.documents) for topic in range(8)) for one in some)
    assert main > 11, "most documents of a request are of one topic"
    counts = sorted((sum(d in one.documents for one in some) for d in range(256)), reverse=True)
    assert counts[0] > 5 * counts[128]


def test_a_server_computes_what_it_does_not_hold() -> None:
    requests = list(arrivals(SMALL, 1.0, 300, seed=0))
    roomy = simulate(Cluster(servers=1, slots=10**9), SMALL, requests, RoundRobin)
    assert roomy.anew == 12 * 100, "each document once"
    assert roomy.documents == 300 * 300 and sum(roomy.work.values()) == roomy.anew + 300 * 15
    nothing = simulate(Cluster(servers=1, slots=1), SMALL, requests, RoundRobin)
    assert nothing.share_anew == 1 and nothing.imbalance == 1
    four = simulate(Cluster(servers=4, slots=10**9), SMALL, requests, RoundRobin)
    assert four.anew == 4 * roomy.anew
    assert four.wait(0.5) <= four.wait(0.99)


def test_cache_aware_does_what_sglangs_router_does() -> None:
    members, policy = [Member(f"http://{name}") for name in "abc"], CacheAware()
    asked = [wanted(SMALL, one, number) for number, one in enumerate(arrivals(SMALL, 1.0, 5, seed=0))]
    assert {policy.choose(one, members).name for one in asked} == {"http://a"}, "nobody is busy: the first"
    members[0].open = 1
    assert policy.choose(asked[0], members) is members[0], "it has all of the prompt"
    other = wanted(SMALL, replace(next(iter(arrivals(SMALL, 1.0, 1, seed=9))), documents=(11, 10, 9)), 9)
    assert policy.choose(other, members) is members[1]
    members[0].open = 66
    assert policy.choose(asked[0], members) is members[1], "too unequal: the fewest open requests"


@pytest.mark.parametrize("seed", [1, 2])
def test_documents_of_topics_are_computed_less_often_than_under_cache_aware(seed: int) -> None:
    cluster = Cluster()
    requests = list(arrivals(TOPICAL, cluster.rate(TOPICAL, 2.0), 900, seed))
    ours, theirs = (simulate(cluster, TOPICAL, requests, policy, 200) for policy in (Documents, CacheAware))
    assert ours.share_anew <= 0.6 * theirs.share_anew
    assert ours.imbalance <= 1.5
    assert ours.wait(0.99) < theirs.wait(0.99)
    again = simulate(cluster, TOPICAL, requests, Documents, 200)
    assert (again.anew, again.work) == (ours.anew, ours.work)


def test_independent_documents_gain_too_and_load_stays_even() -> None:
    cluster, traffic = Cluster(), Traffic()
    requests = list(arrivals(traffic, cluster.rate(traffic, 2.0), 900, 1))
    ours, theirs = (simulate(cluster, traffic, requests, policy, 200) for policy in (Documents, CacheAware))
    assert ours.share_anew <= 0.85 * theirs.share_anew and ours.imbalance <= 1.5


def test_the_command_writes_its_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "route.json"
    args = ["--skews=1.0", "--topics=8", "--slots=300000", "--requests=40", "--seeds=1", f"--json={path}"]
    monkeypatch.setattr(sys, "argv", ["bench_route", *args])
    bench_route.main()
    (cell,) = json.loads(path.read_text())["cells"]
    assert set(cell["policies"]) == {"documents", "round-robin", "cache_aware"}
    assert cell["traffic"]["topics"] == 8 and cell["ratio"] > 0
