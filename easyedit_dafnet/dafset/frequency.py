"""Counts how often a corpus has each entity's label, for many GB of text and 100 million labels.

Text and labels are cut into the same tokens: a run of letters and digits is one, every other sign
but spaces is one. A label is found where its tokens stand side by side, upper and lower case as
they are: "St. John's" also across a line's end, "Paris" in "Paris's" and in "Paris Hilton", "York,
Maine" not in "York Maine". Of a label with more than 8 tokens the first 8 are counted. Languages
written without spaces are not cut into words, so that most of their labels are not found.

Instead of its text each run of tokens is known by a number of 64 bits, made of those of its tokens.
For 100 million labels in 10 GB of text, chance makes one of two different runs equal less than once
in a hundred corpora.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from .dump import Archive
from .packages import load
from .workspace import Sums, append, database, fetch, quoted, write

LOG = logging.getLogger(__name__)

LONGEST = 8  #: tokens of a label that are looked for
BLOCK = 2 << 20  #: bytes of text
LABELS = 100_000  #: of a batch
PENDING = 4_000_000  #: numbers in memory, above which they go to the database
MOST_BITS = 31  #: of the filter's size: 256 MB
_FACTOR = np.uint64(0x9E3779B97F4A7C15)  #: odd, so that no bit of a product is lost

_TOKEN = re.compile(r"[^\W_]+|[^\w\s]|_")

Numbers = NDArray[np.uint64]


def tokens(text: str) -> list[str]:
    """The words and signs of a text."""
    return _TOKEN.findall(text.replace("’", "'"))


def _hashed(words: list[str]) -> Numbers:
    """[n], a number for each; the same only within this process, which is all that is needed."""
    return np.fromiter(map(hash, words), np.int64, len(words)).view(np.uint64)


def _runs(words: Numbers) -> Iterator[Numbers]:
    """The numbers of all runs of 1, of 2, ... 8 tokens: [n], [n - 1], ... [n - 7]."""
    runs = words
    for length in range(1, min(LONGEST, len(words)) + 1):
        yield runs
        runs = runs[:-1] * _FACTOR + words[length:]


def _label_numbers(labels: list[str]) -> Numbers:
    """[n], the number of each label's first 8 tokens; 0 where it has none."""
    split = [tokens(label)[:LONGEST] for label in labels]
    words = _hashed([word for label in split for word in label])
    lengths = np.array([len(label) for label in split])
    starts = np.cumsum(lengths) - lengths
    numbers = np.zeros(len(labels), np.uint64)
    for i in range(LONGEST):
        has = lengths > i
        numbers[has] = numbers[has] * _FACTOR + words[starts[has] + i]
    return numbers


class _Filter:
    """Says of most numbers that are no label's that they are none; of a label's never."""

    def __init__(self, labels: int) -> None:
        # Two of 32 bits for a label; of 20 where memory allows no more, for 100 million.
        bits = min(MOST_BITS, max(16, (labels * 32).bit_length()))
        self.bits = np.zeros(1 << (bits - 3), np.uint8)
        self.mask = np.uint64((1 << bits) - 1)
        self.shifts = (np.uint64(0), np.uint64(64 - bits))

    def _place(self, numbers: Numbers, shift: np.uint64) -> tuple[Numbers, NDArray[np.uint8]]:
        """A byte for each number, and a bit in it."""
        place = numbers >> shift & self.mask
        return place >> np.uint64(3), np.uint8(1) << (place & np.uint64(7)).astype(np.uint8)

    def add(self, numbers: Numbers) -> None:
        for shift in self.shifts:
            byte, bit = self._place(numbers, shift)
            np.bitwise_or.at(self.bits, byte, bit)

    def select(self, numbers: Numbers) -> Numbers:
        """Those that may be a label's."""
        for shift in self.shifts:
            byte, bit = self._place(numbers, shift)
            numbers = numbers[self.bits[byte] & bit != 0]
        return numbers


