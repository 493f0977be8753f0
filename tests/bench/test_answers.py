from __future__ import annotations

import pytest

from easyedit_dafnet.bench.answers import (
    begins,
    exact_match,
    first_word,
    natural_stop,
    normalise,
    said,
    token_f1,
)


@pytest.mark.parametrize(
    ("generated", "text"),
    [
        (" Paris", "Paris"),
        (" Paris. It is large", "Paris"),
        (" Paris.", "Paris"),
        (" Paris\nLondon", "Paris"),
        ("\n\n Paris\nLondon", "Paris"),
        (" Is it Paris? Yes", "Is it Paris"),
        (' "Paris." He said', '"Paris'),
        (" version 3.5 of it", "version 3.5 of it"),
        (" St. Louis. It is", "St. Louis"),
        (" J. R. R. Tolkien. He", "J. R. R. Tolkien"),
        (" the U.S. Army. It", "the U.S. Army"),
        (" Paris!! So", "Paris"),
        (" 東京。 それ", "東京"),
        (" Par\N{REPLACEMENT CHARACTER}", "Par"),
        (" ", ""),
        ("", ""),
    ],
)
def test_a_text_ends_at_its_first_line_or_sentence(generated: str, text: str) -> None:
    assert said(generated) == text


def test_a_period_stops_a_text_only_when_it_is_known_to_end_a_sentence() -> None:
    assert natural_stop(" version 3.") is None, "3.5 may follow"
    assert natural_stop(" Paris. ") == 6
    assert natural_stop("\n \n") is None, "nothing has been said yet"
    assert natural_stop("\nParis\n") == 6


def test_words_are_compared_without_case_articles_and_punctuation() -> None:
    assert normalise("The  U.S. Army, a force!") == "us army force"
    assert normalise("Theatre") == "theatre"
    assert normalise("A") == "a", "an answer may be nothing but an article"
    assert exact_match("The Hague", ["Hague"]) == 1
    assert exact_match("The Hague is", ["Hague"]) == 0
    assert exact_match("NYC", ["New York", "nyc"]) == 1


def test_token_f1_is_the_best_over_the_answers() -> None:
    # Two of three found words are wanted, two of four wanted words found: 2 / 3.5.
    assert token_f1("new york state", ["New York in America"]) == pytest.approx(4 / 7)
    assert token_f1("new york state", ["Boston", "York"]) == pytest.approx(2 / 4)
    assert token_f1("york york", ["York"]) == pytest.approx(2 / 3), "a word counts once"
    assert token_f1("Paris", ["Rome"]) == 0
    assert token_f1("", [""]) == 1
    assert token_f1("", ["Rome"]) == 0


@pytest.mark.parametrize(
    ("text", "answers", "expected"),
    [
        ("French, and she speaks it well", ["French"], 1),
        ("the French language", ["French"], 1),
        ("Frenchman", ["French"], 0),
        ("Guinea-Bissau", ["Guinea"], 0),
        ("France's president", ["France"], 1),
        ("U.S. troops", ["US"], 1),
        ("New York City", ["York"], 0),
        ("New York City", ["Boston", "New York"], 1),
        ("", ["French"], 0),
        ("", ["!"], 0),
        ("A positive", ["A"], 1),
    ],
)
def test_a_text_begins_with_whole_words(text: str, answers: list[str], expected: float) -> None:
    assert begins(text, answers) == expected


def test_the_first_word_is_no_article() -> None:
    assert first_word("The French, of course") == "french"
    assert first_word("") == ""


def test_a_number_is_not_opened_by_its_beginning() -> None:
    assert begins("1,000 people", ["1"]) == begins("3.5 km", ["3"]) == 0
    assert begins("1,000 people", ["1,000"]) == begins("1, of course", ["1"]) == 1
