"""What of a run others may see and go on with: plan and results, without this machine's paths."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...files import OutputError, check_folder
from ..cells import REPORT, RUN, read_json, without_paths, write_json

PARTS = ("suite.json", "perplexity.json", "cells/**/*.json", "sanity/*.json")


def publish(folder: Path, out: Path) -> list[Path]:
    """Copy a run's folder without logs, texts and what was prepared, and return the files.

    An absolute path becomes its last part. `bench --out` goes on with the copy, where the data of
    the same names are in the working folder or named anew. Raises OutputError, before anything is
    written, where the folder holds something else than a report or this run.
    """
    check_publish(folder, out)
    written = []
    for part in PARTS:
        for file in sorted(folder.glob(part)):
            content = read_json(file)
            if content is not None:
                write_json(out / file.relative_to(folder), without_paths(content))
                written.append(out / file.relative_to(folder))
    return written


def check_publish(folder: Path, out: Path) -> None:
    """Raise OutputError unless `out` may take the run: results of two runs would be mixed."""
    check_folder(out, RUN, REPORT, in_place=True)
    there, new = (read_json(place / RUN.file) for place in (out, folder))
    if there and new and _rests_on(there) != without_paths(_rests_on(new)):
        raise OutputError(
            f"{out} holds another run (of another protocol, model, seed or other settings); choose "
            "another folder to publish to."
        )


def _rests_on(suite: Mapping[str, Any]) -> list[Any]:
    return [suite.get("protocol"), suite.get("common")]
