"""Confidence intervals for means over edits that come in streams."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from .results import Numbers

RESAMPLES = 2000
LEVEL = 0.95
SEED = 0


@dataclass(frozen=True)
class Estimate:
    """A mean and its percentile interval."""

    mean: float
    low: float
    high: float

    @property
    def half(self) -> float:
        return (self.high - self.low) / 2


@lru_cache(maxsize=64)
def resampled_counts(sizes: tuple[int, ...]) -> tuple[Numbers, ...]:
    """How often each edit of each stream is drawn, [RESAMPLES, size] a stream.

    Streams are drawn with replacement, then the edits of each drawn stream. The same streams give
    the same draws, so methods are compared on the same resamples.
    """
    rng = np.random.default_rng(SEED)
    streams = rng.multinomial(len(sizes), [1 / len(sizes)] * len(sizes), RESAMPLES)
    return tuple(
        rng.multinomial(streams[:, i] * size, np.full(size, 1 / size)).astype(float)
        for i, size in enumerate(sizes)
    )


def resampled_means(streams: Sequence[Numbers]) -> tuple[float, Numbers]:
    """The mean over all edits, and that of each resample, [RESAMPLES]; NaN are left out."""
    values = np.concatenate(streams)
    if np.isnan(values).all():
        return np.nan, np.full(RESAMPLES, np.nan)
    sums = np.zeros(RESAMPLES)
    counts = np.zeros(RESAMPLES)
    for drawn, stream in zip(
        resampled_counts(tuple(len(s) for s in streams)), streams, strict=True
    ):
        known = ~np.isnan(stream)
        sums += drawn @ np.where(known, stream, 0.0)
        counts += drawn @ known.astype(float)
    with np.errstate(invalid="ignore"):  # a resample may hold no edit with such a probe
        return float(np.nanmean(values)), sums / counts


def harmonic_mean(values: Sequence[Numbers]) -> Numbers:
    """Elementwise over arrays of one shape; 0 where one is 0, NaN where one is NaN."""
    stacked = np.stack(values)
    with np.errstate(divide="ignore"):
        return len(values) / (1 / stacked).sum(0)


def estimate(mean: float, resamples: Numbers) -> Estimate | None:
    if np.isnan(mean):
        return None
    tail = 50 * (1 - LEVEL)
    low, high = np.nanpercentile(resamples, [tail, 100 - tail])
    return Estimate(mean, float(low), float(high))


def estimates(
    streams: Mapping[str, Sequence[Numbers]], combine: Sequence[str] = ()
) -> dict[str, Estimate | None]:
    """Per aspect the mean over all edits of all streams, and `score`: the harmonic mean of the
    means of `combine`, resampled together."""
    means = {aspect: resampled_means(values) for aspect, values in streams.items()}
    found = {aspect: estimate(*pair) for aspect, pair in means.items()}
    if combine:
        whole = harmonic_mean([np.array(means[aspect][0]) for aspect in combine])
        found["score"] = estimate(
            float(whole), harmonic_mean([means[aspect][1] for aspect in combine])
        )
    return found
