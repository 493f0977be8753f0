"""Numbers as people read them."""

from __future__ import annotations

import math
from collections.abc import Sequence

from .bootstrap import Estimate

NOTHING = "–"
PARTIAL = "§"
"""Behind a score that is not over all that a score is over."""
FEW = 30
"""Below so many edits an interval is shown by its ends, as it reaches further to one side of the
mean, and their number is shown."""


def score_text(value: Estimate | None, beside: int | None = None) -> str:
    """0.91 ± 0.03: mean and half the width of its interval; 1.00 (0.68–1.00, n=8): of few edits.

    beside: the number of edits that stands beside it anyway; only another one is said here.
    """
    return NOTHING if value is None else f"{value.mean:.2f} {spread_text(value, beside)}"


def spread_text(value: Estimate, beside: int | None = None) -> str:
    """± 0.03, or (0.68–1.00, n=8)."""
    if value.edits >= FEW:
        return f"± {value.half:.2f}"
    number = "" if value.edits == beside else f", n={value.edits}"
    return f"({value.low:.2f}–{value.high:.2f}{number})"


def name_of(measure: str) -> str:
    """same subject, for same_subject."""
    return measure.replace("_", " ")


def listed(measures: Sequence[str]) -> str:
    """reliability, generality and same subject."""
    *others, last = map(name_of, measures)
    return f"{', '.join(others)} and {last}" if others else last


def interval_text(value: Estimate | None) -> str:
    if value is None:
        return ""
    ends = f"{value.low:.3f} to {value.high:.3f}"
    return f"{value.mean:.3f} ({ends}, {counted(value.edits, 'edit')})"


def number_text(value: float | None) -> str:
    """Three digits or more, no powers of ten below a million: 0.0123, 12.3, 4,561."""
    if value is None:
        return NOTHING
    if not math.isfinite(value):
        return "∞" if value > 0 else "not a number"
    if value == 0:
        return "0"
    if abs(value) >= 1e6:
        return f"{value:.2e}"
    rounded = float(f"{value:.3g}")  # 0.9996 is 1.00, not 1.000
    digits = max(0, 2 - math.floor(math.log10(abs(rounded))))
    return f"{value:,.{digits}f}"


def bytes_text(count: float | None) -> str:
    """1.50 KB, 3.32 GB: powers of 1,000."""
    if count is None:
        return NOTHING
    if count < 999.5:
        return f"{count:.0f} B"
    for unit, size in (("KB", 1e3), ("MB", 1e6)):
        if count < 999.5 * size:
            return f"{number_text(count / size)} {unit}"
    return f"{number_text(count / 1e9)} GB"


def duration_text(seconds: float | None) -> str:
    """0.640 µs, 3.20 ms, 0.320 s, 12 min, 3.2 h."""
    if seconds is None:
        return NOTHING
    if 0 < seconds < 0.0995e-3:
        return f"{number_text(1e6 * seconds)} µs"
    if 0 < seconds < 0.0995:
        return f"{number_text(1000 * seconds)} ms"
    if seconds < 120:
        return f"{number_text(seconds)} s"
    return f"{seconds / 60:.0f} min" if seconds < 2 * 3600 else f"{seconds / 3600:.1f} h"


def hours_text(hours: float | None) -> str:
    if hours is None:
        return "time unknown"
    return f"about {'0.01' if hours < 0.01 else f'{hours:.2g}' if hours < 10 else f'{hours:.0f}'} h"


def counted(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}"
