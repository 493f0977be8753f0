"""Plain text: to measure perplexity on, and for methods that want second moments of activations.

Without a file of the user's, it is the prose of Python's own documentation that comes with every
Python (`pydoc_data.topics`): some 36,000 words that need no download. It is technical, of one
style, and most models have read it in training; perplexities on it compare models edited from one
model, and say little about text at large. It also differs from one version of Python to another,
so `text_name` names the version.

No passage serves both purposes: the first tenth of the words is for perplexity, the rest for
moments. A method whose statistics come from the text it is judged on would have an advantage.
"""

from __future__ import annotations

import platform
import re
from collections.abc import Iterable
from hashlib import sha256
from itertools import accumulate
from pathlib import Path

from .edit_requests import RequestError
from .record_files import read_text

PERPLEXITY_SHARE = 0.1
"""Share of the words that is kept for perplexity."""

MIN_WORDS = 20
"""Blocks of so many words or fewer are headings, list entries, captions: no passages."""

WRAPPED_WIDTH = 200
"""No line of a text that is wrapped by hand is longer, in characters."""


def passages(path: str | Path | None = None) -> list[str]:
    """All passages of a UTF-8 text file, each once and in order; None: of the embedded text.

    Where no line is longer than 200 characters, blank lines separate paragraphs, whose lines are
    joined. Otherwise, and in a file without blank lines, each line is a paragraph (WikiText).
    Raises RequestError where the file is missing, not text, or has fewer than two passages.
    """
    found = _embedded() if path is None else _from_file(Path(path))
    if len(found) < 2:
        raise RequestError(
            f"The text {str(path)!r} has {len(found)} paragraphs of more than {MIN_WORDS} words; "
            "at least two are needed."
        )
    return found


def perplexity_passages(path: str | Path | None = None) -> list[str]:
    """The first tenth, at least one passage."""
    return _split(passages(path))[0]


def moment_passages(path: str | Path | None = None) -> list[str]:
    """All others."""
    return _split(passages(path))[1]


def text_name(path: str | Path | None = None) -> str:
    """What the results say about the text: its origin, or the file's name and checksum."""
    if path is None:
        return f"documentation of Python {platform.python_version()} (pydoc_data.topics)"
    return f"{Path(path).name} (sha256 {sha256(_read(Path(path)).encode()).hexdigest()[:16]})"


def _embedded() -> list[str]:
    try:
        from pydoc_data.topics import topics
    except ImportError:
        raise RequestError(
            "This Python comes without its documentation (pydoc_data.topics); name a text file."
        ) from None
    blocks = (block for name in sorted(topics) for block in _blocks(topics[name]))
    # Topics share sections; examples and grammar do not end like sentences.
    return [passage for passage in _paragraphs(blocks) if passage.endswith((".", ":", ".)"))]


def _from_file(path: Path) -> list[str]:
    return _paragraphs(_blocks(_read(path)))


def _read(path: Path) -> str:
    if not path.is_file():
        raise RequestError(f"There is no text file {str(path)!r}.")
    return read_text(path).replace("\r\n", "\n").replace("\r", "\n")


def _blocks(text: str) -> list[str]:
    lines = text.strip().splitlines()
    blocks = re.split(r"\n[^\S\n]*\n", "\n".join(lines))
    wrapped = len(blocks) > 1 and max(map(len, lines)) <= WRAPPED_WIDTH
    return blocks if wrapped else lines


def _paragraphs(blocks: Iterable[str]) -> list[str]:
    """On one line each, without those that are too short and without repetitions."""
    # A line that ends in a hyphen broke a word.
    lines = (" ".join(re.sub(r"(?<=\w-)\n\s*", "", block).split()) for block in blocks)
    return list(dict.fromkeys(line for line in lines if len(line.split()) > MIN_WORDS))


def _split(found: list[str]) -> tuple[list[str], list[str]]:
    words = list(accumulate(len(passage.split()) for passage in found))
    first = sum(count <= PERPLEXITY_SHARE * words[-1] for count in words)
    first = min(max(first, 1), len(found) - 1)
    return found[:first], found[first:]
