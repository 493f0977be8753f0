from __future__ import annotations

import math

import pytest

from easyedit_dafnet.bench.report.bootstrap import Estimate
from easyedit_dafnet.bench.report.wording import (
    FEW,
    bytes_text,
    duration_text,
    hours_text,
    number_text,
    score_text,
)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "–"),
        (0, "0 s"),
        (6.4e-7, "0.640 µs"),
        (0.0032, "3.20 ms"),
        (0.32, "0.320 s"),
        (119.6, "120 s"),
        (600, "10 min"),
        (11520, "3.2 h"),
    ],
)
def test_durations(seconds: float | None, text: str) -> None:
    assert duration_text(seconds) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (None, "–"),
        (0, "0 B"),
        (999, "999 B"),
        (1500, "1.50 KB"),
        (17_700_000, "17.7 MB"),
        (999_700_000, "1.00 GB"),
        (3.32e9, "3.32 GB"),
    ],
)
def test_bytes(count: float | None, text: str) -> None:
    assert bytes_text(count) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0123, "0.0123"), (12.34, "12.3"), (4561.2, "4,561"), (1e300, "1.00e+300")],
)
def test_numbers(value: float, text: str) -> None:
    assert number_text(value) == text


def test_numbers_that_are_none() -> None:
    assert number_text(math.inf) == "∞"
    assert number_text(math.nan) == "not a number"


def test_scores_and_hours() -> None:
    assert score_text(Estimate(0.914, 0.86, 0.94, FEW)) == "0.91 ± 0.04"
    assert score_text(Estimate(1.0, 0.676, 1.0, 8)) == "1.00 (0.68–1.00, n=8)"
    assert score_text(Estimate(1.0, 0.676, 1.0, 8), beside=8) == "1.00 (0.68–1.00)"
    assert score_text(None) == "–"
    assert [hours_text(h) for h in (None, 0.001, 0.164, 3.21, 47.3)] == [
        "time unknown",
        "about 0.01 h",
        "about 0.16 h",
        "about 3.2 h",
        "about 47 h",
    ]
