from __future__ import annotations

import copy
import json
import math
import pickle
from typing import Any

import numpy
import pytest

from easyedit_dafnet.edit_requests import (
    Record,
    RequestError,
    check_requests,
    hold_out,
    name_of,
    training_records,
)
from tests.tiny import REQUESTS

FRANCE: dict[str, Any] = {
    "prompt": "The capital of France is",
    "target_new": "Rome",
    "subject": "France",
}


def checked(**changes: Any) -> Record:
    (request,) = check_requests([{**FRANCE, **changes}])
    return request


def reason(requests: Any) -> str:
    with pytest.raises(RequestError) as error:
        check_requests(requests)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    ("requests", "message"),
    [
        (FRANCE, "must be a list, not a dict; wrap a single request"),
        (None, "must be a list, not a NoneType"),
        ("text", "must be a list, not a str"),
        ([], "no requests"),
        (["a"], "Request 0: it is of type str; it must be a dict"),
        ([FRANCE, None], "Request 1: it is of type NoneType"),
        ([FRANCE, {"target_new": "b"}], "Request 1: 'prompt' is missing"),
        ([{"question": "a", "reply": "b"}], "the record's keys are: question, reply"),
        ([{"prompt": "a"}], "Request 0: 'target_new' is missing"),
        ([{"prompt": " ", "target_new": "b"}], "Request 0: 'prompt' is ' '"),
        ([{"prompt": "a", "target_new": ""}], "Request 0: 'target_new' is ''"),
    ],
)
def test_unusable_requests_are_named(requests: Any, message: str) -> None:
    assert message in reason(requests)


def test_usable_requests_come_back_as_they_are() -> None:
    assert check_requests(iter(REQUESTS)) == REQUESTS
    more: dict[str, Any] = {
        "case_id": 3,
        "ground_truth": None,
        "locality": {},
        "portability": {"a": {}},
        "x": [1],
    }
    given = {**FRANCE, **more}
    before = copy.deepcopy(given)
    assert check_requests([given]) == [before] == [given]
    assert check_requests(check_requests([given])) == [before]


def test_all_problems_are_told_together() -> None:
    requests: list[Any] = [FRANCE, {"prompt": "a"}, FRANCE, {"prompt": "b", "target_new": True}]
    with pytest.raises(RequestError) as error:
        check_requests(requests)
    assert error.value.problems.keys() == {1, 3}
    first, *lines = str(error.value).split("\n  ")
    assert first == "2 of 4 requests cannot be used:"
    assert lines == [f"Request {i}: {reason}" for i, reason in error.value.problems.items()]
    kept = [r for i, r in enumerate(requests) if i not in error.value.problems]
    assert check_requests(kept) == [FRANCE, FRANCE]
    assert pickle.loads(pickle.dumps(error.value)).problems == error.value.problems


def test_of_many_problems_the_first_ten_are_shown_and_all_counted() -> None:
    with pytest.raises(RequestError) as error:
        check_requests([{"prompt": "a"}] * 25)
    lines = str(error.value).splitlines()
    assert lines[0].startswith("25 of 25") and lines[-1].endswith("and 15 more.")
    assert len(lines) == 12 and len(error.value.problems) == 25


def test_requests_keep_the_names_that_they_have() -> None:
    request = Record({"prompt": "a"}, "facts.csv, line 4")
    assert reason([request]).startswith("facts.csv, line 4: 'target_new'")
    (again,) = check_requests([Record(FRANCE, "facts.csv, line 4")])
    assert name_of(again, 0) == name_of(pickle.loads(pickle.dumps(again)), 0) == "facts.csv, line 4"
    assert name_of(FRANCE, 7) == "Request 7"


