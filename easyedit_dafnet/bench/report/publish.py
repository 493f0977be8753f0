"""What of a run others may see and go on with: plan and results, without this machine's paths."""

from __future__ import annotations

from pathlib import Path

from ..cells import read_json, without_paths, write_json

PARTS = ("suite.json", "perplexity.json", "cells/**/*.json", "sanity/*.json")


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
