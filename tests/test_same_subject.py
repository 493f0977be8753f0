from __future__ import annotations

from typing import Any

import pytest

from easyedit_dafnet.bench.same_subject import RELATION_FIRST, SUBJECT_FIRST
from easyedit_dafnet.record_values import Record
from easyedit_dafnet.same_subject import QUESTIONS, with_same_subject


def record(prompt: str, subject: str, truth: str, target: str, **more: str) -> dict[str, Any]:
    found = {"prompt": prompt, "subject": subject, "ground_truth": truth, "target_new": target}
    return {**found, **more}


SPEAKS = [
    record(f"{name} speaks", name, truth, "Basque", rephrase_prompt=f"The language of {name} is")
    for name, truth in (("Ana", "Spanish"), ("Ben", "English"), ("Eva", "Czech"))
]
WRITES = record("The language of Io is", "Io", "Italian", "Maltese")
PLAYS = record("Lia, who plays the", "Lia", "harp", "oboe")


def test_a_record_is_asked_what_another_asks_of_its_subject() -> None:
    found = with_same_subject([*SPEAKS, PLAYS], seed=0)
    asked = [(r["same_subject_prompt"], r["same_subject_ground_truth"]) for r in found]
    assert asked[:3] == [(f"{name}, who plays the", "harp") for name in ("Ana", "Ben", "Eva")]
    assert asked[3] in [("Lia speaks", truth) for truth in ("Spanish", "English", "Czech")]
    assert [dict(r, same_subject_prompt=0, same_subject_ground_truth=0) for r in found] == [
        {**r, "same_subject_prompt": 0, "same_subject_ground_truth": 0} for r in (*SPEAKS, PLAYS)
    ], "nothing else of a record changes"
    assert all("same_subject_prompt" not in r for r in SPEAKS), "nor the records given"


def test_the_questions_are_of_another_relation() -> None:
    # What one record rephrases is another's prompt: all of them ask for one relation.
    found = with_same_subject([*SPEAKS, WRITES], seed=0)
    assert not any("same_subject_prompt" in r for r in found)
    # Nor is a question asked whose answer is the edit's: it may be the same in other words.
    found = with_same_subject([SPEAKS[0], record("Il is fluent in", "Il", "Basque", "Finnish")], 0)
    assert ["same_subject_prompt" in r for r in found] == [False, True]


def test_what_is_known_of_the_subject_itself_is_asked_first() -> None:
    own = record("ANA was born in", "ANA", "Bilbao", "Porto")
    others = [record(f"Number {i} is in colour", f"Number {i}", "red", "blue") for i in range(40)]
    found = with_same_subject([*others, SPEAKS[0], own], seed=0)
    assert found[-2]["same_subject_prompt"] == "Ana was born in"
    assert found[-2]["same_subject_ground_truth"] == "Bilbao"
    assert found[-1]["same_subject_prompt"] == "ANA speaks"


def test_questions_that_are_given_are_asked_of_every_other_record() -> None:
    found = with_same_subject([*SPEAKS, PLAYS], 0, ["The age of {} is"])
    assert [r["same_subject_prompt"] for r in found[1::2]] == [
        "The age of Ben is",
        "The age of Lia is",
    ]
    assert [r["same_subject_ground_truth"] for r in found[1::2]] == ["Basque", "oboe"]
    assert not any(r["same_subject_prompt"].startswith("The age") for r in found[::2])


def test_a_question_of_its_own_stays() -> None:
    own = {"same_subject_prompt": "Ana is", "same_subject_ground_truth": "seven"}
    (found, _) = with_same_subject([{**SPEAKS[0], **own}, PLAYS], seed=0)
    assert {key: found[key] for key in own} == own


def test_records_without_a_subject_get_none() -> None:
    found = with_same_subject(
        [{"prompt": "It rains in", "target_new": "May"}, {**PLAYS, "subject": "Lio"}, SPEAKS[0]], 0
    )
    assert not any("same_subject_prompt" in r for r in found)


@pytest.mark.parametrize("seed", [0, 1])
def test_a_seed_draws_the_same(seed: int) -> None:
    records = [Record(r, f"r{i}") for i, r in enumerate([*SPEAKS, PLAYS] * 3)]
    first, second = (with_same_subject(records, seed) for _ in range(2))
    assert first == second and [r.name for r in first] == [r.name for r in records]


def test_editing_does_not_know_the_benchmarks_questions() -> None:
    asked = [question.casefold() for question in QUESTIONS]
    assert len(set(asked)) == len(asked) and all(q.count("{}") == 1 for q in asked)
    assert not set(asked) & {q.casefold() for q in RELATION_FIRST + SUBJECT_FIRST}
