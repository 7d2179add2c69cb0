"""The fleet's figures, as they are made of what was seen."""

from __future__ import annotations

import math

import pytest

from benchmarks.fleet_figures import Reached, Spread, latency, quantile, reached, spread


@pytest.mark.parametrize(("part", "value"), [(0.5, 50), (0.95, 95), (0.99, 99), (1.0, 100)])
def test_a_quantile_is_one_of_the_values(part: float, value: int) -> None:
    assert quantile(list(range(100, 0, -1)), part) == value


def test_no_values_have_no_quantile() -> None:
    assert math.isnan(quantile([], 0.5))


def test_latency_is_in_milliseconds() -> None:
    found = latency([0.010, 0.020, 0.030, 0.040], took=0.5)
    assert (found.calls, found.p50, found.p95, found.per_second) == (4, 20, 40, 8)


def test_who_never_came_counts() -> None:
    assert reached([101, 104], since=100, wanted=2) == Reached(2, 1, 4, 4)
    assert reached([101, 104], since=100, wanted=3) == Reached(2, 4, math.inf, math.inf)


def test_events_are_counted_by_second() -> None:
    assert spread([10.1, 10.9, 12.0, 9.5], since=10) == Spread(4, [3, 0, 1], 3, 3)
    assert spread([], since=10) == Spread(0, [], 0, 0)
