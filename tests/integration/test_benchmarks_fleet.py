"""The fleet's benchmark runs, on a few agents, and its figures can be true."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.integration

AGENTS = 6
CALLS = 20
INTERVAL = 1
FEW = {
    "--agents": AGENTS,
    "--processes": 2,
    "--real": 1,
    "--interval": INTERVAL,
    "--watch": 6 * INTERVAL,
    "--calls": CALLS,
    "--outage": 0,
}
PATIENCE = 270.0


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the command writes."""
    file: Path = tmp_path_factory.mktemp("fleet") / "fleet.json"
    options = ["--lockstep", *(str(word) for pair in FEW.items() for word in pair)]
    argv = [sys.executable, "-m", "benchmarks.fleet", *options, "--json", str(file)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert done.returncode == 0, done.stderr
    assert f"{AGENTS} agents" in done.stdout
    found: dict[str, Any] = json.loads(file.read_text())
    return found


def test_all_agents_listen_are_heard_and_come_back(report: dict[str, Any]) -> None:
    restart = report["restart"]
    assert report["start"]["listening"]["count"] == AGENTS
    assert report["heartbeats"]["instances"] == AGENTS
    assert restart["answering"]["count"] == restart["listeners"]["count"] == AGENTS
    assert sum(restart["listeners"]["by_second"]) == AGENTS


def test_times_are_in_order(report: dict[str, Any]) -> None:
    for reached in (report["start"]["listening"], report["restart"]["answering"]):
        assert 0 < reached["half"] <= reached["most"] <= reached["all"] < PATIENCE
    for name in ("ping", "create"):
        latency = report["calls"][name]
        assert latency["calls"] == CALLS
        assert 0 < latency["p50"] <= latency["p95"] <= latency["p99"] < 1000 * PATIENCE


def test_heartbeats_come_as_often_as_they_should(report: dict[str, Any]) -> None:
    beats = report["heartbeats"]
    assert AGENTS / INTERVAL / 4 < beats["per_second"] < AGENTS / INTERVAL * 4
    assert beats["spread"]["fullest"] < beats["spread"]["count"]
    assert beats["conductor_cpu"] > 0


def test_an_agent_has_few_connections_and_three_queues(report: dict[str, Any]) -> None:
    (real,) = report["real"]
    assert 2 <= report["size"]["connections"] <= 5
    assert 2 <= real["connections"] <= 5
    assert 3 <= report["size"]["queues"] < 4
    assert 10 < real["private"] <= real["proportional"] <= real["rss"] < 200
