from __future__ import annotations

import os
import platform
from pathlib import Path

import pytest

from easyedit_dafnet.edit_requests import RequestError
from easyedit_dafnet.text import (
    moment_passages,
    passages,
    perplexity_passages,
    text_name,
)


def sentence(name: str, words: int = 24) -> str:
    return " ".join(f"{name}{i}" for i in range(words - 1)) + " end."


def write(folder: Path, text: str) -> Path:
    path = folder / "text.txt"
    path.write_text(text, encoding="utf-8")
    return path


def test_blank_lines_separate_wrapped_paragraphs(tmp_path: Path) -> None:
    words = sentence("a").split()
    wrapped = " ".join(words[:10]) + "\n" + " ".join(words[10:])
    broken = sentence("b").replace("b3 ", "well-\n  known ")
    path = write(tmp_path, f"Title\n=====\n\n{wrapped}\n\n\n{broken}\n")
    assert passages(path) == [sentence("a"), sentence("b").replace("b3 ", "well-known ")]


def test_wikitext(tmp_path: Path) -> None:
    """Lines of a single space around headings, and paragraphs without such lines between."""
    long = sentence("c", words=90)
    path = write(
        tmp_path,
        f" \n = One = \n \n {sentence('a')} \n \n = = Two = = \n \n {sentence('b')} \n {long} \n ",
    )
    assert passages(path) == [sentence("a"), sentence("b"), long]


def test_without_blank_lines_each_line_is_a_paragraph(tmp_path: Path) -> None:
    path = write(tmp_path, f"{sentence('a')}\nshort\n{sentence('b')}\n")
    assert passages(path) == [sentence("a"), sentence("b")]


@pytest.mark.parametrize("count", [2, 3, 10, 100])
def test_perplexity_and_moments_share_no_passage(tmp_path: Path, count: int) -> None:
    texts = [sentence(f"p{i}x") for i in range(count)]
    path = write(tmp_path, "\n\n".join(texts + texts[:1]))
    first, rest = perplexity_passages(path), moment_passages(path)
    assert first + rest == texts
    assert len(first) == max(1, count // 10)


def test_the_embedded_text_is_prose_and_enough() -> None:
    first, rest = perplexity_passages(), moment_passages()
    assert not set(first) & set(rest)
    words = [sum(len(p.split()) for p in part) for part in (first, rest)]
    assert 0.09 < words[0] / sum(words) <= 0.1
    # Second moments of 1,536 inputs want ten times as many tokens.
    assert words[1] > 25_000
    letters = "".join(first + rest)
    assert sum(c.isalpha() or c == " " for c in letters) > 0.9 * len(letters)
    assert not any("\n" in p or ">>>" in p or "::=" in p for p in first + rest)


def test_results_name_the_text(tmp_path: Path) -> None:
    assert platform.python_version() in text_name() and "pydoc_data" in text_name()
    name = text_name(write(tmp_path, "a"))
    assert name.startswith("text.txt (sha256 ") and name != text_name(write(tmp_path, "b"))


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (None, "There is no text file"),
        ("Some words".encode("utf-16"), "is in UTF-16; save it in UTF-8"),
        ("Some\nw\xf6rds".encode("latin-1"), "line 2 has the byte 0xf6; save it in UTF-8"),
        (b"A title\n\nA few words.", "has 0 paragraphs of more than 20 words"),
        (sentence("a").encode(), "has 1 paragraphs"),
    ],
)
def test_a_useless_file_is_named(tmp_path: Path, content: bytes | None, problem: str) -> None:
    path = tmp_path / "text.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(RequestError, match=problem) as error:
        perplexity_passages(path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize("name", ["wikitext2-valid.txt", "wikipedia-sample.txt"])
def test_published_texts_are_cut_into_paragraphs(name: str) -> None:
    data = os.environ.get("DAFNET_DATA") or Path(__file__).parents[2] / "shared" / "data"
    path = Path(data) / "text" / name
    if not path.is_file():
        pytest.skip(f"no text/{name}; set DAFNET_DATA to its folder")
    found = passages(path)
    lengths = sorted(len(passage.split()) for passage in found)
    assert len(found) > 1000 and 50 < lengths[len(found) // 2] < 200
    assert not any(passage.startswith("=") for passage in found)
