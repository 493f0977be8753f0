"""Plots of a data set as SVG elements, in the style of the benchmark's report."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol
from xml.etree.ElementTree import Element

import numpy as np
from numpy.typing import NDArray

from ..bench.report.plots import add, drawing, text_width

WIDTH = 420.0
GUTTER = 106.0  #: left of the histograms, for names and medians
ROW, BARS = 62.0, 46.0  #: of one histogram: all, and its bars at most
LINE = 22.0  #: of one bar
LONGEST = 220.0  #: name of a bar
SMALLEST = 1.5  #: height of a bar that stands for anything

Numbers = NDArray[Any]


@dataclass(frozen=True)
class Spread:
    """Values in ascending order, and how many there are of each."""

    values: Numbers
    counts: Numbers

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        return cls(*np.unique(np.asarray(values), return_counts=True))

    def __len__(self) -> int:
        return int(self.counts.sum())

    @property
    def median(self) -> float | None:
        """The smallest value that half of them do not exceed; None where there are none."""
        if not len(self):
            return None
        up_to = np.cumsum(self.counts)
        return float(self.values[np.searchsorted(up_to, up_to[-1] / 2)])


class Scale(Protocol):
    """Cuts numbers into slots of the same width; ticks: what to write at which place."""

    @property
    def slots(self) -> int: ...

    @property
    def ticks(self) -> Mapping[float, str]: ...

    def place(self, values: Any) -> Numbers:
        """In slots from the left; a value lies in the slot of its integer part."""


class LogScale:
    """Four slots for each power of ten; a slot apart for zero."""

    def __init__(self, highest: float) -> None:
        powers = max(1, math.floor(math.log10(max(1.0, highest)) + 1e-9) + 1)
        self.slots = 2 + 4 * powers
        step = math.ceil(powers / 6)
        texts = {power: short(10**power) for power in range(0, powers + 1, step)}
        self.ticks = {0.5: "0", **{2.0 + 4 * power: text for power, text in texts.items()}}

    def place(self, values: Any) -> Numbers:
        values = np.asarray(values, dtype=float)
        powers = np.log10(np.maximum(values, 1)) + 1e-9  # log10(1000) comes out below 3
        return np.where(values > 0, 2 + 4 * powers, 0.5)


class LinearScale:
    """Slots between round numbers."""

    slots = 24

    def __init__(self, lowest: float, highest: float) -> None:
        width = max(highest - lowest, 1.0)
        step = next(s for s in (0.5, 1, 2, 5, 10, 20, 50, 100, 1e9) if width / s <= 6)
        self.low = math.floor(lowest / step) * step
        # Above the highest, so that it too lies in a slot.
        self.high = (math.floor(highest / step) + 1) * step
        count = round((self.high - self.low) / step)
        self.ticks = {
            self.slots * i / count: f"{self.low + i * step:g}".replace("-", "−")
            for i in range(count + 1)
        }

    def place(self, values: Any) -> Numbers:
        share = (np.asarray(values, dtype=float) - self.low) / (self.high - self.low)
        return np.asarray(share * self.slots)


def short(count: float) -> str:
    """1, 100, 10k, 1M."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if count >= size:
            return f"{count / size:g}{unit}"
    return f"{count:g}"


def shortened(name: str) -> str:
    """The name, or what there is room for of it."""
    if text_width(name) <= LONGEST:
        return name
    while text_width(name + "…") > LONGEST:
        name = name[:-1]
    return name.rstrip() + "…"


@dataclass(frozen=True)
class Histogram:
    """One row of a plot. median: as text. threshold: a line to draw, if any."""

    name: str
    hue: str
    spread: Spread
    median: str
    threshold: float | None = None


