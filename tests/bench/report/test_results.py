from __future__ import annotations

import json
from pathlib import Path

import pytest

from easyedit_dafnet.bench.report.results import Key, reaches, read_run
from tests.bench.report.runs import small_run, write_json


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return small_run(tmp_path / "run")


def test_a_whole_run_has_no_problems(run: Path) -> None:
    found = read_run(run)
    assert found.problems == []
    assert len(found.cells) == 4
    assert len(found.planned) == 7
    assert {label: sanity.passed for label, sanity in found.sanity.items()} == {
        "ROME": False,
        "IKE": True,
    }
    assert found.cells[Key("zsre", "MEND", 2, 0)].error == "RuntimeError: out of memory | <b>"
    assert list(found.texts(Key("zsre", "FT", 2, 0))) == []


@pytest.mark.parametrize(
    ("found", "edits", "reached"),
    [
        *((1.0, 8, True), (7 / 8, 8, True), (6 / 8, 8, True), (5 / 8, 8, False), (None, 8, False)),
        *((0.85, 1000, False), (0.89, 1000, True)),
    ],
)
def test_a_method_is_doubtful_where_chance_does_not_explain_it(
    found: float | None, edits: int, reached: bool
) -> None:
    assert reaches(found, 0.9, edits) is reached


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('{"format": 1, "cell"', "is not JSON"),
        ("[1]", "no JSON object"),
        ('{"format": 7}', "has format 7, and this version reads 1"),
        ('{"format": 1}', "names a cell without data, label, num_edits and stream"),
    ],
)
def test_damaged_and_foreign_files_are_named_and_left_out(
    run: Path, content: str, said: str
) -> None:
    path = run / "cells" / "zsre" / "FT" / "n2-s0.json"
    path.write_text(content)
    found = read_run(run)
    (problem,) = found.problems
    assert str(path) in problem
    assert said in problem
    assert len(found.cells) == 3


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"edits": ["a"]}, "has 2 scores for 1 edits"),
        ({"status": "half"}, "has the status 'half'"),
        ({"scores": None}, "is done and has no scores"),
        (
            {"scores": {"teacher_forced": {"reliability": ["x", 1]}}},
            "has a score that is no number (teacher_forced reliability)",
        ),
    ],
)
def test_cells_that_contradict_themselves_are_left_out(
    run: Path, changes: dict[str, object], said: str
) -> None:
    path = run / "cells" / "zsre" / "ROME" / "n2-s0.json"
    write_json(path, {**json.loads(path.read_text()), **changes})
    (problem,) = read_run(run).problems
    assert said in problem


def test_without_the_plan_the_rest_is_read(run: Path) -> None:
    (run / "suite.json").unlink()
    found = read_run(run)
    assert "has no suite.json" in found.problems[0]
    assert len(found.cells) == 4


def test_a_folder_without_results_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="has no results that can be read"):
        read_run(tmp_path)
    with pytest.raises(ValueError, match="is not a folder"):
        read_run(tmp_path / "missing")


def test_a_cut_line_of_the_texts_is_named(run: Path) -> None:
    path = run / "texts" / "zsre" / "FT" / "n2-s0.jsonl"
    path.parent.mkdir(parents=True)
    path.write_text('{"id": "zsre-0"}\n{"id": "zs')
    found = read_run(run)
    assert list(found.texts(Key("zsre", "FT", 2, 0))) == [{"id": "zsre-0"}]
    assert "line 2 is not JSON" in found.problems[0]