class _Counts:
    """How often each number was found; what is too much for memory is in the database."""

    def __init__(self, sums: Sums) -> None:
        self.sums = sums
        self.pending: list[Numbers] = []

    def add(self, numbers: Numbers) -> None:
        self.pending.append(numbers)
        if sum(map(len, self.pending)) > PENDING:
            self.flush()

    def flush(self) -> None:
        if self.pending:
            self.sums.add(*np.unique(np.concatenate(self.pending), return_counts=True))
            self.sums.shrink()
            self.pending = []


def count_names(
    text_files: Iterable[str | Path],
    entities_glob: str | Path,
    out: str | Path,
    progress: bool = True,
) -> dict[str, Any]:
    """Write how often the text has the label of each entity.

    text_files: UTF-8, plain, .gz or .bz2; markup is read as text.
    entities_glob: the Parquet files of the table `entities`, with the columns id and label.
    out: the Parquet file (frequency.parquet): id int64, frequency int64; sorted by id. Only
        entities whose label was found; entities with one label have the same frequency.

    Returns:
        {"files": n, "bytes": n, "tokens": n, "labels": n, "found": n, "skipped": {reason: n}}
    """
    paths, out = [Path(path) for path in text_files], Path(out)
    if not paths:
        raise ValueError("No text is given: --text takes at least one file.")
    pattern = Path(entities_glob)
    tables = sorted(pattern.parent.glob(pattern.name))
    if not tables:
        raise FileNotFoundError(f"There is no table {pattern}: extract a dump first.")
    for path in paths:
        path.stat()  # a file that is missing is named before hours of work
    out.parent.mkdir(parents=True, exist_ok=True)
    with database(out.with_name(f".{out.name}.work")) as db:
        known, labels = _read_labels(db, tables, progress)
        counts = {"files": len(paths), "bytes": 0, "tokens": 0, "labels": labels}
        sums = Sums(db, "UBIGINT")
        skipped = _read_texts(paths, known, _Counts(sums), counts, progress)
        del known
        found = sums.query("number", "frequency")
        write(
            db, f"SELECT id, frequency FROM labels JOIN ({found}) USING (number) ORDER BY id", out
        )
        rows = fetch(db, f"SELECT count(*) FROM read_parquet({quoted(out)})")[0][0]
    return {**counts, "found": rows, "skipped": skipped}


def _read_labels(db: Any, tables: list[Path], progress: bool) -> tuple[_Filter, int]:
    """Fill the table `labels` (id, number); a filter of the numbers, and how many there are."""
    parquet = load("pyarrow.parquet")
    files = [parquet.ParquetFile(table) for table in tables]
    total = sum(file.metadata.num_rows for file in files)
    known = _Filter(total)
    db.execute("CREATE TABLE labels (id BIGINT, number UBIGINT)")
    with tqdm(total=total, desc="labels", unit="label", disable=not progress) as bar:
        for file in files:
            for batch in file.iter_batches(LABELS, columns=["id", "label"]):
                numbers = _label_numbers(batch.column("label").to_pylist())
                known.add(numbers)
                append(db, "labels", id=batch.column("id").to_numpy(), number=numbers)
                bar.update(len(numbers))
            file.close()
    return known, total


def _read_texts(
    paths: list[Path], known: _Filter, found: _Counts, counts: dict[str, int], progress: bool
) -> dict[str, int]:
    """Count what may be a label; returns what was skipped. A run across two blocks is lost."""
    broken = 0
    total = sum(path.stat().st_size for path in paths)
    with tqdm(total=total, desc="text", unit="B", unit_scale=True, disable=not progress) as bar:
        for path in paths:
            begin = bar.n
            with Archive(path) as archive:
                for block in archive.blocks(BLOCK, end=b" "):
                    words = _hashed(tokens(block.decode("utf-8", "replace")))
                    for runs in _runs(words):
                        found.add(known.select(runs))
                    counts["bytes"] += len(block)
                    counts["tokens"] += len(words)
                    bar.update(begin + archive.position() - bar.n)
            if archive.problem:
                LOG.warning("%s is cut off or damaged: what comes before is counted.", path)
                broken += 1
    found.flush()
    return {"truncated archive": broken} if broken else {}
