"""Data sets of edits by name or file, in any of the layouts in which they are published.

>>> records = read_edits("counterfact-edit.json")  # the layout is found by the records' keys
>>> records = data_source("zsre=zsre_mend_eval.json").read()
>>> records = data_source("facts").read()  # the embedded ones, without a file

A data set in a layout of its own is read by a function (path) -> list[EditRecord], made known by
`register_data` or by an entry point of the group ``easyedit_dafnet.data``.
"""

from __future__ import annotations

import difflib
import importlib.metadata
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from ..edit_records import EditRecord
from ..edit_requests import RequestError
from ..facts import load_facts
from ..layouts import (
    LAYOUTS,
    Fields,
    Layout,
    Notes,
    converters,
    layout_of,
    read_each,
)
from ..record_files import load_records
from ..record_values import needed_text


def read_edits(path: str | Path, layout: str | None = None) -> list[EditRecord]:
    """All records of a .json, .jsonl or .csv file.

    Records that a layout is known to hold but nobody can edit are left out, with a warning that
    counts them.

    Args:
        path: of the file.
        layout: one of LAYOUTS; None finds it by the records' keys.

    Raises:
        RequestError: naming the file and what is wrong with which of its records.
    """
    records = load_records(path)
    if layout is not None and layout not in LAYOUTS:
        raise RequestError(f"There is no layout {layout!r}; known: {', '.join(LAYOUTS)}.")
    first = LAYOUTS[layout] if layout else _layout(path, records[0])
    layouts = [first if layout else layout_of(record, first) or first for record in records]
    convert = converters(records, layouts)

    def read(i: int, notes: Notes) -> list[Fields]:
        found, record = layouts[i], records[i]
        try:
            for key in found.needed:
                needed_text(record.get(key), key)
        except RequestError as error:
            raise found.error(error) from None
        return convert[found](record, notes)

    read_fields = read_each(records, read, leave_out=True, where=str(path))
    ids = _ids(records, [i for i, _ in read_fields])
    return [EditRecord(id=id, **fields) for id, (_, fields) in zip(ids, read_fields, strict=True)]


def _layout(path: str | Path, record: Mapping[str, Any]) -> Layout:
    if found := layout_of(record):
        return found
    known = "; ".join(f"{known.name}: {', '.join(known.keys)}" for known in LAYOUTS.values())
    raise RequestError(
        f"{path} is in no known layout. The first record's keys are: "
        f"{', '.join(record) or 'none'}. Layouts and the keys by which they are known: {known}."
    )


def _ids(records: Sequence[Mapping[str, Any]], places: Sequence[int]) -> list[str]:
    """For each edit: its record's own number where each record has another one, or else its place.

    Several edits of one record are counted behind it.

    Args:
        records: all of a file.
        places: of the record that each edit comes from.
    """
    own = [record.get("case_id") for record in records]
    numbers = [str(number) if isinstance(number, (str, int)) else "" for number in own]
    if not all(numbers) or len(set(numbers)) < len(numbers):
        numbers = [str(i) for i in range(len(records))]
    edits, seen = Counter(places), Counter[int]()
    ids = []
    for i in places:
        seen[i] += 1
        ids.append(f"{numbers[i]}.{seen[i]}" if edits[i] > 1 else numbers[i])
    return ids


# --- Data sets by name ---

Reader = Callable[["Path | None"], Sequence[EditRecord]]
ENTRY_POINTS = "easyedit_dafnet.data"


def _facts(part: Literal["demo", "train"], path: Path | None) -> list[EditRecord]:
    """A part of the embedded facts; the parts share no subject."""
    if path is not None:
        raise RequestError(f"The embedded facts are in the package and not in {str(path)!r}.")
    convert, records = LAYOUTS["counterfact"].converter([]), load_facts(part)
    return [
        EditRecord(id=str(record["case_id"]), **fields)
        for record in records
        for fields in convert(record, Notes())
    ]


_READERS: dict[str, Reader] = {
    "facts": partial(_facts, "demo"),
    "facts-train": partial(_facts, "train"),
}


def register_data(name: str, reader: Reader) -> None:
    """Make a data set known by name; the last registration of a name counts.

    reader: from the file given with ``name=FILE``, or None without one, to the records.
    """
    _READERS[name] = reader


def data_names() -> list[str]:
    """Names that `data_source` knows without a layout: registered here or by an entry point."""
    plugins = importlib.metadata.entry_points(group=ENTRY_POINTS)
    return sorted({*_READERS, *(plugin.name for plugin in plugins)})


