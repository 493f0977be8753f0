from __future__ import annotations

import math

import numpy as np
import pytest

from easyedit_dafnet.bench.report import bootstrap
from easyedit_dafnet.bench.report.bootstrap import estimates, harmonic_mean, resampled_counts
from easyedit_dafnet.bench.report.results import Numbers


def zeros_and_ones(count: int, ones: int) -> Numbers:
    return np.array([1.0] * ones + [0.0] * (count - ones))


def wilson(count: int, ones: int) -> tuple[float, float]:
    z, share = 1.96, ones / count
    middle = (share + z * z / (2 * count)) / (1 + z * z / count)
    spread = math.sqrt(share * (1 - share) / count + (z / (2 * count)) ** 2)
    half = z / (1 + z * z / count) * spread
    return middle - half, middle + half


# How far the interval's ends may be from Wilson's, of which it is a relative: see the module.
@pytest.mark.parametrize(("count", "apart"), [(2, 0.07), (5, 0.055), (8, 0.045), (20, 0.025)])
def test_few_edits_have_about_wilsons_interval(count: int, apart: float) -> None:
    for ones in range(count + 1):
        value = estimates({"a": [zeros_and_ones(count, ones)]})["a"]
        assert value is not None and value.edits == count
        assert (value.low, value.high) == pytest.approx(wilson(count, ones), abs=apart)
        assert value.low <= value.mean <= value.high


def test_edits_that_score_alike_tell_the_more_the_more_they_are() -> None:
    """Of two and of five, nothing was known to be exact; of 1,000, nearly."""
    halves = []
    for count in (2, 5, 20, 100, 1000):
        for level in (0.0, 0.25, 1.0):
            value = estimates({"a": [np.full(count, level)]})["a"]
            assert value is not None and value.mean == level
            halves.append(value.half)
    assert halves[:3] == pytest.approx([0.35, 0.36, 0.35], abs=0.05)
    assert max(halves[-3:]) < 0.003
    assert halves[::3] == sorted(halves[::3], reverse=True)


def test_a_score_of_parts_that_are_all_right_has_an_interval() -> None:
    streams = {name: [np.ones(5)] for name in "rgl"}
    score = estimates(streams, combine=tuple("rgl"))["score"]
    assert score is not None and (score.mean, score.edits) == (1.0, 5)
    assert 0.5 < score.low < 0.8 and score.high == 1.0


@pytest.mark.parametrize("count", [100, 400])
def test_many_edits_that_vary_have_the_bootstraps_interval(
    count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    streams = {"a": [rng.uniform(0, 1, count) ** 2 for _ in range(2)]}
    ours = estimates(streams)["a"]
    nothing = np.zeros(bootstrap.RESAMPLES)
    monkeypatch.setattr(bootstrap, "unseen", lambda edits, number: (nothing, nothing))
    plain = estimates(streams)["a"]
    assert ours is not None and plain is not None
    assert ours.half == pytest.approx(plain.half, abs=0.01)
    assert (ours.low, ours.high) == pytest.approx((plain.low, plain.high), abs=0.015)


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
    # All four drawn streams may be of one kind, but for the edits that were not seen.
    assert (different.low, different.high) == pytest.approx((0.0, 1.0), abs=0.01)


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
    assert score.low < 0.2


def test_harmonic_mean_of_zero_and_of_nothing() -> None:
    parts = [np.array([0.0, 0.5, math.nan]), np.array([1.0, 0.5, 1.0])]
    np.testing.assert_allclose(harmonic_mean(parts), [0.0, 0.5, math.nan])


def test_the_same_numbers_give_the_same_interval() -> None:
    streams = {"a": [zeros_and_ones(20, 7), zeros_and_ones(20, 12)]}
    first = estimates(streams)
    resampled_counts.cache_clear()
    assert estimates(streams) == first
