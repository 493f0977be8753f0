"""What a generated text says: where it stops, and whether it gives an answer."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Iterable, Sequence

_LINE_OR_SENTENCE = re.compile(r"\n|[.!?]+[\"'”’)\]]*(?=\s)|[。！？]")
_AT_THE_END = re.compile(r"[.!?]+[\"'”’)\]]*\s*$")
# A period after an initial or one of these does not end a sentence: "St. Louis", "J. K. Rowling".
_ABBREVIATED = re.compile(r"(?:^|[\s(])(?:(?:[^\W\d_]\.)*[A-Z]|St|Mt|Ft|Dr|Mr|Mrs|Ms|Jr|Sr|No|vs)$")


def natural_stop(text: str) -> int | None:
    """Where a generated text stops for certain: a new line, or a sentence that ends before a space.

    Leading white space is no text yet. None if it may go on.
    """
    start = len(text) - len(text.lstrip())
    for match in _LINE_OR_SENTENCE.finditer(text, start):
        if not (text[match.start()] == "." and _ABBREVIATED.search(text[start : match.start()])):
            return match.start()
    return None


def said(text: str) -> str:
    """A generated text up to its first stop, without white space around it."""
    text = text[: natural_stop(text)].strip().rstrip("\N{REPLACEMENT CHARACTER}")
    return _AT_THE_END.sub("", text).strip()


def can_be_said(answer: str) -> bool:
    """Whether a generated text can hold the whole answer: not what goes on after a stop."""
    return normalise(said(answer)) == normalise(answer)


def normalise(text: str) -> str:
    """Lower case, no ASCII punctuation, no articles, single spaces.

    As the evaluation of SQuAD (arXiv 1606.05250) does, but articles stay where nothing else is.
    """
    text = "".join(c for c in text.lower() if c not in string.punctuation)
    without = " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())
    return without or " ".join(text.split())


def exact_match(text: str, answers: Iterable[str]) -> float:
    return float(normalise(text) in {normalise(answer) for answer in answers})


def token_f1(text: str, answers: Iterable[str]) -> float:
    """Harmonic mean of the words' precision and recall, for the answer where it is highest."""
    return max(_f1(normalise(text).split(), normalise(answer).split()) for answer in answers)


def _f1(found: Sequence[str], wanted: Sequence[str]) -> float:
    if not found or not wanted:
        return float(found == wanted)
    shared = (Counter(found) & Counter(wanted)).total()
    return 2 * shared / (len(found) + len(wanted))


# Not the comma or point within a number.
_BORDER = re.compile(r"(?!(?<=\d)[.,](?=\d))[^\w-]|$")


def begins(text: str, answers: Iterable[str]) -> float:
    """Whether the text opens with an answer that ends where a word does.

    What a cloze prompt can be judged by, because a model goes on after the answer.
    """
    wanted = {normalise(answer) for answer in answers} - {""}
    borders = [m.start() for m in _BORDER.finditer(text)]
    return float(any(normalise(text[:end]) in wanted for end in borders))


def first_word(text: str) -> str:
    return " ".join(normalise(text).split()[:1])
