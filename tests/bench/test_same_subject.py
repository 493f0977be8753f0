from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from easyedit_dafnet.bench import EditRecord, Probe
from easyedit_dafnet.bench.same_subject import (
    OWN_QUESTIONS,
    RELATION_FIRST,
    SUBJECT_FIRST,
    with_own_questions,
)

RECORD = EditRecord(
    "7",
    "Danielle Darrieux is a citizen of",
    "Peru",
    subject="Danielle Darrieux",
    rephrases=("Danielle Darrieux holds a passport of",),
    locality={"neighborhood": (Probe("Léon Blum is a citizen of", ("France",)),)},
)


def own(record: EditRecord) -> list[str]:
    return [p.prompt for p in with_own_questions(record).locality.get(OWN_QUESTIONS, ())]


def test_two_questions_of_either_form_are_asked_of_the_subject() -> None:
    asked = own(RECORD)
    templates = [prompt.replace("Danielle Darrieux", "{}") for prompt in asked]
    assert len(set(asked)) == 4
    assert set(templates[:2]) <= set(RELATION_FIRST)
    assert set(templates[2:]) <= set(SUBJECT_FIRST)
    found = with_own_questions(RECORD)
    assert all(probe.answers == () for probe in found.locality[OWN_QUESTIONS])
    assert found.locality["neighborhood"] == RECORD.locality["neighborhood"]
    assert found.request() == RECORD.request(), "a method sees none of them"


def test_templates_name_the_subject_once_and_end_where_an_answer_begins() -> None:
    templates = (*RELATION_FIRST, *SUBJECT_FIRST)
    assert len(set(templates)) == 16
    for template in SUBJECT_FIRST:
        assert template.startswith("{} ")
    for template in templates:
        assert template.count("{}") == 1 and template[-1].isalpha()


def test_the_record_alone_tells_which_are_drawn() -> None:
    """Whatever else was drawn before, and in any process: the order is written down here."""
    assert own(RECORD) == own(replace(RECORD, target_new="Chile", rephrases=()))
    assert own(RECORD) == [
        "A well written book about Danielle Darrieux begins with",
        "The person who knows most about Danielle Darrieux is",
        "Danielle Darrieux has changed most since",
        "Danielle Darrieux is sometimes confused with",
    ]
    drawn = {tuple(own(replace(RECORD, id=str(i)))) for i in range(20)}
    assert len(drawn) > 15
    assert {prompt for asked in drawn for prompt in asked} == {
        template.replace("{}", RECORD.subject) for template in (*RELATION_FIRST, *SUBJECT_FIRST)
    }


@pytest.mark.parametrize("place", ["prompt", "rephrases", "locality"])
def test_none_is_a_prompt_of_the_record(place: str) -> None:
    for taken in own(RECORD):
        values: dict[str, Any] = {
            "prompt": taken,
            "rephrases": (taken,),
            "locality": {"neighborhood": (Probe(taken, ("x",)),)},
        }
        asked = own(replace(RECORD, **{place: values[place]}))
        assert taken not in asked and len(set(asked)) == 4


def test_records_with_such_questions_or_without_a_subject_are_asked_none() -> None:
    specific = {"Relation_Specificity": (Probe("The mother of Danielle Darrieux is", ("x",)),)}
    assert own(replace(RECORD, locality=specific)) == []
    assert own(replace(RECORD, subject="")) == []
    forgotten = {"Forgetfulness": specific["Relation_Specificity"], "Relation_Specificity": ()}
    assert len(own(replace(RECORD, locality=forgotten))) == 4


def test_a_subject_is_put_in_as_it_is() -> None:
    asked = own(replace(RECORD, subject="The {} of \\1 %s"))
    assert all("The {} of \\1 %s" in prompt for prompt in asked)
