"""The relations' wordings: correct English, and the subject's label in every sentence."""

import random
import re

import pytest
import yaml

from easyedit_dafnet.dafset.wording import (
    KINDS,
    RELATIONS,
    Name,
    WordingError,
    composed,
    follows,
    load_relations,
    render,
    target_words,
    usable_label,
    wordings,
)

SUBJECTS = [
    Name("Marie Curie", past=True),
    Name("Charles Dickens", past=True),
    Name("United States"),
    Name("The Rolling Stones"),
    Name("eBay"),
    Name('"Weird Al" Yankovic'),
    Name("Yahoo!"),
]
# A verb in the present tense, or of "be", before the subject; any word that could be one after it.
VERB_BEFORE = r"\b(is|was|does|has)\b[^ ]* {s}"
WORD_AFTER = r"(?:^|, |that |which ){[sS]} ([^ ]+)"
NUMBERLESS = {"can", "{can/could}", "became", "came", "originated", "started"}


def every_wording(relation):
    inverse = [relation.inverse] if relation.inverse else []
    return [*relation.cloze, *relation.questions, relation.phrase, *inverse]


@pytest.fixture(params=RELATIONS.values(), ids=[f"P{id}" for id in RELATIONS])
def relation(request):
    return request.param


@pytest.fixture
def entries():
    """Two relations, as the file has them."""
    shared = {
        "kinds": ["place"],
        "answer": "place",
        "cloze": ["The capital of {s} {is/was}", "{S} is ruled from"],
        "questions": ["What is the capital of {s}?", "Where is the capital of {s}?"],
        "phrase": "the capital of {s}",
    }
    return {"P36": {"name": "capital", **shared}, "P1": {"name": "another", **shared}}


@pytest.fixture
def load(tmp_path):
    def load(entries):
        path = tmp_path / "relations.yaml"
        path.write_text(entries if isinstance(entries, str) else yaml.safe_dump(entries))
        return load_relations(path)

    return load


def test_48_relations():
    assert len(RELATIONS) == 48
    assert all(relation.id == id for id, relation in RELATIONS.items())
    assert len({relation.name for relation in RELATIONS.values()}) == 48
    assert {kind for relation in RELATIONS.values() for kind in relation.kinds} == set(KINDS)


def test_relations_that_every_data_set_should_have():
    common = "106 27 19 20 69 17 495 136 140 102 37 30 1303 57 264 131 119 509 551 840"
    assert {int(number) for number in common.split()} <= set(RELATIONS)


def test_relations_have_several_wordings(relation):
    assert len(relation.cloze) >= 2 and len(relation.questions) >= 2
    texts = every_wording(relation)
    assert len(set(texts)) == len(texts) >= 5


@pytest.mark.parametrize("subject", SUBJECTS, ids=lambda name: name.label)
def test_every_sentence_has_the_label_and_is_tidy(relation, subject):
    for wording in every_wording(relation):
        text = render(wording, subject)
        assert subject.label in text
        assert "  " not in text and text == text.strip()
        assert not re.search(r"[{}/]|\bthe the\b", text, re.IGNORECASE)
    for text in wordings(relation, subject, random.Random(0)):
        assert text[0].isupper() or not text[0].isalpha()
        assert text.endswith("?") or text[-1].isalpha()


def test_inverse_only_where_the_tail_has_one_head():
    assert {id for id, relation in RELATIONS.items() if relation.inverse} == {6, 26, 36, 451}


def test_no_verb_depends_on_whether_a_group_or_place_is_plural(relation):
    if {"place", "organisation", "thing"} & set(relation.kinds):
        for wording in (*relation.cloze, *relation.questions, relation.phrase):
            assert not re.search(VERB_BEFORE, wording)
            assert set(re.findall(WORD_AFTER, wording)) <= NUMBERLESS


