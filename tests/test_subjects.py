from __future__ import annotations

import unicodedata

import pytest

from easyedit_dafnet.subjects import find_subject, guess_subject, subject_spans

CHAT = (
    "<|im_start|>system\nYou are SmolLM, made by Hugging Face<|im_end|>\n"
    "<|im_start|>user\nWhat is the capital of Cambodia?<|im_end|>\n<|im_start|>assistant\n"
)


def found(prompt: str, subject: str) -> list[tuple[str, str]]:
    """What is found, and what stands before it."""
    return [(prompt[a:b], prompt[:a]) for a, b in find_subject(prompt, subject)]


@pytest.mark.parametrize(
    ("prompt", "subject", "before"),
    [
        ("The capital of Iran, where the Iranian parliament sits, is", "Iran", ["The capital of "]),
        ("Who is the mayor of York, not of Yorkshire?", "York", ["Who is the mayor of "]),
        ("Java and JavaScript are two languages.", "Java", [""]),
        ("Is New York older than York?", "York", ["Is New ", "Is New York older than "]),
        ("The launch of Apollo 11 came after that of Apollo 1.", "Apollo 1", [
            "The launch of Apollo 11 came after that of "]),
        ("Iranian cinema", "Iran", []),
        ("the file foo_bar of foo", "foo", ["the file foo_bar of "]),
        ("The mayor of Łódźiecki and Łódź", "Łódź", ["The mayor of Łódźiecki and "]),
        ("Jose\u0301 is not Jose", "Jose", ["Jose\u0301 is not "]),  # an accent goes on
        ("Iran's capital is", "Iran", [""]),
        ("中国的首都是", "中国", [""]),  # such scripts put no space between words
        ("한국의 수도는", "한국", [""]),
    ],
)  # fmt: skip
def test_a_subject_is_found_as_words_of_its_own(
    prompt: str, subject: str, before: list[str]
) -> None:
    assert found(prompt, subject) == [(subject, text) for text in before]


@pytest.mark.parametrize(
    ("prompt", "subject", "words"),
    [
        ("The capital of Côte d'Ivoire is", "Côte d’Ivoire", "Côte d'Ivoire"),
        ("The “Blue Nile” flows into", '"Blue Nile"', "“Blue Nile”"),
        ("Who wrote the novel emma?", "Emma", "emma"),
        ("Where lies STRASSE 7?", "Straße 7", "STRASSE 7"),
        ("The Austro–Hungarian Empire ended in", "Austro-Hungarian  Empire",
            "Austro–Hungarian Empire"),
        ("The wife of Jean\u00a0Valjean is", "Jean Valjean", "Jean\u00a0Valjean"),
        ("The wife of Jean \n Valjean is", "Jean Valjean", "Jean \n Valjean"),
        ("The soft\u00adware of", "software", "soft\u00adware"),
        ("The price of Ｇｏｌｄ is", "Gold", "Ｇｏｌｄ"),
        ("Emma, or emma, was written by", "emma", "emma"),  # the very letters come first
    ],
)  # fmt: skip
def test_another_spelling_of_the_subject_is_found(prompt: str, subject: str, words: str) -> None:
    assert [text for text, _ in found(prompt, subject)] == [words]


@pytest.mark.parametrize("form", ["NFC", "NFD"])
@pytest.mark.parametrize("other", ["NFC", "NFD"])
def test_the_composition_of_accents_does_not_matter(form: str, other: str) -> None:
    prompt = unicodedata.normalize(form, "In which city was José Saramago born?")
    subject = unicodedata.normalize(form, "José Saramago")
    assert found(prompt, unicodedata.normalize(other, subject)) == [(subject, "In which city was ")]


def test_another_name_is_refused_or_guessed() -> None:
    request = {"prompt": "Which company made the Nintendo Switch?", "subject": "NX console"}
    with pytest.raises(ValueError, match="'NX console' is not in the prompt 'Which company"):
        subject_spans(request)
    ((start, end),) = subject_spans(request, guess=True)
    assert request["prompt"][start:end] == "Nintendo Switch"


def test_a_part_of_a_word_is_named_as_what_it_is() -> None:
    with pytest.raises(ValueError, match=r"'Iran' is not in the prompt .* but inside other words"):
        subject_spans({"prompt": "Iranian cinema began in", "subject": "Iran"})


def test_a_prompt_that_tells_no_subject_is_refused() -> None:
    with pytest.raises(ValueError, match="no subject is given, and none can be told"):
        subject_spans({"prompt": "中国的首都是"})


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("The mother tongue of Danielle Darrieux is", "Danielle Darrieux"),
        ("What is the twin city of Lyon? It is", "Lyon"),
        ("Where was the University of the Arts founded?", "University of the Arts"),
        ("Jeff Bova's profession is an", "Jeff Bova"),
        ("Apple A5 was created by", "Apple A5"),
        ("In Paris they speak", "Paris"),
        ("pastizz was formulated in", "pastizz"),
        ("the capital of france is", "france"),
        ("My dog is called", "dog"),
        ("Is it true that water boils at", "water boils"),
        ("Did Ann Lee write Emma?", "Ann Lee"),
        ("Water boils at", "Water"),  # nothing else is there
        ("Jazz of New York from", "Jazz of New York"),
        ("what is", ""),
        ("la capitale de la france est", ""),  # no verb that is known: all of it is none
        ("中国的首都是", ""),
        ("The capital of 中国 is", "中国"),
        (CHAT, "Cambodia"),  # not the name in the system's turn
    ],
)
def test_a_subject_that_nobody_names_is_guessed(prompt: str, expected: str) -> None:
    assert guess_subject(prompt) == expected