def histograms(
    rows: Sequence[Histogram], scale: Scale, title: str, behind: Spread | None = None
) -> Element:
    """Rows over one axis, each as high as its largest share; behind: an outline in each."""
    bottom = 8 + ROW * len(rows)
    svg = drawing(WIDTH, bottom + 24, title)

    def x(place: float) -> float:
        return GUTTER + place / scale.slots * (WIDTH - GUTTER - 12)

    grid = add(svg, "g", class_="grid", aria_hidden="true")
    for place, text in scale.ticks.items():
        add(grid, "line", x1=x(place), x2=x(place), y1=8.0, y2=bottom)
        add(grid, "text", text, x=x(place), y=bottom + 17, text_anchor="middle")
    outline = None if behind is None else _shares(behind, scale)
    for number, row in enumerate(rows):
        foot = 8 + ROW * (number + 1)
        add(grid, "line", x1=GUTTER, x2=WIDTH - 12, y1=foot, y2=foot)
        label = f"{title}, {row.name}: {len(row.spread):,} records, median {row.median}"
        group = add(svg, "g", class_=row.hue, role="img", aria_label=label)
        add(group, "text", row.name, x=0.0, y=foot - 24, class_="label")
        add(group, "text", f"median {row.median}", x=0.0, y=foot - 8, class_="soft", font_size=11)
        _bars(group, _shares(row.spread, scale), outline, x, foot)
        if row.threshold is not None:
            at = x(float(scale.place(row.threshold)))
            add(group, "line", x1=at, x2=at, y1=foot - ROW + 10, y2=foot, class_="threshold")
    return svg


Place = Callable[[float], float]


def _bars(group: Element, shares: Numbers, outline: Numbers | None, x: Place, foot: float) -> None:
    highest = max(shares.max(), 0 if outline is None else outline.max())
    for slot in map(int, np.flatnonzero(shares)):
        height = max(SMALLEST, float(shares[slot] / highest) * BARS)
        bar = add(group, "rect", class_="fill", y=foot - height, height=height)
        left, right = x(slot) + 0.5, x(slot + 1) - 0.5
        bar.attrib.update(x=f"{left:.1f}", width=f"{right - left:.1f}")
    if outline is not None:
        steps = _steps(outline / highest * BARS, x, foot)
        add(group, "polyline", points=steps, class_="outline")


def _shares(spread: Spread, scale: Scale) -> Numbers:
    slots = np.clip(scale.place(spread.values).astype(int), 0, scale.slots - 1)
    counts = np.bincount(slots, weights=spread.counts, minlength=scale.slots)
    return counts / max(1, counts.sum())


def _steps(heights: Numbers, x: Place, foot: float) -> str:
    points = [(x(0), foot)]
    for slot, height in enumerate(heights):
        points += [(x(slot), foot - height), (x(slot + 1), foot - height)]
    points.append((x(len(heights)), foot))
    return " ".join(f"{px:.1f},{py:.1f}" for px, py in points)


@dataclass(frozen=True)
class Bar:
    """parts: names, colours and counts, stacked from the left."""

    name: str
    parts: Sequence[tuple[str, str, int]]

    @property
    def total(self) -> int:
        return sum(count for _, _, count in self.parts)


def stacked_bars(bars: Sequence[Bar], title: str, longest: int | None = None) -> Element:
    """One line a bar. longest: the count that fills the width; else that of the longest bar."""
    longest = longest or max(bar.total for bar in bars)
    svg = drawing(WIDTH, LINE * len(bars) + 4, title)
    names = [shortened(bar.name) for bar in bars]
    left = max(map(text_width, names)) + 8
    room = WIDTH - left - text_width(f"{longest:,}") - 12
    for number, (bar, name) in enumerate(zip(bars, names, strict=True)):
        middle = LINE * (number + 0.5) + 2
        parts = [(part, hue, count) for part, hue, count in bar.parts if count]
        told = ", ".join(f"{part} {count:,}" for part, _, count in parts)
        group = add(svg, "g", role="img", aria_label=f"{bar.name}: {bar.total:,} records, {told}")
        add(group, "text", name, x=left - 8, y=middle + 4, text_anchor="end", class_="ink")
        start = left
        for _, hue, count in parts:
            width = room * count / longest
            box = add(group, "rect", x=start, y=middle - 7, width=width, height=14)
            box.set("class", f"{hue} fill")
            start += width
        add(group, "text", f"{bar.total:,}", x=start + 6, y=middle + 4, class_="soft")
    return svg
