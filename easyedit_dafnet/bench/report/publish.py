"""What of a run others may see and go on with: plan and results, without this machine's paths."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from ..cells import read_json, write_json

PARTS = ("suite.json", "perplexity.json", "cells/**/*.json", "sanity/*.json")
# Not what follows a word, a colon or another slash, as in addresses; nor ./here.
_ABSOLUTE = re.compile(r"(?<![\w:/.~])/(?:[^\s/\"']+/)*([^\s/\"']+)")


def publish(folder: Path, out: Path) -> list[Path]:
    """Copy a run's folder without logs, texts and what was prepared, and return the files.

    An absolute path becomes its last part. `bench --out` goes on with the copy, where the data of
    the same names are in the working folder or named anew.
    """
    written = []
    for part in PARTS:
        for file in sorted(folder.glob(part)):
            content = read_json(file)
            if content is not None:
                write_json(out / file.relative_to(folder), without_paths(content))
                written.append(out / file.relative_to(folder))
    return written


def without_paths(value: Any) -> Any:
    """The value with every absolute path in its texts shortened."""
    if isinstance(value, str):
        return _ABSOLUTE.sub(r"\1", value)
    if isinstance(value, dict):
        return {without_paths(name): without_paths(item) for name, item in value.items()}
    if isinstance(value, list):
        return [without_paths(item) for item in value]
    return value