def _reader(name: str) -> Reader | None:
    if name in _READERS:
        return _READERS[name]
    for plugin in importlib.metadata.entry_points(group=ENTRY_POINTS, name=name):
        reader: Reader = plugin.load()
        return reader
    return None


@dataclass(frozen=True)
class DataSource:
    """A data set as the user names it. name: its name in results; path: None for none."""

    name: str
    path: Path | None = None

    def read(self) -> list[EditRecord]:
        """By the reader of this name, or else by the file's layout."""
        reader = _reader(self.name)
        if reader is None:
            if self.path is None:
                raise RequestError(f"The data set {self.name!r} needs a file: {self.name}=FILE.")
            return read_edits(self.path)
        records = list(reader(self.path))
        if not records or not all(isinstance(record, EditRecord) for record in records):
            raise RequestError(f"The reader of the data set {self.name!r} returned no EditRecords.")
        if len({record.id for record in records}) < len(records):
            raise RequestError(f"Two records of the data set {self.name!r} have the same id.")
        return records


def data_source(text: str | Path) -> DataSource:
    """Understand ``NAME``, ``FILE`` or ``NAME=FILE``; nothing is read.

    A file's name without its ending serves as NAME. Raises RequestError where there is neither a
    file nor a data set of that name.
    """
    given = str(text)
    name, equals, path = given.partition("=")
    if Path(given).is_file():
        name, path = Path(given).stem, given
    elif not equals:
        if given in data_names():
            return DataSource(given)
        near = difflib.get_close_matches(given, data_names(), 1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise RequestError(
            f"There is no file {given!r} and no data set of that name "
            f"(known: {', '.join(data_names())}).{hint}"
        )
    elif not Path(path).is_file():
        raise RequestError(f"There is no file {path!r} for the data set {name!r}.")
    if not re.fullmatch(r"\w[\w.-]*", name):
        raise RequestError(
            f"{name!r} cannot name a data set in the results; give a name of letters, digits, "
            "'_', '-' and '.' before the file: NAME=FILE."
        )
    return DataSource(name, Path(path))


def load_data(text: str | Path) -> list[EditRecord]:
    """The records of ``NAME``, ``FILE`` or ``NAME=FILE``."""
    return data_source(text).read()


# --- Files of known data sets ---


@dataclass(frozen=True)
class KnownFiles:
    """patterns: file names as published, the likeliest first; layouts: what such a file is in."""

    patterns: tuple[str, ...]
    layouts: tuple[str, ...]


KNOWN_FILES = {
    # EasyEdit's extract asks for portability, too.
    "zsre": KnownFiles(("zsre_mend_eval_portability*.json", "zsre_mend_eval*.json"), ("zsre",)),
    "counterfact": KnownFiles(
        (
            "counterfact-edit*.json",
            "counterfact-val*.json",
            "counterfact.json",
            "multi_counterfact*",
        ),
        ("counterfact", "rome_counterfact"),
    ),
    "ripple_edits": KnownFiles(("popular.json", "random.json", "recent.json"), ("ripple_edits",)),
    "ripple_popular": KnownFiles(("popular.json",), ("ripple_edits",)),
    "ripple_random": KnownFiles(("random.json",), ("ripple_edits",)),
    "ripple_recent": KnownFiles(("recent.json",), ("ripple_edits",)),
    "knowedit-zsre": KnownFiles(("*ZsRE-test-all.json", "*knowedit*zsre*.json"), ("knowedit",)),
    "knowedit-recent": KnownFiles(("*recent_test.json",), ("knowedit",)),
    "knowedit-counterfact": KnownFiles(
        ("*test_cf.json", "*knowedit*counterfact*.json"), ("knowedit",)
    ),
    "knowedit-bio": KnownFiles(("wikibio-test*.json",), ("knowedit",)),
    "counterfact-train": KnownFiles(("counterfact-train*.json",), ("counterfact",)),
    **{
        f"dafset-{part.replace('_', '-')}": KnownFiles((f"{part}.json",), ("dafset",))
        for part in ("recent", "popular", "long_tail", "robust")
    },
}


def find_data(name: str, folders: Iterable[str | Path]) -> Path | None:
    """The file of a known data set in the folders and what is in them, or None.

    RippleEdits and DAFSet both have a "recent.json": a file in another layout is passed over.
    """
    known = KNOWN_FILES.get(name, KnownFiles((), ()))
    places = [Path(folder) for folder in folders]
    for pattern in known.patterns:
        for folder in places:
            for path in sorted(folder.rglob(pattern)):
                try:
                    layout = _layout(path, load_records(path)[0])
                except RequestError:
                    continue
                if layout.name in known.layouts:
                    return path
    return None