# ---- values -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1998, "1998"),
        (0, "0"),
        (1998.0, "1998"),
        (2.5, "2.5"),
        (10**400, "1" + "0" * 400),
        (numpy.int64(7), "7"),
        (numpy.float32(0.5), "0.5"),
        (numpy.str_("Rome"), "Rome"),
        ("nan", "nan"),
        ("  Lusaka  ", "Lusaka"),
        ("\nLusaka\n", "Lusaka"),
        ("a\0b", "a\0b"),
        ("🙂", "🙂"),
    ],
)
def test_numbers_become_texts_and_texts_lose_the_space_around_them(value: Any, text: str) -> None:
    request = checked(target_new=value, subject=value, rephrase_prompt=value)
    assert (request["target_new"], request["subject"]) == (text, text)
    assert {type(request[key]) for key in ("prompt", "target_new", "subject")} == {str}
    assert json.dumps(request)


def test_the_prompt_keeps_the_space_around_it() -> None:
    assert checked(prompt="Question: where is France? ")["prompt"] == "Question: where is France? "
    assert checked(prompt=numpy.str_("France is"))["prompt"] == "France is"


@pytest.mark.parametrize("nothing", [None, math.nan, math.inf, numpy.float64("nan"), "", " \n"])
def test_what_is_empty_counts_as_not_given(nothing: Any) -> None:
    assert "subject" not in checked(subject=nothing)
    for key in ("prompt", "target_new"):
        said = reason([{**FRANCE, key: nothing}])
        assert f"{key!r} is {nothing!r}" if isinstance(nothing, str) else "is missing" in said


def test_pandas_empty_cells_count_as_not_given() -> None:
    pandas = pytest.importorskip("pandas")
    for cell in (pandas.NA, pandas.NaT):
        assert "subject" not in checked(subject=cell)
    table = pandas.DataFrame([{**FRANCE, "target_new": 1998}, {"prompt": "Oslo is"}])
    assert table["target_new"].dtype == float
    first, _ = records = table.to_dict("records")
    assert check_requests([first]) == [{**FRANCE, "target_new": "1998"}]
    assert "Request 1: 'target_new' is missing" in reason(records)


@pytest.mark.parametrize(
    "value", [True, numpy.bool_(False), b"Rome", {"a": 1}, {1}, object(), ["Rome", True]]
)
def test_what_is_neither_text_nor_number_is_refused(value: Any) -> None:
    assert "Request 0: 'target_new' is " in reason([{**FRANCE, "target_new": value}])
    assert "Request 0: 'subject' is " in reason([{**FRANCE, "subject": value}])
    assert "Request 0: 'prompt' " in reason([{**FRANCE, "prompt": value}])


def test_nesting_without_end_is_refused() -> None:
    deep: list[Any] = []
    deep.append(deep)
    assert "Request 0: it is nested too deeply" in reason([{**FRANCE, "target_new": deep}])


def test_long_values_are_shortened_in_messages() -> None:
    assert len(reason([{**FRANCE, "subject": b"x" * 5000}])) < 200


@pytest.mark.parametrize(
    "key", ["prompt", "target_new", "subject", "rephrase_prompt", "locality_prompt"]
)
def test_half_a_character_is_refused(key: str) -> None:
    said = reason([{**FRANCE, key: "France \ud83d is"}])
    assert f"Request 0: {key!r} is 'France \\ud83d is'" in said and said.isascii()


def test_of_several_answers_the_first_is_edited_and_it_is_said_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    several: list[Any] = [["Rome"], ["Oslo", "Bern"], [["Nina Simone", "N. Simone"]], [None, 7], ()]
    requests = [{**FRANCE, "target_new": target} for target in several[:4]]
    targets = [request["target_new"] for request in check_requests(requests)]
    assert targets == ["Rome", "Oslo", "Nina Simone", "7"]
    (record,) = caplog.records
    assert "2 of 4" in record.getMessage() and "Request 1" in record.getMessage()
    assert checked(target_new=numpy.array(["Rome", "Oslo"], object))["target_new"] == "Rome"
    nothing: list[Any] = [[], [[]], (), [None, " "]]
    for empty in nothing:
        assert "'target_new' is missing" in reason([{**FRANCE, "target_new": empty}])


# ---- templates ----------------------------------------------------------------------------------


