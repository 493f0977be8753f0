"""The report of a data set: its numbers, and the page as a person sees it."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element

import numpy as np
import pytest

from easyedit_dafnet.dafset.analyze import (
    analyze,
    coverage,
    kind_of,
    summarise,
    summary_of,
)
from easyedit_dafnet.dafset.dataset import DataSetError
from easyedit_dafnet.dafset.plots import (
    LONGEST,
    Bar,
    Histogram,
    LinearScale,
    LogScale,
    Spread,
    histograms,
    short,
    shortened,
    stacked_bars,
    text_width,
)
from tests.dafset.datasets import record, records, write_candidates, write_dataset

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
NASTY = "<script>document.title = 'taken over'</script>"
LAPTOP, PHONE = (1280, 800), (400, 800)


# -- Numbers ---------------------------------------------------------------------------------------


def test_a_summary_of_records() -> None:
    summary = summarise(records()["long_tail"])
    assert (summary.records, summary.subjects, summary.relations) == (3, 3, 3)
    assert summary.counterfactual == 0
    assert summary.median("frequency") == "0"
    assert summary.median("degree") == "2"
    assert summary.median("log_likelihood") == "−15.50"
    assert summary.modified == "2026-10-17"  # of the two that are known
    assert summarise(records()["popular"]).median("log_likelihood") == "–"


def test_a_summary_of_candidates(tmp_path: Path) -> None:
    pytest.importorskip("duckdb")
    write_candidates(tmp_path)
    summary = summary_of(tmp_path / "select" / "candidates.parquet")
    assert (summary.records, summary.relations) == (120, 1)
    assert summary.median("degree") == "60"
    assert summary.median("frequency") == "15"
    assert len(summary.spreads["views"].values) == 9


def test_coverage_counts_records_that_have_any() -> None:
    found = records()["robust"]
    found[0]["portability"]["inverse"] = []
    assert coverage(found) == {
        "one_hop": 1.0,
        "subject_alias": 0.5,
        "inverse": 0.0,
        "prefix": 1.0,
        "opposite": 0.5,
    }


@pytest.mark.parametrize(
    ("relation", "kind"),
    [("P36", "place"), ("P17", "place, organisation or thing"), ("P0", "other"), ("x", "other")],
)
def test_what_a_subject_can_be(relation: str, kind: str) -> None:
    assert kind_of({**record("recent", 0, "Ada", "Ber"), "relation": relation}) == kind


def test_the_median_counts_each_value() -> None:
    assert Spread(np.array([1, 5, 9]), np.array([1, 1, 10])).median == 9
    assert Spread.of([3, 1, 2, 4]).median == 2
    assert Spread.of([]).median is None


def test_powers_of_ten_begin_slots() -> None:
    scale = LogScale(1500)
    assert scale.place([0, 1, 10, 1000, 9999]).astype(int).tolist() == [0, 2, 6, 14, 17]
    assert scale.slots == 18
    assert scale.ticks == {0.5: "0", 2: "1", 6: "10", 10: "100", 14: "1k", 18: "10k"}


def test_a_linear_scale_ends_with_round_numbers() -> None:
    scale = LinearScale(-9.3, -7.1)
    assert next(iter(scale.ticks.values())) == "−9.5"
    assert list(scale.ticks.values())[-1] == "−7"
    assert max(scale.ticks) == scale.slots
    assert 0 <= scale.place(-9.3) < scale.place(-7.1) < scale.slots


def test_equal_values_have_a_scale() -> None:
    assert 0 <= LinearScale(-8, -8).place(-8) < 24
    assert LogScale(0).slots == 6


def test_short_numbers() -> None:
    assert [short(10**power) for power in (0, 2, 4, 6, 9)] == ["1", "100", "10k", "1M", "1G"]


# -- Figures ---------------------------------------------------------------------------------------


def of_class(svg: Element, name: str) -> list[Element]:
    return [e for e in svg.iter() if name in e.get("class", "").split()]


def test_bars_of_a_histogram_are_as_high_as_their_shares() -> None:
    row = Histogram("rare", "hue2", Spread.of([0, 0, 0, 0, 1, 1, 100]), "0", threshold=10)
    svg = histograms([row], LogScale(100), "Views", behind=Spread.of([0, 1]))
    heights = [float(bar.get("height", "")) for bar in of_class(svg, "fill")]
    assert heights == pytest.approx([46, 23, 11.5], abs=0.1)
    (line,) = of_class(svg, "threshold")
    tens = [e.get("x") for e in svg.iter("text") if e.text == "10"]
    assert [line.get("x1")] == tens
    assert len(of_class(svg, "outline")) == 1
    labels = [e.get("aria-label") for e in svg.iter() if e.get("role") == "img"]
    assert labels == ["Views, rare: 7 records, median 0"]


def test_stacked_bars_add_up() -> None:
    bars = [Bar("a", [("x", "hue0", 30), ("y", "hue1", 10)]), Bar("b", [("x", "hue0", 0)])]
    svg = stacked_bars(bars, "Relations")
    first, second = of_class(svg, "fill")
    assert float(first.get("width", "")) == pytest.approx(3 * float(second.get("width", "")), 0.01)
    end = float(first.get("x", "")) + float(first.get("width", ""))
    assert float(second.get("x", "")) == pytest.approx(end, abs=0.1)
    labels = [e.get("aria-label") for e in svg.iter() if e.get("role") == "img"]
    assert labels[0] == "a: 40 records, x 30, y 10"


def test_long_names_are_cut() -> None:
    name = "located in the administrative territorial entity"
    assert shortened("place of birth") == "place of birth"
    assert shortened(name).endswith("…")
    assert text_width(shortened(name)) <= LONGEST


# -- The page --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report whose records hold HTML; its relations have several lengths."""
    pytest.importorskip("duckdb")

    def change(found: dict[str, list[dict[str, Any]]]) -> None:
        found["recent"][0]["ground_truth"] = NASTY
        found["recent"][0]["relation_name"] = NASTY

    folder = write_dataset(tmp_path_factory.mktemp("sets") / "dafset", change)
    write_candidates(folder)
    return analyze(folder)


