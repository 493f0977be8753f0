"""Plots as SVG elements. Colours and line styles come from templates/plots.css.

A method has the same colour, marker and dashes in every plot, and no two of up to 35 share all.
Text goes in as an element's text, so that it is escaped.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from xml.etree import ElementTree
from xml.etree.ElementTree import Element, SubElement

import numpy as np

from .bootstrap import Estimate
from .results import Numbers

HUES, SHAPES, DASHES = 7, 6, 5
WIDTH, HEIGHT = 480, 400
FONT = 12.5

CROSS = (
    *((0.4, -1.2), (0.4, -0.4), (1.2, -0.4), (1.2, 0.4), (0.4, 0.4), (0.4, 1.2)),
    *((-0.4, 1.2), (-0.4, 0.4), (-1.2, 0.4), (-1.2, -0.4), (-0.4, -0.4), (-0.4, -1.2)),
)

Box = tuple[float, float, float, float]  # left, top, right, bottom


@dataclass(frozen=True)
class Style:
    """How a method is drawn: the number of its label among all of the report."""

    number: int

    @property
    def classes(self) -> str:
        return f"hue{self.number % HUES} dash{self.number % DASHES}"

    def marker(self, x: float, y: float, r: float = 5) -> str:
        """A path: circle, square, triangle, diamond, triangle downwards or cross."""
        shape = self.number % SHAPES
        if shape == 0:
            return f"M{x - r:.1f} {y:.1f}a{r} {r} 0 1 0 {2 * r} 0a{r} {r} 0 1 0 {-2 * r} 0Z"
        points = (
            (),
            ((-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9)),
            ((0, -1.15), (1.1, 0.85), (-1.1, 0.85)),
            ((0, -1.3), (1.3, 0), (0, 1.3), (-1.3, 0)),
            ((0, 1.15), (1.1, -0.85), (-1.1, -0.85)),
            CROSS,
        )[shape]
        return "M" + "L".join(f"{x + dx * r:.1f} {y + dy * r:.1f}" for dx, dy in points) + "Z"


def text_width(text: str) -> float:
    """About, in a sans-serif font."""
    return FONT * sum(0.7 if letter.isupper() or letter in "mw" else 0.56 for letter in text)


def drawing(width: float, height: float, title: str) -> Element:
    return Element(
        "svg",
        {
            "class": "plot",
            "viewBox": f"0 0 {width:g} {height:g}",
            "role": "group",
            "aria-label": title,
            "font-size": f"{FONT:g}",
        },
    )


def add(parent: Element, tag: str, text: str | None = None, **attributes: object) -> Element:
    """x1=3.14159 → x1="3.1", class_="a" → class="a", stroke_width=2 → stroke-width="2"."""
    element = SubElement(parent, tag)
    for name, value in attributes.items():
        shown = f"{value:.1f}".removesuffix(".0") if isinstance(value, float) else str(value)
        element.set(name.rstrip("_").replace("_", "-"), shown)
    element.text = text
    return element


def mark(parent: Element, style: Style, label: str, tip: str, doubtful: bool) -> Element:
    """A group that stands for a method; the page shows `tip` beside it."""
    return add(
        parent,
        "g",
        class_=f"mark {style.classes}{' doubtful' if doubtful else ''}",
        data_method=label,
        data_tip=tip,
        tabindex=-1,
        role="img",
        aria_label=tip.replace("\n", ", "),
    )


def axes(
    svg: Element,
    frame: Box,
    x: Callable[[float], float],
    y: Callable[[float], float],
    x_ticks: Mapping[float, str],
    y_ticks: Mapping[float, str],
    names: tuple[str, str],
    title: str,
) -> None:
    left, top, right, bottom = frame
    grid = add(svg, "g", class_="grid", aria_hidden="true")
    for value, text in x_ticks.items():
        add(grid, "line", x1=x(value), x2=x(value), y1=top, y2=bottom)
        add(grid, "text", text, x=x(value), y=bottom + 17, text_anchor="middle")
    for value, text in y_ticks.items():
        add(grid, "line", x1=left, x2=right, y1=y(value), y2=y(value))
        add(grid, "text", text, x=left - 7, y=y(value) + 4, text_anchor="end")
    add(
        grid,
        "text",
        names[0],
        x=(left + right) / 2,
        y=bottom + 36,
        text_anchor="middle",
        class_="name",
    )
    add(grid, "text", names[1], x=left - 30, y=top - 11, text_anchor="start", class_="name")
    add(grid, "text", title, x=right, y=top - 11, text_anchor="end")


FIFTHS = {i / 5: f"{i / 5:g}" for i in range(6)}


@dataclass(frozen=True)
class Point:
    label: str
    style: Style
    x: Estimate
    y: Estimate
    tip: str
    doubtful: bool


def scatter(points: Sequence[Point], title: str, names: tuple[str, str]) -> Element:
    """Points in the unit square with whiskers and their labels beside them."""
    svg = drawing(WIDTH, HEIGHT, title)
    frame = (40.0, 28.0, WIDTH - 14.0, HEIGHT - 46.0)
    left, top, right, bottom = frame

    def x(value: float) -> float:
        return left + value * (right - left)

    def y(value: float) -> float:
        return bottom - value * (bottom - top)

    axes(svg, frame, x, y, FIFTHS, FIFTHS, names, title)
    places = [(x(p.x.mean), y(p.y.mean)) for p in points]
    whiskers = add(svg, "g", class_="whiskers", aria_hidden="true")
    for point, (px, py) in zip(points, places, strict=True):
        lines = add(whiskers, "g", class_=point.style.classes, data_method=point.label)
        add(lines, "line", x1=x(point.x.low), x2=x(point.x.high), y1=py, y2=py)
        add(lines, "line", x1=px, x2=px, y1=y(point.y.low), y2=y(point.y.high))
    names_shown = [f"{p.label}{'†' if p.doubtful else ''}" for p in points]
    bounds = (2.0, top - 6, WIDTH - 2.0, bottom + 4)
    for point, name, (px, py), box in zip(
        points, names_shown, places, labels_beside(places, names_shown, bounds), strict=True
    ):
        group = mark(svg, point.style, point.label, point.tip, point.doubtful)
        near_x = min(max(px, box[0]), box[2])
        near_y = min(max(py, box[1] + 3), box[3] - 3)
        if math.dist((px, py), (near_x, near_y)) > 11:
            add(group, "line", x1=px, y1=py, x2=near_x, y2=near_y, class_="leader")
        add(group, "path", d=point.style.marker(px, py), class_="marker")
        add(group, "text", name, x=box[0], y=box[3] - 3.5)
    return svg


def labels_beside(
    places: Sequence[tuple[float, float]], names: Sequence[str], bounds: Box
) -> list[Box]:
    """A box for each name near its place, clear of all markers and of the names placed before."""
    taken: list[Box] = [(px - 6, py - 6, px + 6, py + 6) for px, py in places]
    found: dict[int, Box] = {}
    # From the sides inwards: those in the middle of a cluster find less room, and may go further.
    order = sorted(range(len(places)), key=lambda i: -places[i][0])
    for i in order:
        px, py = places[i]
        width, height = text_width(names[i]), FONT + 2
        best: tuple[float, Box] | None = None
        for far, turn in product((9, 16, 26, 38, 52, 70, 90, 115, 145), range(24)):
            angle = turn * math.pi / 12
            dx, dy = math.cos(angle), math.sin(angle)
            cx = px + dx * (far + width / 2)
            cy = py + dy * (far + height / 2)
            box = (cx - width / 2, cy - height / 2, cx + width / 2, cy + height / 2)
            outside = box[0] < bounds[0] or box[1] < bounds[1]
            outside |= box[2] > bounds[2] or box[3] > bounds[3]
            if outside:
                continue
            cost = 40 * sum(overlap(box, other) for other in taken) + far + 6 * abs(dy)
            if best is None or cost < best[0]:
                best = cost, box
        box = best[1] if best else (px, py, px + width, py + height)
        taken.append(box)
        found[i] = box
    return [found[i] for i in range(len(places))]


def overlap(a: Box, b: Box) -> float:
    """Shared area, in pixels."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    return width * height if width > 0 and height > 0 else 0.0


