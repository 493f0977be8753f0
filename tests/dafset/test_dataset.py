"""Reading a finished data set."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from easyedit_dafnet.dafset.dataset import (
    PROPERTIES,
    DataSetError,
    faults,
    lines,
    read_complete,
    read_dataset,
)
from tests.dafset.datasets import record, write_dataset


def test_all_records_are_read_by_property(tmp_path: Path) -> None:
    dataset = read_dataset(write_dataset(tmp_path))
    assert {name: len(records) for name, records in dataset.records.items()} == {
        "recent": 3,
        "popular": 4,
        "long_tail": 3,
        "robust": 2,
    }
    assert len(dataset) == 12
    assert [found["property"] for found in dataset][:4] == ["recent"] * 3 + ["popular"]
    assert dataset.build["seed"] == 7
    assert list(lines(dataset)) == list(dataset)


def test_a_folder_without_a_data_set(tmp_path: Path) -> None:
    with pytest.raises(DataSetError, match=r"has no build\.json, dafset\.jsonl, recent\.json"):
        read_dataset(tmp_path)
    write_dataset(tmp_path)
    (tmp_path / "robust.json").unlink()
    with pytest.raises(
        DataSetError, match=r"no finished data set, as it has no robust\.json: give"
    ):
        read_dataset(tmp_path)


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("build.json", "{", "Expecting property name"),
        ("build.json", "[]", "it must be an object with counts"),
        ("popular.json", '[{"prompt"', "Expecting"),
        ("popular.json", '{"prompt": "x"}', "it must be a list of records"),
        ("popular.json", '["x"]', "it must be a list of records"),
    ],
)
def test_a_damaged_file_is_named(tmp_path: Path, name: str, text: str, reason: str) -> None:
    write_dataset(tmp_path)
    (tmp_path / name).write_text(text)
    with pytest.raises(DataSetError, match=f"{re.escape(name)} is damaged: {reason}"):
        read_dataset(tmp_path)


@pytest.mark.parametrize("line", ["{", "[]"])
def test_a_damaged_line_is_named(tmp_path: Path, line: str) -> None:
    dataset = read_dataset(write_dataset(tmp_path))
    with (tmp_path / "dafset.jsonl").open("a") as file:
        file.write(line)
    with pytest.raises(DataSetError, match="line 13"):
        list(lines(dataset))


PROBE = {"prompt": "Who?", "ground_truth": ""}
STATS = {"modified": None, "views": 1, "frequency": 2, "degree": 3, "log_likelihood": None}


@pytest.mark.parametrize(
    ("key", "value", "fault"),
    [
        ("prompt", None, "prompt is no text"),
        ("target_new", "  ", "target_new is no text"),
        ("rephrase_prompts", [], "rephrase_prompts is no list of texts"),
        ("rephrase_prompts", ["x", ""], "rephrase_prompts is no list of texts"),
        ("prefix", None, "prefix is no list of texts"),
        ("counterfactual", "no", "counterfactual is neither"),
        ("wikidata", {"head": "Q1"}, "wikidata does not name"),
        ("stats", {**STATS, "views": None}, "stats is not made of"),
        ("stats", {**STATS, "log_likelihood": "low"}, "stats is not made of"),
        ("portability", {"two_hops": []}, "portability has something else"),
        ("portability", {"one_hop": [PROBE]}, "a probe of one_hop has no prompt"),
        ("opposite", PROBE, "opposite has no prompt"),
    ],
)
def test_what_a_record_lacks(tmp_path: Path, key: str, value: object, fault: str) -> None:
    sound = record("popular", 5, "Halle", "Italy")
    assert faults({**sound, "stats": STATS}) == []
    (found,) = faults({**sound, key: value})
    assert found.startswith(fault)


def test_incomplete_records_are_refused_where_they_are_needed(tmp_path: Path) -> None:
    assert len(read_complete(write_dataset(tmp_path))) == 12
    write_dataset(tmp_path, lambda found: found["popular"][2].pop("subject"))
    assert len(read_dataset(tmp_path)) == 12
    with pytest.raises(DataSetError, match=r"popular\.json is damaged: in record 3, subject is no"):
        read_complete(tmp_path)


def test_a_data_set_may_have_no_record_of_a_property(tmp_path: Path) -> None:
    write_dataset(tmp_path, lambda found: found["robust"].clear())
    assert json.loads((tmp_path / "robust.json").read_text()) == []
    assert set(read_complete(tmp_path).records) == set(PROPERTIES)
