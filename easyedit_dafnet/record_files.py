"""Files of records: JSON, JSON Lines and CSV."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

from .edit_requests import RequestError, check_requests


def load_records(path: str | Path) -> list[dict[str, Any]]:
    """Records of a .json (a list), .jsonl (one a line) or .csv (a header line) file, of any keys.

    Raises RequestError naming the file when it is missing, damaged or of another kind.
    """
    path = Path(path)
    if not path.is_file():
        raise RequestError(f"There is no file {str(path)!r}.")
    try:
        with path.open(encoding="utf-8", newline="") as file:
            if path.suffix == ".csv":
                records: Any = list(csv.DictReader(file))
            elif path.suffix == ".jsonl":
                records = [json.loads(line) for line in file if line.strip()]
            elif path.suffix == ".json":
                records = json.load(file)
            else:
                raise RequestError(f"{path}: the name must end in .json, .jsonl or .csv.")
    except (UnicodeDecodeError, json.JSONDecodeError, csv.Error) as error:
        raise RequestError(f"{path} is damaged or not {path.suffix[1:]}: {error}.") from None
    if not isinstance(records, list):
        raise RequestError(f"{path} must hold a list of records, not a {type(records).__name__}.")
    for i, record in enumerate(records):
        if isinstance(record, dict) and None in record:
            raise RequestError(
                f"{path}: record {i} has more cells than the header; put quotes around texts with "
                "commas."
            )
    return records


def read_records(path: str | Path) -> list[dict[str, Any]]:
    """Records of a file, each with a prompt and a target_new.

    Raises RequestError naming the file and the first unusable record.
    """
    records = load_records(path)
    try:
        check_requests(records)
    except RequestError as error:
        keys = ", ".join(records[0]) if records and isinstance(records[0], dict) else "none"
        raise RequestError(f"{path}: {error} (The first record's keys: {keys}.)") from None
    return records
