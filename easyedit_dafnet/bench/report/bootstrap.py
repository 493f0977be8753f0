"""Confidence intervals for means, between 0 and 1, over edits that come in streams.

A bootstrap alone says ± 0 where all edits score alike, be they two. So each resample leaves room
for edits unlike those: of n edits, shares (u, v, w) ~ Dirichlet(1, 1, n) score 0, score 1, and
score as the resample. For one stream of edits that are all right or all wrong this is the Bayesian
interval from a uniform prior, Beta(1 + right, 1 + wrong), and for some of each close to it; its
ends are within 0.07 of Wilson's for 2 edits, 0.025 for 20. For many edits it is the bootstrap's.
"""

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
    """A mean and its interval.

    Attributes:
        mean: between 0 and 1.
        low, high: ends of the interval, which has the mean in it.
        edits: how many it is over; of a score, of that of its parts with the fewest.
    """

    mean: float
    low: float
    high: float
    edits: int

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


@lru_cache(maxsize=256)
def unseen(edits: int, number: int) -> tuple[Numbers, Numbers]:
    """Shares, [RESAMPLES] each, of edits unlike those seen: that score 0, and that score 1.

    Args:
        edits: how many were seen, at least one.
        number: tells the draws of one aspect from those of another.
    """
    rng = np.random.default_rng([SEED, edits, number])
    shares = rng.dirichlet([1, 1, edits], RESAMPLES)
    return shares[:, 0], shares[:, 1]


def harmonic_mean(values: Sequence[Numbers]) -> Numbers:
    """Elementwise over arrays of one shape; 0 where one is 0, NaN where one is NaN."""
    stacked = np.stack(values)
    with np.errstate(divide="ignore"):
        return len(values) / (1 / stacked).sum(0)


def estimate(mean: float, resamples: Numbers, edits: int) -> Estimate | None:
    if np.isnan(mean):
        return None
    tail = 50 * (1 - LEVEL)
    low, high = np.nanpercentile(resamples, [tail, 100 - tail])
    return Estimate(mean, min(mean, float(low)), max(mean, float(high)), edits)


def estimates(
    streams: Mapping[str, Sequence[Numbers]], combine: Sequence[str] = ()
) -> dict[str, Estimate | None]:
    """Per aspect the mean over all edits of all streams, and `score`: the harmonic mean of the
    means of `combine`, resampled together."""
    means: dict[str, tuple[float, Numbers, int]] = {}
    for number, (aspect, values) in enumerate(streams.items()):
        mean, resamples = resampled_means(values)
        edits = int(sum(np.count_nonzero(~np.isnan(stream)) for stream in values))
        wrong, right = unseen(max(1, edits), number)
        means[aspect] = mean, (1 - wrong - right) * resamples + right, edits
    found = {aspect: estimate(*known) for aspect, known in means.items()}
    if combine:
        parts = [means[aspect] for aspect in combine]
        found["score"] = estimate(
            float(harmonic_mean([np.array(mean) for mean, _, _ in parts])),
            harmonic_mean([resamples for _, resamples, _ in parts]),
            min(edits for _, _, edits in parts),
        )
    return found