def test_cloze_first_then_all_others_mixed():
    relation, subject = RELATIONS[27], Name("Marie Curie", past=True)
    drawn = wordings(relation, subject, random.Random(3))
    assert drawn == wordings(relation, subject, random.Random(3))
    assert sorted(drawn) == sorted(render(w, subject) for w in relation.cloze + relation.questions)
    orders = [wordings(relation, subject, random.Random(seed)) for seed in range(30)]
    assert {order[0] for order in orders} == {render(w, subject) for w in relation.cloze}
    assert any(order[1].endswith("?") for order in orders)
    assert any(not order[1].endswith("?") for order in orders)


def test_no_sentence_begins_with_a_small_letter(relation):
    drawn = wordings(relation, Name("iPhone"), random.Random(0))
    assert not drawn[0].endswith("?")
    assert all(text[0].isupper() for text in drawn)


def test_past_subjects_have_verbs_in_the_past():
    wording = "{S} {has held/held} the office"
    assert render(wording, Name("Angela Merkel")) == "Angela Merkel has held the office"
    assert render(wording, Name("Helmut Kohl", past=True)) == "Helmut Kohl held the office"
    assert render("Which language {does/did} {s} use?", Name("Ovid", past=True)) == (
        "Which language did Ovid use?"
    )


@pytest.mark.parametrize(
    ("label", "possessive"),
    [
        ("Marie Curie", "Marie Curie's"),
        ("Charles Dickens", "Charles Dickens'"),
        ("Karl Marx", "Karl Marx's"),
        ("Netherlands", "the Netherlands'"),
    ],
)
def test_possessive(label, possessive):
    assert render("On {s's} map", Name(label)) == f"On {possessive} map"


@pytest.mark.parametrize(
    "label",
    [
        "United States",
        "United Kingdom",
        "Netherlands",
        "Czech Republic",
        "Democratic Republic of the Congo",
        "Soviet Union",
        "Solomon Islands",
        "Qing dynasty",
        "Black Sea",
        "Mississippi River",
        "University of Oxford",
        "Massachusetts Institute of Technology",
        "British Museum",
        "Democratic Party",
        "Communist Party of China",
        "1st arrondissement of Paris",
        "Catholic Church",
        "Chicago Bulls",
        "United States Air Force",
    ],
)
def test_names_with_article(label):
    assert target_words(label) == f"the {label}"
    assert render("In {s}", Name(label)) == f"In the {label}"
    assert render("{S} and", Name(label)) == f"The {label} and"


@pytest.mark.parametrize(
    "label",
    [
        "France",
        "The Hague",
        "The Rolling Stones",
        "A Kingdom",
        "Harvard University",
        "Real Madrid CF",
        "Joan of Arc",
        "Bank of America",
        "Western Union",
        "Fall River",
        "Los Angeles",
        "Navy",
        "",
        " of nowhere",
        "politician",
        "rugby union",
        "United States dollar",
    ],
)
def test_names_without_article(label):
    assert target_words(label) == label
    assert render("{S} and", Name(label)) == f"{label} and"


def test_titles_and_people_have_no_article():
    for id, label in ((57, "Mystic River"), (19, "Young Giants")):
        drawn = wordings(RELATIONS[id], Name(label), random.Random(0))
        assert not any(f"he {label}" in text for text in drawn)
    drawn = wordings(RELATIONS[17], Name("Mystic River"), random.Random(0))
    assert all("the Mystic River" in text for text in drawn)


def test_rivers_and_models_have_an_article_unless_english_has_none():
    assert render("the mouth of {the s}", Name("Elbe")) == "the mouth of the Elbe"
    assert render("the mouth of {the s}", Name("The Fleet")) == "the mouth of The Fleet"
    assert render("the mouth of {the s}", Name("Rock Creek")) == "the mouth of Rock Creek"


@pytest.mark.parametrize(
    ("outer", "inner", "subject", "text"),
    [
        (36, 27, "Marie Curie", "The capital of the country of citizenship of Marie Curie is"),
        (38, 17, "Chicago Bulls", "The currency of the country of the Chicago Bulls is the"),
        (106, 57, "Mystic River", "The occupation of the director of Mystic River is"),
    ],
)
def test_composed(outer, inner, subject, text):
    assert composed(RELATIONS[outer], RELATIONS[inner], Name(subject)) == text


