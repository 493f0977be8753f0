"""What an edit is about: its subject, as given or guessed, and where the prompt names it."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Mapping
from typing import Any

from .prompts import is_unspaced, question

Span = tuple[int, int]  # of characters, the second behind the last one

# Quotes and dashes that keyboards and word processors put in each other's place.
_ALIKE = str.maketrans(
    dict.fromkeys("‘’‚‛ʼʹ′`´", "'") | dict.fromkeys("“”„‟«»″", '"') | dict.fromkeys("‐‑‒–—―−", "-")
)


def folded(text: str) -> tuple[str, list[Span]]:
    """The text without what two spellings of one name may differ in.

    That is case, the composition of accents, width, the kinds of quotes, dashes and white space,
    and characters that are not seen.

    Returns:
        The folded text, and for each of its characters the span that it comes from.
    """
    kept: list[tuple[str, Span]] = []
    start = 0
    while start < len(text):
        end = start + 1
        while end < len(text) and unicodedata.combining(text[end]):
            end += 1
        part = unicodedata.normalize("NFKC", text[start:end]).translate(_ALIKE).casefold()
        for character in unicodedata.normalize("NFC", part):
            character = " " if character.isspace() else character
            if character == " " and kept and kept[-1][0] == " ":
                kept[-1] = (" ", (kept[-1][1][0], end))
            elif unicodedata.category(character) not in {"Cf", "Cc"}:
                kept.append((character, (start, end)))
        start = end
    return "".join(character for character, _ in kept), [span for _, span in kept]


def find_subject(prompt: str, subject: str) -> list[Span]:
    """Where the prompt has the subject as words of its own, first to last.

    "Iran" is not in "Iranian". Where the prompt does not have the subject's very letters, another
    spelling of them counts: see `folded`.
    """
    subject = subject.strip()
    if found := [span for span in _occurrences(prompt, subject) if _is_whole(prompt, span)]:
        return found
    (text, places), (wanted, _) = folded(prompt), folded(subject)
    spans = (
        (places[start][0], places[end - 1][1]) for start, end in _occurrences(text, wanted.strip())
    )
    return [span for span in spans if _is_whole(prompt, span)]


def _occurrences(text: str, part: str) -> Iterator[Span]:
    start = text.find(part) if part else -1
    while start >= 0:
        yield start, start + len(part)
        start = text.find(part, start + 1)


def _is_whole(text: str, span: Span) -> bool:
    """Whether no word goes on over the span's borders."""
    start, end = span
    before = start > 0 and _joined(text[start - 1], text[start])
    return not before and not (end < len(text) and _joined(text[end - 1], text[end]))


def _joined(first: str, second: str) -> bool:
    """Whether two neighbouring characters are of one word."""
    if unicodedata.combining(second):
        return True
    # Korean particles follow a name without a space, as all words do in scripts without spaces.
    loose = any(
        is_unspaced(c) or unicodedata.name(c, "").startswith("HANGUL") for c in first + second
    )
    return not loose and all(c.isalnum() or c == "_" for c in (first, second))


# Words that may stand inside a name, and those that are none, capitalised or not.
_INSIDE = r"(?:of|the|de|la|du|van|von|der|and|for|in|on|at|to|y|e|&)"
_NAME = re.compile(rf"[A-Z0-9][\w'’.:!-]*(?:,? {_INSIDE}(?= )| ?[A-Z0-9&][\w'’.:!-]*| [IVX]+)*")
_VERB = "is|are|was|were|be|been|has|have|had|do|does|did|can|could|will|would|may"
_SMALL = (
    f"{_VERB}|what|who|whom|whose|which|where|when|why|how|the|a|an|in|on|at|by|of|to|from|for|with|"
    "as|and|or|during|after|before|if|it|its|he|his|she|her|they|their|we|our|you|your|i|my|this|"
    "that|these|those|there|not|called|named|known|located|born"
)


def _is(kind: str, word: str) -> bool:
    return re.fullmatch(kind, word.strip(",;"), re.IGNORECASE) is not None


def guess_subject(prompt: str) -> str:
    """What a prompt is about, where nobody says so: its longest name, a first word only if alone.

    A name is a run of capitalised words, with small ones such as "of" between them. Without one it
    is the last run of words before the verb that are not small.

    Returns:
        Words of the prompt, of its last question if it is in chat form; "" where none can be told,
        as in scripts without spaces.
    """
    prompt = question(prompt)
    names = []
    for match in _NAME.finditer(prompt):
        words = match[0].split(" ")
        while words and _is(_SMALL, words[0]):
            words = words[1:]
        if name := " ".join(words).rstrip(",.:!?"):
            names.append((match.start() > 0, re.sub(r"['’]s$", "", name)))
    inside = [name for is_inside, name in names if is_inside or " " in name]
    if found := inside or [name for _, name in names]:
        return max(found, key=len)
    words = prompt.rstrip(" .:?!").split(" ")
    small = [_is(_SMALL, word) for word in words]
    for end in reversed([i for i, word in enumerate(words) if _is(_VERB, word)]):
        if not all(small[:end]):
            words, small = words[:end], small[:end]
            break
    while small and small[-1]:
        words, small = words[:-1], small[:-1]
    start = max((i + 1 for i, is_small in enumerate(small) if is_small), default=0)
    guess = " ".join(words[start:])
    whole = guess == prompt.strip(" .:?!") and (" " in guess or any(map(is_unspaced, guess)))
    return "" if whole else guess


def subject_spans(request: Mapping[str, Any], guess: bool = False) -> list[Span]:
    """Where the request's prompt has its subject, which is guessed where none is given.

    Args:
        request: with a text as its `prompt`.
        guess: whether another subject is guessed where the prompt does not have the given one.

    Returns:
        Spans of characters, first to last, at least one.

    Raises:
        ValueError: the prompt does not have the subject, or none can be guessed.
    """
    prompt, subject = request["prompt"], str(request.get("subject") or "").strip()
    if spans := find_subject(prompt, subject):
        return spans
    if subject and not guess:
        inside = " but inside other words" if folded(subject)[0] in folded(prompt)[0] else ""
        raise ValueError(
            f"the subject {subject!r} is not in the prompt {prompt!r}{inside}; give the words of "
            "the prompt that name what the fact is about, or no subject, or set `subject: guess`"
        )
    guessed = guess_subject(prompt)
    if not (spans := find_subject(prompt, guessed)):
        raise ValueError(
            f"no subject is given, and none can be told from the prompt {prompt!r}; give the words "
            "of it that name what the fact is about"
        )
    return spans