def test_a_template_is_filled_with_the_subject() -> None:
    request = checked(
        prompt="{} is ruled from",
        rephrase_prompt="Who lives in the capital of {}, {}?",
        locality_prompt="Near {subject} lies",
        locality_ground_truth="{}",
    )
    assert request["prompt"] == "France is ruled from"
    assert request["rephrase_prompt"] == "Who lives in the capital of France, France?"
    assert request["locality_prompt"] == "Near France lies"
    assert request["locality_ground_truth"] == "{}"
    assert checked(prompt="{} is", subject=r"C:\1 {}")["prompt"] == r"C:\1 {} is"


@pytest.mark.parametrize("key", ["prompt", "rephrase_prompt", "locality_prompt"])
@pytest.mark.parametrize("subject", [None, "", math.nan])
def test_a_template_without_a_subject_is_refused(key: str, subject: Any) -> None:
    said = reason([{**FRANCE, key: "{} is ruled from", "subject": subject}])
    assert f"Request 0: {key!r} is '{{}} is ruled from'" in said and "without a subject" in said


def test_a_template_that_has_its_subject_already_is_refused() -> None:
    said = reason([{**FRANCE, "prompt": "{} and France are ruled from"}])
    assert "with {} for the subject 'France' and the subject itself" in said
    assert checked(prompt="{}'s Frenchmen")["prompt"] == "France's Frenchmen"


def test_memits_targets_are_dicts() -> None:
    request = checked(prompt="{} is ruled from", target_new={"str": " Rome", "id": "Q220"})
    assert (request["prompt"], request["target_new"]) == ("France is ruled from", "Rome")


# ---- chats --------------------------------------------------------------------------------------

CHAT = [
    {"role": "system", "content": "Be brief. {}"},
    {"role": "user", "content": "The capital of France?", "name": "a"},
]


def test_a_chat_is_a_prompt_and_stays_as_it_is() -> None:
    assert checked(prompt=CHAT)["prompt"] == CHAT
    request = {"messages": CHAT, "target_new": " Rome"}
    assert check_requests([request]) == [{"prompt": CHAT, "target_new": "Rome"}]
    assert request["messages"] is CHAT


def test_a_template_in_a_chats_last_message_is_filled() -> None:
    chat = [CHAT[0], {**CHAT[1], "content": "Where is {}?"}]
    found = checked(prompt=chat)["prompt"]
    assert found == [CHAT[0], {**CHAT[1], "content": "Where is France?"}]
    assert "without a subject" in reason([{"prompt": chat, "target_new": "Rome"}])


@pytest.mark.parametrize(
    ("chat", "message"),
    [
        ([*CHAT, {"role": "assistant", "content": "It is"}], "of the role 'assistant'"),
        (CHAT[:1], "of the role 'system'"),
        ([{"role": "user"}], "'content of message 0 of prompt' must be a text"),
        ([{"role": 1, "content": "a"}], "'role of message 0 of prompt' must be a text"),
        ([{"role": "user", "content": [{"type": "text"}]}], "'content of message 0 of prompt'"),
        ([{"role": "user", "content": " "}], "'content of message 0 of prompt' is ' '"),
        ([{"role": "user", "content": "\udc00"}], "half of a character"),
        (["The capital of France is"], "'prompt' is a list; it must be a text, or messages"),
        ([], "'prompt' is a list"),
    ],
)
def test_a_chat_that_cannot_be_asked_is_refused(chat: Any, message: str) -> None:
    assert message in reason([{**FRANCE, "prompt": chat}])


def test_a_prompt_is_given_once() -> None:
    assert "'prompt' and 'messages' are both given" in reason([{**FRANCE, "messages": CHAT}])
    assert "'messages' must be a list" in reason([{"messages": "hi", "target_new": "Rome"}])


# ---- records to train on ------------------------------------------------------------------------

RECORD = {
    **FRANCE,
    "rephrase_prompt": "France's capital is",
    "locality_prompt": "The capital of Spain is",
    "locality_ground_truth": "Madrid",
}


