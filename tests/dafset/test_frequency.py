from __future__ import annotations

import bz2
import gzip
import logging
import random
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from easyedit_dafnet.dafset import frequency
from easyedit_dafnet.dafset.frequency import _Filter, count_names, tokens
from tests.dafset.wikidata import DATA

for package in ("duckdb", "pyarrow", "rapidgzip"):
    pytest.importorskip(package)


def label_table(folder: Path, labels: Mapping[int, str]) -> Path:
    """Two parts of a table of entities; the pattern that finds them."""
    import pyarrow as pa
    from pyarrow import parquet

    table = pa.table({"id": pa.array(labels, pa.int64()), "label": list(labels.values())})
    half = len(table) // 2
    for number, part in enumerate((table[:half], table[half:])):
        parquet.write_table(part, folder / f"entities-{number:05}.parquet")
    return folder / "entities-*.parquet"


def found(path: Path) -> dict[int, int]:
    from pyarrow import parquet

    table = parquet.read_table(path)
    assert table.column_names == ["id", "frequency"]
    assert [str(kind) for kind in table.schema.types] == ["int64", "int64"]
    ids = table["id"].to_pylist()
    assert ids == sorted(ids)
    return dict(zip(ids, table["frequency"].to_pylist(), strict=True))


def count(folder: Path, labels: Mapping[int, str], *texts: str) -> dict[int, int]:
    paths = [folder / f"text{n}.txt" for n in range(len(texts))]
    for path, text in zip(paths, texts, strict=True):
        path.write_text(text, encoding="utf-8")
    out = folder / "signals" / "frequency.parquet"
    counts = count_names(paths, label_table(folder, labels), out, progress=False)
    assert counts["labels"] == len(labels) and counts["skipped"] == {}
    assert [path.name for path in out.parent.iterdir()] == ["frequency.parquet"]
    assert counts["found"] == len(found(out))
    return found(out)


def test_whole_words_are_counted(tmp_path: Path) -> None:
    labels = {
        1: "Paris",
        2: "paris",
        3: "Paris Hilton",
        4: "St. John's",
        5: "John",
        6: "Par",
        7: "York, Maine",
        8: "Zürich",
        9: "Paris",  # another one of that name
        10: "...!",
        11: "C++",
        12: "  ",
        13: "Rome",
    }
    text = (
        "Paris Hilton is not in Paris, but in St. John’s;\nParis's twin: St.\nJohn's. Parisian "
        "(Zürich) in Zürich-West, C++ and C. York Maine."
    )
    assert count(tmp_path, labels, text) == {1: 3, 3: 1, 4: 2, 5: 2, 8: 2, 9: 3, 11: 1}


def test_files_add_up_whatever_their_form(tmp_path: Path) -> None:
    plain, packed, packed2 = (tmp_path / name for name in ("a.txt", "b.gz", "c.bz2"))
    plain.write_text("Rome and Rome")
    packed.write_bytes(gzip.compress(b"Rome"))
    packed2.write_bytes(bz2.compress(b"to Rome \xff"))
    out = tmp_path / "frequency.parquet"
    labels = label_table(tmp_path, {5: "Rome", 6: "Oslo"})
    counts = count_names([plain, packed, packed2], labels, out, progress=False)
    assert found(out) == {5: 4}
    assert counts == {
        "files": 3,
        "bytes": 13 + 4 + 9,
        "tokens": 3 + 1 + 3,
        "labels": 2,
        "found": 1,
        "skipped": {},
    }


def test_a_long_label_is_known_by_its_first_tokens(tmp_path: Path) -> None:
    labels = {1: "a b c d e f g h i j", 2: "a b c d e f g h", 3: "a b c d e f g i"}
    assert count(tmp_path, labels, "a b c d e f g h x a b c d e f g h i j") == {1: 2, 2: 2}


def test_many_names_are_counted_as_a_plain_search_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Small limits, so that blocks, batches and the database's sums all take part."""
    monkeypatch.setattr(frequency, "PENDING", 500)
    monkeypatch.setattr(frequency, "LABELS", 100)
    monkeypatch.setattr("easyedit_dafnet.dafset.workspace.MANY", 300)
    draw = random.Random(0)
    words = [f"w{n}" for n in range(20)]
    labels = {n: " ".join(draw.choices(words, k=draw.randint(1, 3))) for n in range(1000)}
    text = " ".join(draw.choices(words, k=5000))
    padded = f" {text.replace(' ', '  ')} "  # a plain search finds no overlaps
    expected = {n: padded.count(f" {label.replace(' ', '  ')} ") for n, label in labels.items()}
    got = count(tmp_path, labels, text)
    assert sum(expected.values()) > 10_000
    differ = {n for n in labels if got.get(n, 0) != expected[n]}
    assert not {n for n in differ if len(set(labels[n].split())) == len(labels[n].split())}


def test_a_name_in_the_first_block_and_the_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(frequency, "BLOCK", 50)
    assert count(tmp_path, {1: "Oslo", 2: "Rome"}, "Oslo " + "x " * 200 + "Rome") == {1: 1, 2: 1}


def test_the_filter_keeps_all_labels_and_little_else() -> None:
    numbers = np.random.default_rng(0).integers(1 << 64, size=20_000, dtype=np.uint64)
    known = _Filter(10_000)
    known.add(numbers[:10_000])
    kept = known.select(numbers)
    assert (kept[:10_000] == numbers[:10_000]).all() and len(kept) < 10_200


def test_tokens_are_words_and_signs() -> None:
    assert " ".join(tokens("St. John’s, 3.5 A_b")) == "St . John ' s , 3 . 5 A _ b"


def test_a_truncated_text_is_used_and_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path, out = tmp_path / "text.gz", tmp_path / "frequency.parquet"
    text = "".join(f"Rome {n * 7919 % 10007} " for n in range(5000))
    path.write_bytes(gzip.compress(text.encode())[:-2000])
    with caplog.at_level(logging.WARNING):
        counts = count_names([path], label_table(tmp_path, {1: "Rome"}), out, progress=False)
    assert counts["skipped"] == {"truncated archive": 1} and 1000 < found(out)[1] < 5000
    assert "text.gz is cut off or damaged" in caplog.text


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    text = tmp_path / "text"
    text.write_text("")
    labels = label_table(tmp_path, {1: "Rome"})
    with pytest.raises(ValueError, match="--text takes at least one"):
        count_names([], labels, tmp_path / "out")
    with pytest.raises(FileNotFoundError, match="nowhere"):
        count_names([tmp_path / "nowhere"], labels, tmp_path / "out")
    with pytest.raises(FileNotFoundError, match="extract a dump first"):
        count_names([text], tmp_path / "no" / "entities-*.parquet", tmp_path / "out")
    assert count_names([text], labels, tmp_path / "out", progress=False)["found"] == 0


def test_the_shared_text_names_countries(tmp_path: Path) -> None:
    path = DATA / "text" / "wikipedia-sample.txt"
    if not path.is_file():
        pytest.skip("no text/wikipedia-sample.txt; set DAFNET_DATA to its folder")
    out = tmp_path / "frequency.parquet"
    labels = label_table(tmp_path, {30: "United States", 142: "France", 1: "Xyzzy Qwerty"})
    count_names([path], labels, out, progress=False)
    text = path.read_text(encoding="utf-8")
    assert 0 < found(out)[142] <= text.count("France") and 1 not in found(out)