def test_each_verb_of_a_composition_has_its_own_tense():
    assert composed(RELATIONS[30], RELATIONS[131], Name("Troy", past=True)) == (
        "The continent of the administrative area that included Troy is"
    )
    assert composed(RELATIONS[30], RELATIONS[131], Name("Izmir"), past=True) == (
        "The continent of the administrative area that includes Izmir was"
    )


def test_every_composition_is_tidy(relation):
    for inner in RELATIONS.values():
        text = composed(relation, inner, Name("iPhone"))
        assert "iPhone" in text and text[0].isupper()
        assert not re.search(r"[{}]|  |\bthe the\b", text)


@pytest.mark.parametrize(
    "label", ["Marie Curie", "1984 Summer Olympics", "Jay-Z", "Paris, Texas", "Yahoo!", "Ōsaka"]
)
def test_usable_labels(label):
    assert usable_label(label)


@pytest.mark.parametrize(
    "label",
    [
        "Paris (mythology)",
        "1984",
        "12/34",
        "Q42",
        "",
        "a" * 61,
        "two\nlines",
        "two  spaces",
        " margin",
        "{s}",
        "Category:Rivers",
        "Template:Infobox",
        "List of rivers",
        "Who's Afraid of Virginia Woolf?",
    ],
)
def test_unusable_labels(label):
    assert not usable_label(label)


def test_loads_what_is_sound(load, entries):
    assert set(load(entries)) == {36, 1}
    assert load(entries)[36].name == "capital"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ({"phrase": None}, "P36: phrase must be a text"),
        ({"kinds": "place"}, "P36: kinds must be a list of texts"),
        ({"kinds": ["river"]}, "P36: kinds must be among person, place"),
        ({"answer": "town"}, "P36: answer must be an idea or one of person, place"),
        ({"colour": "red"}, "P36: the keys must be"),
        ({"no_answers": "Q42"}, "P36: no_answers must be a list of items"),
        ({"no_answers": [42]}, "P36: no_answers must be a list of items"),
        ({"questions": ["Where is {s}?"]}, "P36: it needs two cloze and two questions"),
        ({"questions": ["Where is {s}", "Who is {s}?"]}, "'Where is {s}' must end with a question"),
        ({"cloze": ["The {s} is ", "The {s} is"]}, "'The {s} is ' must end with a word"),
        ({"cloze": ["It is", "The {s} is"]}, "'It is' must have the subject once"),
        ({"cloze": ["The {S}{s} is", "The {s} is"]}, "must have the subject once"),
        ({"cloze": ["The {s} {are} is", "The {s} is"]}, "has a field that is not known"),
        ({"cloze": ["{S} is", "{S} was"]}, "begin with another word than the subject"),
        ({"phrase": "capital of {s}"}, 'must begin with "the "'),
        ({"inverse": "The place of {s}?"}, "must end with a word"),
    ],
)
def test_damaged_relations_are_named(load, entries, damage, message):
    entries["P36"] |= damage
    with pytest.raises(WordingError, match=re.escape(message)) as error:
        load(entries)
    assert "relations.yaml" in str(error.value)


def test_damaged_files(load, entries, tmp_path):
    with pytest.raises(WordingError, match="cannot be read as YAML"):
        load("P36: [")
    with pytest.raises(WordingError, match="must hold relations"):
        load("")
    with pytest.raises(WordingError, match="cannot be read"):
        load_relations(tmp_path / "missing.yaml")
    with pytest.raises(WordingError, match="capital: this is not a property"):
        load({"capital": entries["P36"]})
    del entries["P36"]["phrase"]
    with pytest.raises(WordingError, match="P36: the keys must be"):
        load(entries)


@pytest.mark.parametrize(
    ("inner", "outer", "sensible"),
    [
        *((19, 17, True), (26, 19, True), (140, 17, False)),
        *((17, 17, False), (27, 17, False), (19, 138, False)),
    ],
)
def test_what_can_be_asked_of_an_answer(inner: int, outer: int, sensible: bool) -> None:
    """The country of a birthplace, the birthplace of a spouse, but no religion's country."""
    assert follows(RELATIONS[outer], RELATIONS[inner]) is sensible