def test_the_page_needs_nothing_else(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    text = re.sub('<a href="https://[^"]*">', "", text)  # to the sources, for who follows it
    for reference in ("http:", "https:", "src=", "url(", "@import", "<script"):
        assert reference not in text


def few(found: dict[str, list[Any]]) -> None:
    for name in ("robust", "long_tail"):
        found[name].clear()


def none(found: dict[str, list[Any]]) -> None:
    for listed in found.values():
        listed.clear()


def test_a_data_set_without_candidates_and_with_little_in_it(tmp_path: Path) -> None:
    write_dataset(tmp_path, few)
    text = analyze(tmp_path).read_text(encoding="utf-8")
    assert "to choose from</th>" not in text
    assert "Log-likelihood of the true answer" not in text
    assert "Views of the subject" in text


def test_an_empty_data_set_has_a_page(tmp_path: Path) -> None:
    write_dataset(tmp_path, none)
    assert "0 facts to edit" in analyze(tmp_path).read_text(encoding="utf-8")


def test_a_damaged_data_set_has_none(tmp_path: Path) -> None:
    write_dataset(tmp_path, lambda found: found["recent"][0].pop("stats"))
    with pytest.raises(DataSetError, match=r"recent\.json is damaged"):
        analyze(tmp_path)


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    if not (CHROMIUM and DRIVER):
        pytest.skip("chromium and chromedriver are not installed")
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for argument in ("headless=new", "no-sandbox", "disable-dev-shm-usage", "disable-gpu"):
        options.add_argument(f"--{argument}")
    driver = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


Open = Callable[..., Any]


@pytest.fixture
def open_page(chromium: Any, page: Path) -> Open:
    def opened(size: tuple[int, int] = LAPTOP, scheme: str = "light") -> Any:
        screen = {"width": size[0], "height": size[1], "deviceScaleFactor": 1}
        chromium.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride", {**screen, "mobile": size == PHONE}
        )
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        chromium.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        chromium.get(page.as_uri())
        return chromium

    return opened


def texts(driver: Any, selector: str) -> list[str]:
    script = "return [...document.querySelectorAll(arguments[0])].map(e => e.innerText)"
    return driver.execute_script(script, selector)


def test_the_table_has_a_line_for_each_property(open_page: Open) -> None:
    driver = open_page()
    assert texts(driver, "#summary tbody th") == [
        "recent",
        "popular",
        "long tail",
        "robust",
        "to choose from",
    ]
    assert texts(driver, "#summary tbody td:nth-child(2)") == ["3", "4", "3", "2", "120"]
    assert texts(driver, "#summary tbody td:nth-child(6)")[1] == "3,000"
    assert texts(driver, "#coverage tbody td:nth-child(2)") == ["–", "100 %", "100 %", "100 %"]
    assert len(driver.find_elements("css selector", "#distributions svg")) == 4
    assert texts(driver, "#domains h3") == ["Relations", "What the subjects are"]
    assert driver.get_log("browser") == []


def test_records_are_text(open_page: Open) -> None:
    driver = open_page()
    assert driver.title.startswith("DAFSet: 12 facts")
    assert len(texts(driver, "#examples .edit")) == 12
    shown = driver.execute_script("return document.getElementById('examples').textContent")
    assert NASTY in shown


@pytest.mark.parametrize("size", [PHONE, LAPTOP])
def test_only_the_boxes_of_tables_scroll_sideways(open_page: Open, size: tuple[int, int]) -> None:
    driver = open_page(size)
    for details in driver.find_elements("css selector", "details"):
        driver.execute_script("arguments[0].open = true", details)
    width = "return document.documentElement.{}Width"
    assert driver.execute_script(width.format("scroll")) == driver.execute_script(
        width.format("client")
    )
    box = "const b = document.querySelector('#summary .scroll'); return "
    assert driver.execute_script(box + "b.scrollWidth > b.clientWidth") == (size == PHONE)


@pytest.mark.parametrize("size", [PHONE, LAPTOP])
def test_all_words_of_the_plots_are_inside_of_them(open_page: Open, size: tuple[int, int]) -> None:
    driver = open_page(size)
    outside = driver.execute_script(
        """
        return [...document.querySelectorAll("svg.plot")].flatMap(plot => {
          const box = plot.getBoundingClientRect();
          return [...plot.querySelectorAll("text")].filter(text => {
            const own = text.getBoundingClientRect();
            return own.left < box.left - 1 || own.right > box.right + 14;
          }).map(text => text.textContent);
        });
        """
    )
    assert outside == []


def test_light_and_dark(open_page: Open) -> None:
    style = "return getComputedStyle(document.{}).{}"

    def brightness(driver: Any) -> int:
        colour = driver.execute_script(style.format("body", "backgroundColor"))
        return sum(int(c) for c in colour[4:-1].split(","))

    def hue(driver: Any) -> str:
        return driver.execute_script(style.format("querySelector('rect.fill')", "fill"))

    driver = open_page()
    light, blue = brightness(driver), hue(driver)
    driver = open_page(scheme="dark")
    assert brightness(driver) < 150 < 600 < light
    assert hue(driver) not in ("rgb(0, 0, 0)", blue)
