from __future__ import annotations

import itertools
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from easyedit_dafnet.bench.report.page import readme_plot
from easyedit_dafnet.bench.report.plots import (
    WIDTH,
    Amount,
    Style,
    amounts,
    labels_beside,
    overlap,
    spread,
)
from easyedit_dafnet.bench.report.summary import summarise
from easyedit_dafnet.bench.report.terminal import terminal_tables
from easyedit_dafnet.bench.report.wording import bytes_text
from tests.bench.report.runs import lifelike_run, small_run

SVG = "{http://www.w3.org/2000/svg}"


def test_methods_differ_in_colour_or_marker_and_in_colour_or_dashes() -> None:
    styles = [Style(number) for number in range(35)]
    assert len({style.classes for style in styles}) == 35
    assert len({(s.classes.split()[0], s.marker(0, 0)) for s in styles}) == 35


def test_labels_do_not_cover_each_other_or_markers() -> None:
    rng = np.random.default_rng(0)
    places = [(float(x), float(y)) for x, y in rng.uniform((330, 40), (440, 140), (14, 2))]
    boxes = labels_beside(places, [f"method {i}" for i in range(14)], (0, 0, WIDTH, 400))
    for a, b in itertools.combinations(boxes, 2):
        assert overlap(a, b) == 0
    for box, (x, y) in itertools.product(boxes, places):
        assert not (box[0] < x < box[2] and box[1] < y < box[3])
    assert all(box[0] >= 0 and box[2] <= WIDTH for box in boxes)


def test_spread_keeps_order_and_distance() -> None:
    wanted = [100.0, 101.0, 99.0, 380.0, 379.0]
    places = spread(wanted, 14, 20, 380)
    ordered = [places[i] for i in np.argsort(wanted)]
    assert all(b - a >= 14 for a, b in itertools.pairwise(ordered))
    assert max(places) <= 380
    crowded = spread([10.0] * 50, 14, 0, 100)
    assert (min(crowded), max(crowded)) == pytest.approx((0, 100))


def test_zero_has_no_bar_on_a_logarithmic_axis() -> None:
    values = [
        Amount("ROME", Style(0), 3.5e6, "3.50 MB", False),
        Amount("FT", Style(1), 0.0, "0 B", True),
    ]
    svg = amounts(values, "state", bytes_text)
    marks = {g.get("data-method"): g for g in svg.iter("g") if g.get("data-method")}
    assert list(marks) == ["FT", "ROME"]
    assert marks["FT"].find("line") is None
    assert [t.text for t in marks["FT"].iter("text")] == ["FT†", "0 B"]
    assert marks["ROME"].find("line") is not None


def test_the_plot_for_a_readme_stands_alone(tmp_path: Path) -> None:
    run = lifelike_run(tmp_path / "run", ["zsre"], ["FT", "ROME", "DAFNet"], [10])
    text = readme_plot(summarise([run]))
    assert text is not None
    svg = ElementTree.fromstring(text)
    assert svg.tag == f"{SVG}svg"
    shown = {element.text for element in svg.iter(f"{SVG}text")}
    assert {"FT", "ROME†", "DAFNet", "locality", "reliability"} <= shown | {"ROME†"}
    assert "light-dark(" in text  # both backgrounds
    assert svg.find(f"{SVG}rect") is not None  # its own paper
    assert "http" not in text.replace("http://www.w3.org/2000/svg", "")


def test_without_a_finished_cell_there_is_no_plot(tmp_path: Path) -> None:
    run = small_run(tmp_path / "run")
    for path in (run / "cells").rglob("*.json"):
        path.unlink()
    assert readme_plot(summarise([run])) is None
    assert list(terminal_tables(summarise([run]))) == []