@dataclass(frozen=True)
class Curve:
    """x: places in the stream. values: between 0 and 1, or NaN. spans: what each is a mean over."""

    label: str
    style: Style
    x: Numbers
    values: Numbers
    spans: Sequence[str]
    doubtful: bool


def retention_curves(curves: Sequence[Curve], num_edits: int, title: str, name: str) -> Element:
    """Curves over the stream, the first edit on the left, with their labels at the right."""
    svg = drawing(WIDTH, HEIGHT, title)
    names = [f"{c.label}{'†' if c.doubtful else ''}" for c in curves]
    longest = max(map(text_width, names))
    frame = (40.0, 28.0, WIDTH - min(longest, 170) - 26, HEIGHT - 46.0)
    left, top, right, bottom = frame

    def x(edit: float) -> float:
        return left + (edit - 0.5) / num_edits * (right - left)

    def y(value: float) -> float:
        return bottom - value * (bottom - top)

    ticks = {float(edit): f"{edit:,}" for edit in round_edits(num_edits)}
    axes(svg, frame, x, y, ticks, FIFTHS, (f"edit, of {num_edits:,} in a row", name), title)
    shown = [
        (
            curve,
            label,
            [
                (x(e), y(v), s)
                for e, v, s in zip(curve.x, curve.values, curve.spans, strict=True)
                if v == v
            ],
        )
        for curve, label in zip(curves, names, strict=True)
    ]
    shown = [entry for entry in shown if entry[2]]
    ends = [points[-1][1] for _, _, points in shown]
    for (curve, label, points), place in zip(
        shown, spread(ends, FONT + 1.5, top, bottom), strict=True
    ):
        known = curve.values[~np.isnan(curve.values)]
        tip = f"{curve.label}\nfirst edits {known[0]:.3f}\nlast edits {known[-1]:.3f}"
        group = mark(svg, curve.style, curve.label, tip, curve.doubtful)
        group.set("data-x", " ".join(f"{px:.1f}" for px, _, _ in points))
        group.set(
            "data-values",
            "|".join(f"{s}: {v:.3f}" for (_, _, s), v in zip(points, known, strict=True)),
        )
        line = " ".join(f"{px:.1f},{py:.1f}" for px, py, _ in points)
        add(group, "polyline", points=line, class_="hit")
        add(group, "polyline", points=line, class_="curve")
        step = max(1, len(points) // 4)
        for px, py, _ in points[step // 2 :: step]:
            add(group, "path", d=curve.style.marker(px, py, 3.5), class_="marker")
        add(
            group,
            "line",
            x1=points[-1][0],
            y1=points[-1][1],
            x2=right + 9,
            y2=place,
            class_="leader",
        )
        add(group, "text", label, x=right + 12, y=place + 4)
    return svg


def round_edits(num_edits: int) -> list[int]:
    """Round numbers up to the last, and the first where there is room."""
    step = next(s for s in rounds() if num_edits / s <= 5)
    first = [1] if step > num_edits / 8 else []
    return [*first, *(e for e in range(step, num_edits + 1, step) if e > 1)]


def rounds() -> list[int]:
    return [m * 10**power for power in range(8) for m in (1, 2, 5)]


def spread(wanted: Sequence[float], apart: float, top: float, bottom: float) -> list[float]:
    """Places near those wanted, at least `apart`, in the same order, between top and bottom."""
    order = sorted(range(len(wanted)), key=lambda i: wanted[i])
    apart = min(apart, (bottom - top) / max(1, len(wanted) - 1)) if len(wanted) > 1 else apart
    places = [0.0] * len(wanted)
    last = -math.inf
    for i in order:  # push down ...
        last = places[i] = max(wanted[i], last + apart, top)
    last = math.inf
    for i in reversed(order):  # ... and what then is too low, up again
        last = places[i] = min(places[i], last - apart, bottom)
    return places


@dataclass(frozen=True)
class Amount:
    label: str
    style: Style
    value: float
    text: str
    doubtful: bool


def amounts(values: Sequence[Amount], title: str, tick: Callable[[float], str]) -> Element:
    """One line a method on a logarithmic axis, least first; zero has no place on it."""
    values = sorted(values, key=lambda v: v.value)
    line = 21.0
    names = [f"{v.label}{'†' if v.doubtful else ''}" for v in values]
    left, top = min(max(map(text_width, names)), 180) + 12, 24.0
    right, bottom = WIDTH - 76.0, top + line * len(values)
    svg = drawing(WIDTH, bottom + 8, title)
    known = [v.value for v in values if v.value > 0] or [1.0]
    low = math.floor(math.log10(min(known)) - 0.2)
    high = max(low + 1, math.ceil(math.log10(max(known))))

    def x(value: float) -> float:
        return left + (math.log10(value) - low) / (high - low) * (right - left)

    grid = add(svg, "g", class_="grid", aria_hidden="true")
    step = max(1, math.ceil((high - low) / 5))
    for power in range(low, high + 1, step):
        place = x(10.0**power)
        add(grid, "line", x1=place, x2=place, y1=top, y2=bottom)
        add(grid, "text", tick(10.0**power), x=place, y=top - 8, text_anchor="middle")
    for i, (value, name) in enumerate(zip(values, names, strict=True)):
        middle = top + line * (i + 0.5)
        group = mark(svg, value.style, value.label, f"{value.label}\n{value.text}", value.doubtful)
        add(group, "text", name, x=left - 8, y=middle + 4, text_anchor="end")
        end = x(value.value) if value.value > 0 else left
        if value.value > 0:
            add(group, "line", x1=left, x2=end, y1=middle, y2=middle, class_="bar")
            add(group, "path", d=value.style.marker(end, middle, 4.5), class_="marker")
        add(group, "text", value.text, x=end + 10, y=middle + 4, class_="value")
    return svg


def standalone(svg: Element, css: str) -> str:
    """A file of its own, on its own background: an SVG in a README cannot see the page's."""
    width, height = (float(v) for v in svg.get("viewBox", "").split()[2:])
    whole = Element(
        "svg",
        {
            "xmlns": "http://www.w3.org/2000/svg",
            "viewBox": svg.get("viewBox", ""),
            "width": f"{width * 1.4:g}",
            "height": f"{height * 1.4:g}",
            "font-family": "system-ui, -apple-system, Segoe UI, Roboto, sans-serif",
            "font-size": f"{FONT:g}",
            "role": "img",
        },
    )
    add(whole, "title", svg.get("aria-label"))
    add(whole, "style", css)
    add(whole, "rect", width="100%", height="100%", rx=6, class_="paper")
    for child in svg:
        whole.append(child)
    for group in whole.iter("g"):
        tip = group.attrib.pop("data-tip", None)
        for name in ("data-method", "tabindex", "aria-label", "role"):
            group.attrib.pop(name, None)
        if tip:
            title = Element("title")
            title.text = tip
            group.insert(0, title)
    return to_text(whole) + "\n"


def to_text(element: Element) -> str:
    return ElementTree.tostring(element, encoding="unicode")
