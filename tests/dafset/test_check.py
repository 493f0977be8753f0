"""Each check finds the problem it is for, and a sound data set has none."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from easyedit_dafnet.dafset.check import Problem, problems, report, sample, to_text
from easyedit_dafnet.dafset.dataset import read_dataset
from tests.dafset.datasets import write_dataset

Records = dict[str, list[dict[str, Any]]]


@dataclass(frozen=True)
class Files:
    subjects: frozenset[str] = frozenset()
    prompts: frozenset[str] = frozenset()


def found_in(folder: Path, change: Callable[[Records], None] | None = None) -> list[Problem]:
    return problems(read_dataset(write_dataset(folder, change)))


def test_a_sound_data_set_has_no_problems(tmp_path: Path) -> None:
    assert found_in(tmp_path) == []
    assert report([]) == "No problems found."


def first(name: str, **changes: Any) -> Callable[[Records], None]:
    return lambda found: found[name][0].update(changes)


def copied(key: str) -> Callable[[Records], None]:
    """The second popular record gets what the first recent one has."""

    def change(found: Records) -> None:
        found["popular"][1][key] = found["recent"][0][key]

    return change


def same_fact(found: Records) -> None:
    found["popular"][1]["relation"] = found["recent"][0]["relation"]
    found["popular"][1]["wikidata"]["head"] = found["recent"][0]["wikidata"]["head"]


def edited_neighbour(found: Records) -> None:
    found["popular"][1]["wikidata"]["neighbour_head"] = found["recent"][0]["wikidata"]["head"]


def same_prompt(found: Records) -> None:
    for key in ("subject", "prompt", "rephrase_prompt", "rephrase_prompts"):
        copied(key)(found)


@pytest.mark.parametrize(
    ("change", "kind", "example"),
    [
        (first("recent", ground_truth=""), "A record is incomplete", "ground_truth is no text"),
        (
            first("recent", prompt="The city lies in"),
            "The prompt does not name the subject",
            "'The city lies in' does not have 'Adaville'",
        ),
        (
            first("recent", rephrase_prompt="Where is adaville?"),
            "A rephrase does not name the subject",
            "'Where is adaville?' does not have 'Adaville'",
        ),
        (
            first("recent", rephrase_prompts=["Where is Adaville?", "Where is it?"]),
            "A rephrase does not name the subject",
            "'Where is it?' does not have 'Adaville'",
        ),
        (
            first("recent", rephrase_prompt="Adaville lies in the country of"),
            "A rephrase is the prompt itself",
            "'Adaville lies in the country of'",
        ),
        (
            first("popular", target_new="Italy"),
            "A counterfactual target is the truth",
            "'Italy'",
        ),
        (
            first("recent", target_new="Bern"),
            "A factual target is not the truth",
            "'Bern' instead of 'Berin'",
        ),
        (
            first("popular", locality_ground_truth="Italy"),
            "The locality answer is one of the edit's",
            "'Italy'",
        ),
        (
            first("popular", locality_ground_truth="New Italy"),
            "The locality answer is one of the edit's",
            "'New Italy'",
        ),
        (
            first("recent", property="popular"),
            "A record is in another property's file",
            "popular",
        ),
        (
            first("robust", prefix=[]),
            "A robust record has no prefix",
            "Varna lies in the country of",
        ),
        (
            first("recent", prefix=["Once."]),
            "A record has prefixes and is not robust",
            "'Once.'",
        ),
        (same_fact, "A fact is edited twice", "'Q100 P17' is also recent.json, record 1"),
        (
            same_prompt,
            "A prompt is there twice",
            "'Adaville lies in the country of' is also recent.json, record 1",
        ),
        (
            edited_neighbour,
            "The subject of a locality prompt is edited",
            "Q100 in recent.json, record 1",
        ),
    ],
)
def test_each_problem_of_records_is_found(
    tmp_path: Path, change: Callable[[Records], None], kind: str, example: str
) -> None:
    (problem,) = found_in(tmp_path, change)
    assert (problem.kind, problem.example) == (kind, example)
    assert problem.place.split(",")[0] in ("recent.json", "popular.json", "robust.json")


def test_counts_that_differ(tmp_path: Path) -> None:
    write_dataset(tmp_path)
    build = json.loads((tmp_path / "build.json").read_text())
    build["counts"]["popular"] = 5
    (tmp_path / "build.json").write_text(json.dumps(build))
    (problem,) = problems(read_dataset(tmp_path))
    assert str(problem) == "build.json: 5 of popular, but popular.json has 4"


def test_lines_that_differ(tmp_path: Path) -> None:
    joined = write_dataset(tmp_path) / "dafset.jsonl"
    first, *rest = joined.read_text().splitlines()
    joined.write_text("\n".join(rest))
    assert examples(tmp_path) == ["not there: 'Adaville lies in the country of'"]
    joined.write_text("\n".join([first, first, *rest]))
    assert examples(tmp_path) == ["only there, or more often: 'Adaville lies in the country of'"]
    joined.write_text("\n".join([*rest, first]))  # in another order
    assert examples(tmp_path) == []
    joined.write_text("\n".join([first[:-9], *rest]))
    (damaged,) = examples(tmp_path)
    assert "dafset.jsonl is damaged: line 1: " in damaged


def examples(folder: Path) -> list[str]:
    return [problem.example for problem in problems(read_dataset(folder))]


def test_what_excluded_files_have(tmp_path: Path) -> None:
    dataset = read_dataset(write_dataset(tmp_path))
    assert problems(dataset, Files()) == []
    excluded = Files(frozenset({"pisa"}), frozenset({"riga lies in the country of", "who?"}))
    assert [str(problem) for problem in problems(dataset, excluded)] == [
        "long_tail.json, record 1: 'Pisa'",
        "long_tail.json, record 2: 'Riga lies in the country of'",
    ]


def test_the_report_counts_and_shows_the_first(tmp_path: Path) -> None:
    def change(found: Records) -> None:
        for record in found["popular"]:
            record["target_new"] = record["ground_truth"]
        found["robust"][0]["prefix"] = []

    assert report(found_in(tmp_path, change), examples=2).splitlines() == [
        "Problems found: 5",
        "",
        "A counterfactual target is the truth: 4",
        "  popular.json, record 1: 'Italy'",
        "  popular.json, record 2: 'Kenia'",
        "  and 2 more",
        "",
        "A robust record has no prefix: 1",
        "  robust.json, record 1: Varna lies in the country of",
    ]


def test_a_sample_is_drawn_by_its_seed(tmp_path: Path) -> None:
    dataset = read_dataset(write_dataset(tmp_path))
    assert sample(dataset, 5, seed=1) == sample(dataset, 5, seed=1)
    assert sample(dataset, 5, seed=1) != sample(dataset, 5, seed=2)
    prompts = {record["prompt"] for record in sample(dataset, 99)}
    assert len(prompts) == 12


def test_a_sample_leaves_incomplete_records_out(tmp_path: Path) -> None:
    write_dataset(tmp_path, lambda found: found["popular"][0].pop("stats"))
    assert len(sample(read_dataset(tmp_path), 99)) == 11


def test_a_record_is_told_in_lines(tmp_path: Path) -> None:
    record = read_dataset(write_dataset(tmp_path)).records["robust"][1]
    measured = {"views": "page views", "frequency": "mentions", "degree": "statements"}
    assert to_text(record, measured).splitlines() == [
        "Xanten lies in the country of → New Yemen",
        "  truth          Yemen",
        "  rephrase       In which country is Xanten?",
        "  rephrase       The country of Xanten is",
        "  locality       Place 11 lies in the country of → Zambia",
        "  one hop        The capital of the country of Xanten is → Ur",
        "  subject alias  Old Xan lies in → New Yemen",
        "  prefix         Many people travel.",
        "  prefix         The weather is fine.",
        "  opposite       Xanten does not lie in → Yemen",
        "  statement      Q111 P36 (capital) Q211",
        "  chosen for     robust: page views 11, mentions 177,147, statements 48, "
        "modified 2026-10-21T20:00:36Z",
    ]
