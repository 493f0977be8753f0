from __future__ import annotations

import math

import numpy as np
import pytest

from easyedit_dafnet.bench.report import bootstrap
from easyedit_dafnet.bench.report.bootstrap import estimates, harmonic_mean, resampled_counts
from easyedit_dafnet.bench.report.results import Numbers


def zeros_and_ones(count: int, ones: int) -> Numbers:
    return np.array([1.0] * ones + [0.0] * (count - ones))


def test_a_constant_has_no_spread() -> None:
    value = estimates({"a": [np.full(7, 0.25), np.full(7, 0.25)]})["a"]
    assert value is not None
    assert (value.mean, value.low, value.high) == pytest.approx((0.25, 0.25, 0.25))


@pytest.mark.parametrize("count", [50, 400])
def test_one_stream_of_independent_edits_has_the_binomial_interval(count: int) -> None:
    value = estimates({"a": [zeros_and_ones(count, round(0.3 * count))]})["a"]
    assert value is not None
    assert value.mean == pytest.approx(0.3)
    assert value.half == pytest.approx(1.96 * math.sqrt(0.3 * 0.7 / count), rel=0.12)
    assert value.low < value.mean < value.high


def test_streams_that_differ_widen_the_interval() -> None:
    """Edits within a stream say little about other streams."""
    mixed = [zeros_and_ones(50, 25) for _ in range(4)]
    split = [zeros_and_ones(50, 50), zeros_and_ones(50, 0)] * 2
    alike, different = estimates({"a": mixed})["a"], estimates({"a": split})["a"]
    assert alike is not None
    assert different is not None
    assert alike.mean == different.mean == 0.5
    assert different.half > 4 * alike.half
    assert (different.low, different.high) == (0.0, 1.0)


def test_each_resample_draws_as_many_edits_as_there_are() -> None:
    drawn = resampled_counts((30, 30, 30))
    sums = np.stack([counts.sum(1) for counts in drawn])
    assert drawn[0].shape == (bootstrap.RESAMPLES, 30)
    assert (sums.sum(0) == 90).all()
    assert set(np.unique(sums)) == {0, 30, 60, 90}  # whole streams


def test_records_without_such_a_probe_are_left_out() -> None:
    nan = math.nan
    found = estimates({"a": [np.array([1.0, nan, 0.0, nan])], "b": [np.full(4, nan)]})
    assert found["a"] is not None
    assert found["a"].mean == 0.5
    assert found["b"] is None


def test_the_score_is_the_harmonic_mean_of_the_means() -> None:
    streams = {"r": [np.array([1.0, 1.0])], "g": [np.array([0.0, 1.0])], "l": [np.array([1.0, 0])]}
    score = estimates(streams, combine=("r", "g", "l"))["score"]
    assert score is not None
    assert score.mean == pytest.approx(3 / (1 / 1 + 1 / 0.5 + 1 / 0.5))
    assert score.low == 0.0


def test_harmonic_mean_of_zero_and_of_nothing() -> None:
    parts = [np.array([0.0, 0.5, math.nan]), np.array([1.0, 0.5, 1.0])]
    np.testing.assert_allclose(harmonic_mean(parts), [0.0, 0.5, math.nan])


def test_the_same_numbers_give_the_same_interval() -> None:
    streams = {"a": [zeros_and_ones(20, 7), zeros_and_ones(20, 12)]}
    first = estimates(streams)
    resampled_counts.cache_clear()
    assert estimates(streams) == first
