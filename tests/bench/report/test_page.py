"""The page as a person sees it, in a headless Chromium."""

from __future__ import annotations

import json
import re
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from easyedit_dafnet.bench.report import write_report
from easyedit_dafnet.bench.report.page import EditTexts, readme_plot, to_html
from easyedit_dafnet.bench.report.summary import summarise
from tests.bench.report.runs import lifelike_run, small_run, write_json

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
NASTY = "<script>document.title = 'taken over'</script>"

LAPTOP, PHONE = (1280, 800), (380, 760)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The address of a report with two data sets; generated text and an error hold HTML."""
    run = lifelike_run(
        tmp_path_factory.mktemp("runs") / "run",
        data=["counterfact", "zsre"],
        labels=["no edit", "FT", "ROME", "MEND", "DAFNet"],
        lengths=[1, 10, 100],
    )
    texts = run / "texts" / "zsre" / "FT" / "n10-s0.jsonl"
    first, *rest = texts.read_text().splitlines()
    said = json.loads(first)
    said["prompt"]["after"] = NASTY
    said["prompt"]["asked"] = "The <b>twin</b> of Oslo is"
    texts.write_text("\n".join([json.dumps(said), *rest]))
    failed = run / "cells" / "zsre" / "MEND" / "n100-s0.json"
    body = json.loads(failed.read_text())
    body["error"]["message"] = f"in <module>\n{NASTY}"
    write_json(failed, body)
    (run / "cells" / "zsre" / "ROME" / "n100-s0.json").unlink()
    write_report([run], run / "report")
    return (run / "report" / "report.html").as_uri()


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
def open_page(chromium: Any, page: str) -> Open:
    def opened(
        hash: str = "", size: tuple[int, int] = LAPTOP, scheme: str = "light", **media: str
    ) -> Any:
        screen = {"width": size[0], "height": size[1], "deviceScaleFactor": 1}
        chromium.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride", {**screen, "mobile": size == PHONE}
        )
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        chromium.execute_cdp_cmd("Emulation.setEmulatedMedia", {**media, "features": features})
        chromium.get("about:blank")
        chromium.get(page + hash)
        forget = "localStorage.clear(); delete document.documentElement.dataset.theme"
        chromium.execute_script(forget)
        return chromium

    return opened


def shown(driver: Any, selector: str) -> list[Any]:
    script = "return [...document.querySelectorAll(arguments[0])].filter(e => e.checkVisibility())"
    return driver.execute_script(script, selector)


def texts(driver: Any, selector: str) -> list[str]:
    return driver.execute_script(
        "return arguments[0].map(e => e.innerText)", shown(driver, selector)
    )


def methods(driver: Any) -> list[str]:
    """Their names and marks, as in MEND†."""
    return ["".join(text.split("\n")) for text in texts(driver, "#results tbody th")]


def choose(driver: Any, name: str, value: str) -> None:
    selector = f"input[name={name}][value='{value}'] + span"
    driver.find_element("css selector", selector).click()


def column(driver: Any, number: int) -> list[str]:
    return texts(driver, f"#results tbody td:nth-child({number})")


def kind_column(driver: Any) -> list[float]:
    shown_texts = texts(driver, "#kinds td:nth-child(4)")
    return [float(text.split()[0]) for text in shown_texts]


def point_at(driver: Any, element: Any) -> None:
    from selenium.webdriver import ActionChains

    scroll = "arguments[0].scrollIntoView({block: 'center'});"
    # The event of the scrolling comes with the next frame, and takes the tip away.
    frame = "requestAnimationFrame(() => requestAnimationFrame(arguments[1]))"
    driver.execute_async_script(scroll + frame, element)
    ActionChains(driver).move_to_element(element).perform()


def header(driver: Any, key: str) -> Any:
    (found,) = shown(driver, f"#results th[data-key={key}]")
    return found


def test_the_table_comes_first_and_is_sorted_by_the_score(open_page: Open) -> None:
    driver = open_page()
    assert len(shown(driver, "#results table")) == 1
    titles = texts(driver, "#results thead th")
    assert titles[2:9] == [
        *("Score", "Reliability", "Generality", "Locality", "Same subject", "Leaks", "Portability"),
    ]
    assert column(driver, 2) == ["100"] * 5
    scores = [float(text.split()[0]) for text in column(driver, 3)]
    assert scores == sorted(scores, reverse=True)
    assert methods(driver)[0] == "DAFNet"
    assert "Sanity cell not passed" in driver.find_element("css selector", "ul.notes").text
    assert driver.get_log("browser") == []


def test_a_click_on_a_header_sorts_and_the_keyboard_does_too(open_page: Open) -> None:
    from selenium.webdriver.common.keys import Keys

    driver = open_page()
    before = methods(driver)
    header(driver, "locality").find_element("css selector", "button").click()
    assert header(driver, "locality").get_attribute("aria-sort") == "descending"
    assert header(driver, "score").get_attribute("aria-sort") == "none"
    assert methods(driver) != before
    assert methods(driver)[0] == "no edit"
    header(driver, "locality").find_element("css selector", "button").send_keys(Keys.ENTER)
    assert header(driver, "locality").get_attribute("aria-sort") == "ascending"
    assert methods(driver)[-1] == "no edit"


def test_of_leaks_the_fewest_come_first_and_they_are_teacher_forced(open_page: Open) -> None:
    driver = open_page()
    header(driver, "leaks").find_element("css selector", "button").click()
    assert header(driver, "leaks").get_attribute("aria-sort") == "ascending"
    leaks = [float(text.split()[0]) for text in column(driver, 8)]
    assert leaks == sorted(leaks) and leaks[0] == 0 < leaks[-1]
    choose(driver, "scoring", "exact_match")
    assert set(column(driver, 8)) == {"–"}


def test_cells_without_numbers_stay_at_the_end(open_page: Open) -> None:
    driver = open_page("#data=zsre&n=100")
    assert {m.rstrip("†‡") for m in methods(driver)[-2:]} == {"ROME", "MEND"}
    status = texts(driver, ".status")
    assert any(text.startswith("not run, about ") for text in status)
    assert any(text.startswith("failed: RuntimeError") for text in status)
    header(driver, "score").find_element("css selector", "button").click()
    assert {m.rstrip("†‡") for m in methods(driver)[-2:]} == {"ROME", "MEND"}


def test_filters_and_the_address_remember_each_other(open_page: Open) -> None:
    driver = open_page()
    forced = column(driver, 3)
    choose(driver, "scoring", "exact_match")
    assert column(driver, 3) != forced
    choose(driver, "n", "10")
    assert column(driver, 2) == ["10"] * 5
    choose(driver, "data", "zsre")
    header(driver, "n").find_element("css selector", "button").click()
    shown(driver, "#kinds th[data-key=kind1] button")[0].click()
    for part in (
        "data=zsre",
        "scoring=exact_match",
        "n=10",
        "sort=n-ascending",
        "kinds=kind1-descending",
    ):
        assert part in driver.current_url
    rows, kinds = column(driver, 3), kind_column(driver)
    assert kinds == sorted(kinds, reverse=True)
    driver = open_page("#" + driver.current_url.split("#")[1])
    assert (column(driver, 3), kind_column(driver)) == (rows, kinds)
    choose(driver, "n", "all")
    assert sorted({*column(driver, 2)}) == ["1", "10", "100"]


def test_plots_follow_the_choice(open_page: Open) -> None:
    driver = open_page()
    plots = shown(driver, "figure svg.plot")
    assert len(plots) == 6
    assert "zsre" not in plots[0].get_attribute("aria-label")
    choose(driver, "data", "zsre")
    choose(driver, "n", "1")
    labels = [plot.get_attribute("aria-label") for plot in shown(driver, "figure svg.plot")]
    assert labels[0] == "zsre, N = 1, teacher-forced"
    assert len(labels) == 5  # single edits have no order
    (empty,) = shown(driver, "figure .nothing")
    assert empty.text == "There is nothing to plot for this choice."


def test_exact_values_beside_the_pointer_and_the_focus(open_page: Open) -> None:
    driver = open_page()
    (mark,) = shown(driver, "figure:first-child .mark[data-method=FT]")
    marker = mark.find_element("css selector", ".marker")
    point_at(driver, marker)
    (tip,) = shown(driver, "#tip")
    assert tip.text.startswith("FT, N = 100\nscore 0.")
    assert "reliability 0." in tip.text
    (other,) = shown(driver, "figure:first-child .mark[data-method=DAFNet]")
    assert "dim" in other.get_attribute("class").split()
    assert "dim" not in mark.get_attribute("class").split()


def test_a_curve_says_what_it_is_where_one_points(open_page: Open) -> None:
    driver = open_page()
    (curve,) = shown(driver, "figure:nth-child(2) .mark[data-method=DAFNet]")
    for marker, edits in zip(
        curve.find_elements("css selector", ".marker")[:2], ("11 to 30", "31 to 50"), strict=True
    ):
        point_at(driver, marker)
        (tip,) = shown(driver, "#tip")
        assert re.fullmatch(rf"DAFNet\nedits {edits}: [01]\.\d\d\d", tip.text)


def test_arrow_keys_go_from_mark_to_mark(open_page: Open) -> None:
    from selenium.webdriver.common.keys import Keys

    driver = open_page()
    first, second, *_ = shown(driver, "figure:first-child .mark")
    assert [m.get_attribute("tabindex") for m in (first, second)] == ["0", "-1"]
    first.send_keys(Keys.ARROW_RIGHT)
    assert driver.switch_to.active_element == second
    (tip,) = shown(driver, "#tip")
    assert tip.text.startswith(second.get_attribute("data-method"))


def test_a_chosen_method_stays_in_view(open_page: Open) -> None:
    driver = open_page()
    (pick,) = shown(driver, ".pick[data-method=ROME]")
    pick.click()
    assert pick.get_attribute("aria-pressed") == "true"
    driver.execute_script("document.activeElement.blur()")
    dimmed = "return document.querySelectorAll('.mark.dim').length"
    assert driver.execute_script(dimmed) > 0
    pick.click()
    driver.execute_script("document.activeElement.blur()")
    driver.find_element("css selector", "h1").click()


def test_generated_text_and_errors_are_text(open_page: Open) -> None:
    driver = open_page("#data=zsre&n=10")
    assert driver.title.startswith("Benchmark of editing methods")
    edits = shown(driver, ".edit")
    assert len(edits) == 10
    assert "The <b>twin</b> of Oslo is" not in edits[0].text
    search = driver.find_element("id", "search")
    search.send_keys("taken over")
    (edit,) = shown(driver, ".edit")
    assert driver.find_element("id", "hits").text == "1 edit"
    edit.find_element("css selector", "summary").click()
    assert NASTY in edit.text
    assert "unedited" in edit.text
    bold = [e.text for e in edit.find_elements("css selector", "td.best")]
    assert bold
    assert NASTY not in bold
    choose(driver, "n", "100")
    assert NASTY in driver.find_element("css selector", "ul.notes").text


@pytest.mark.parametrize("size", [PHONE, LAPTOP])
def test_only_the_boxes_of_tables_scroll_sideways(open_page: Open, size: tuple[int, int]) -> None:
    driver = open_page("#data=zsre&n=all", size)
    for details in driver.find_elements("css selector", "details"):
        driver.execute_script("arguments[0].open = true", details)
    width = "return document.documentElement.{}Width"
    assert driver.execute_script(width.format("scroll")) == driver.execute_script(
        width.format("client")
    )
    box = "const b = document.querySelector('#results .scroll:not([hidden])'); return "
    wider = driver.execute_script(box + "b.scrollWidth > b.clientWidth")
    assert wider == (size == PHONE)


def background(driver: Any) -> tuple[int, ...]:
    style = "return getComputedStyle(document.body).backgroundColor"
    return tuple(int(c) for c in driver.execute_script(style)[4:-1].split(","))


def test_light_and_dark(open_page: Open) -> None:
    light = background(open_page())
    driver = open_page(scheme="dark")
    assert sum(background(driver)) < 150 < 600 < sum(light)
    colour = "return getComputedStyle(document.querySelector('.mark text')).fill"
    in_dark = driver.execute_script(colour)
    driver.find_element("id", "theme").click()
    assert background(driver) == light
    assert driver.execute_script(colour) != in_dark
    for _ in range(20):  # a busy Chromium hands over what was stored a moment later
        driver.refresh()
        if background(driver) == light:
            break
        time.sleep(0.5)
    assert background(driver) == light  # remembered
    assert sum(background(open_page(scheme="dark", media="print"))) > 600


def test_the_page_needs_nothing_else(page: str) -> None:
    text = Path(page.removeprefix("file://")).read_text(encoding="utf-8")
    for reference in ("http:", "https:", "src=", "url(", "@import"):
        assert reference not in text


def test_a_score_over_fewer_parts_is_marked_and_explained(tmp_path: Path) -> None:
    text = to_html(summarise([small_run(tmp_path / "run")]))
    mark = '<abbr title="over reliability, generality and locality alone, see the notes">§</abbr>'
    (forced, said) = re.findall(r'aria-label="Results on zsre.*?</table>', text, re.DOTALL)
    for table in (forced, said):
        assert table.count("§") == table.count(mark) == 1
        (row,) = (row for row in table.split("<tr") if mark in row)
        assert 'data-method="ROME"' in row
    assert "<li>§ zsre, ROME: the score is over reliability, generality and locality" in text
    # The best is bold among scores over the same parts: FT's and ROME's are over others.
    assert forced.count('class="best"') == 2


@pytest.mark.parametrize(
    ("target", "text", "right"),
    [
        ("France", "France, of course", True),
        ("France", "Francesca and", False),
        ("Paris", '"Paris" is', True),
    ],
)
def test_an_answer_is_marked_as_the_scores_count_it(target: str, text: str, right: bool) -> None:
    assert EditTexts("zsre", 1, 1, target).wanted("prompt", text) is right


def test_where_no_other_subject_is_asked_the_plot_is_against_the_same(tmp_path: Path) -> None:
    run = small_run(tmp_path / "run")
    assert ">locality<" in (readme_plot(summarise([run])) or "")
    for path in run.glob("cells/zsre/FT/*.json"):
        body = json.loads(path.read_text())
        for aspects in body["scores"].values():
            aspects["locality"] = [None, None]
        write_json(path, body)
    for path in run.glob("cells/zsre/ROME/*.json"):
        path.unlink()
    plot = readme_plot(summarise([run])) or ""
    assert ">same subject<" in plot and ">locality<" not in plot


def test_an_answer_about_the_same_subject_is_right_where_it_stays() -> None:
    texts = EditTexts("zsre", 1, 1, "Peru", before={"same_subject": "a bridge"})
    assert texts.wanted("same_subject", "a bridge")
    assert not texts.wanted("same_subject", "Peru, of course")