def test_records_to_train_on_keep_the_texts_of_their_own() -> None:
    odd = {**FRANCE, "rephrase_prompt": "", "locality_prompt": None, "prefix": "Well. "}
    assert training_records([RECORD, odd], "data") == [RECORD, odd]
    near = {"near": [{"prompt": "Oslo is in", "ground_truth": "Norway"}]}
    more = {**RECORD, "rephrase": "another", "rephrase_prompts": ["a third"], "locality": near}
    assert training_records([more], "data") == [RECORD]


def test_knowedits_dictionaries_are_trained_on_where_there_are_no_texts_of_ones_own() -> None:
    near = {"near": [{"prompt": "{} borders", "ground_truth": [["Spain", "the Kingdom"]]}]}
    record = {**FRANCE, "rephrase": "France's capital is", "locality": near}
    found = training_records([record], "data")
    assert found == [
        {
            **FRANCE,
            "rephrase_prompt": "France's capital is",
            "locality_prompt": "France borders",
            "locality_ground_truth": "Spain",
        }
    ]
    assert training_records(found, "data") == found


def test_other_relations_of_the_subject_are_trained_on_as_such() -> None:
    asked = [{"prompt": f"France {i} is", "ground_truth": [["so"]]} for i in range(3)]
    locality = {"Relation_Specificity": asked}
    (found,) = training_records([{**FRANCE, "locality": locality}], "data")
    assert found["same_subject_prompt"] in [probe["prompt"] for probe in asked]
    assert found["same_subject_ground_truth"] == "so"
    assert training_records([found], "data") == [found]
    (found,) = training_records([{**FRANCE, "locality": {"near": asked}}], "data")
    assert "same_subject_prompt" not in found and found["locality_ground_truth"] == "so"


def test_dafsets_records_are_trained_on_with_one_of_their_texts_of_a_kind() -> None:
    opposite = {"prompt": "The capital of Italy is", "ground_truth": "Rome"}
    texts = {"prefix": ["It rained."], "rephrase_prompts": ["One", "Two"], "opposite": opposite}
    records = [{**RECORD, **texts, "prompt": f"{i}: the capital of France is"} for i in range(60)]
    found = training_records(records, "data")
    assert {r["rephrase_prompt"] for r in found} == {
        prefix + text for prefix in ("", "It rained. ") for text in ("One", "Two")
    }
    assert {
        (r["locality_prompt"].removeprefix("It rained. "), r["locality_ground_truth"])
        for r in found
    } == {("The capital of Spain is", "Madrid"), ("The capital of Italy is", "Rome")}
    assert found == training_records(records, "data") == training_records(found, "data")
    with pytest.raises(RequestError, match="'opposite' is a str; it must be a dict"):
        training_records([{**records[0], "opposite": "text"}], "data")


def test_records_that_a_data_set_is_known_to_hold_but_nobody_can_edit_are_not_trained_on(
    caplog: pytest.LogCaptureFixture,
) -> None:
    empty = {**FRANCE, "target_new": "", "portability": {}}
    assert training_records([empty, RECORD], "data") == [RECORD]
    assert "left out: records without a target (1)" in caplog.text
    with pytest.raises(RequestError, match="no record can be edited; left out: records without"):
        training_records([empty], "data")
    assert "Request 0: 'target_new' is ''" in reason([empty, FRANCE])


def test_problems_of_records_to_train_on_are_told_together() -> None:
    unanswered = {**RECORD, "locality_ground_truth": ""}
    records = [RECORD, {"prompt": "a"}, unanswered, {**FRANCE, "locality": "text"}]
    with pytest.raises(RequestError) as error:
        training_records(records, "val_set")
    assert error.value.problems.keys() == {1, 2, 3}
    assert "val_set, record 2: 'locality_ground_truth' is ''" in str(error.value)


def test_what_is_held_out_is_the_same_for_the_same_seed() -> None:
    records = [{"prompt": str(i)} for i in range(100)]
    held, others = hold_out(records, 1)
    assert len(held) == 5 and len(others) == 95
    assert sorted(r["prompt"] for r in held + others) == sorted(r["prompt"] for r in records)
    assert hold_out(records, 1) == (held, others) != hold_out(records, 2)
    assert len(hold_out(records * 100, 1)[0]) == 200
