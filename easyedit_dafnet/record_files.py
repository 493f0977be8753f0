"""Files of records: JSON, JSON Lines and CSV."""

from __future__ import annotations

import codecs
import csv
import io
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .edit_requests import check_requests, training_records
from .record_values import Record, RequestError, refuse


def load_records(path: str | Path) -> list[Record]:
    """Records of a .json (a list), .jsonl (one a line) or .csv (a header line) file, of any keys.

    Args:
        path: of the file, in UTF-8, with or without a byte order mark.

    Returns:
        At least one record; their names tell the line, or in .json the place in the list, from 0.

    Raises:
        RequestError: naming the file when it is missing, damaged or of another kind, and the line.
    """
    path = Path(path)
    if not path.is_file():
        raise RequestError(f"There is no file {str(path)!r}.")
    if (kind := path.suffix.lower()) not in _READERS:
        raise RequestError(f"{path}: the name must end in .json, .jsonl or .csv.")
    text = read_text(path)
    if not text.strip():
        raise RequestError(f"{path} is empty.")
    try:
        numbered = list(_READERS[kind](text))
    except RecursionError:
        raise RequestError(f"{path} is nested too deeply to be records.") from None
    except ValueError as error:
        raise RequestError(f"{path} cannot be read: {error}.") from None
    if not numbered:
        raise RequestError(f"{path} holds no records.")
    place = "record" if kind == ".json" else "line"
    records = []
    for number, record in numbered:
        if not isinstance(record, dict):
            raise RequestError(
                f"{path}, {place} {number}: it is of type {type(record).__name__}, not a dict."
            )
        records.append(Record(record, f"{path}, {place} {number}"))
    extra = "it has more cells than the header; put quotes around texts with commas."
    refuse(records, {i: extra for i, record in enumerate(records) if None in record})
    return records


def read_text(path: Path) -> str:
    """The text of a file in UTF-8, without a byte order mark, line ends as they are.

    Raises RequestError naming the file and the line where it is none.
    """
    content = path.read_bytes()
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise RequestError(f"{path} is in UTF-16; save it in UTF-8.")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise RequestError(
            f"{path} is no UTF-8 text: line {line} has the byte 0x{content[error.start]:02x}; "
            "save it in UTF-8."
        ) from None


Numbered = Iterator[tuple[int, Any]]


def _json(text: str) -> Numbered:
    try:
        records = json.loads(text, object_pairs_hook=_object)
    except json.JSONDecodeError as error:
        one_a_line = error.msg == "Extra data" and error.lineno > 1
        hint = "; name it .jsonl if it has one record a line" if one_a_line else ""
        raise ValueError(f"it is damaged or not JSON: {error}{hint}") from None
    if not isinstance(records, list):
        raise ValueError(
            f"it must hold a list of records, not one of type {type(records).__name__}"
        )
    yield from enumerate(records)


def _json_lines(text: str) -> Numbered:
    for number, line in enumerate(io.StringIO(text, newline=""), 1):
        if line.strip():
            try:
                yield number, json.loads(line, object_pairs_hook=_object)
            except json.JSONDecodeError as error:
                raise ValueError(f"line {number}, column {error.colno}: {error.msg}") from None
            except ValueError as error:
                raise ValueError(f"line {number}: {error}") from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        for key, value in pairs:
            if found[key] is not value and found[key] != value:
                raise ValueError(f"a record has the key {key!r} twice")
    return found


def _csv(text: str) -> Numbered:
    rows = csv.reader(io.StringIO(text, newline=""), strict=True)
    begins, header = 1, None
    try:
        for row in rows:
            number, begins = begins, rows.line_num + 1
            if not any(cell.strip() for cell in row):
                continue
            if header is None:
                header = _header(row)
                continue
            extra = {None: row[len(header) :]} if len(row) > len(header) else {}
            yield number, {**dict.fromkeys(header), **dict(zip(header, row, strict=False)), **extra}
    except csv.Error as error:
        raise ValueError(f"line {begins}: {error}") from None


def _header(row: list[str]) -> list[str]:
    names = [name.strip() for name in row]
    for separator, its_name in ((";", "semicolons"), ("\t", "tabs")):
        if len(names) == 1 and separator in names[0]:
            raise ValueError(f"it has {its_name} between its columns; save it with commas")
    if twice := [name for name, count in Counter(names).items() if name and count > 1]:
        raise ValueError(f"the header has {twice[0]!r} twice")
    return names


_READERS = {".json": _json, ".jsonl": _json_lines, ".csv": _csv}


def read_records(path: str | Path) -> list[Record]:
    """The requests of a file in any layout, as `check_requests` has them.

    Raises RequestError naming the file and all records that cannot be used.
    """
    return check_requests(load_records(path))


def read_training_records(path: str | Path) -> list[Record]:
    """The records of a file in any layout, as `training_records` has them.

    Raises RequestError naming the file and all records that cannot be used.
    """
    return training_records(load_records(path), str(path))
