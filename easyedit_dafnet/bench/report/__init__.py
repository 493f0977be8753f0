"""Tables, one HTML page and a plot from the folders that runs of the benchmark leave."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ...files import check_room, mark_folder, write_text
from ..cells import REPORT, RUN
from .markdown import to_markdown
from .page import readme_plot, to_html
from .publish import check_publish, publish
from .summary import Summary, summarise
from .tables import cells_csv, edits_csv, kinds_csv

__all__ = ["Summary", "check_publish", "publish", "summarise", "write_report"]


def write_report(
    folders: Sequence[Path], out: Path, edits: bool = False
) -> tuple[list[Path], Summary]:
    """Write report.md, report.html, cells.csv and reliability-locality.svg into `out`.

    With them kinds.csv, where a data set has several kinds of locality or portability.
    edits: write edits.csv, too. Each file appears as a whole or not at all.

    Returns:
        The files, and what they show; its `problems` name the results that could not be used.

    Raises:
        ValueError: a folder holds no results.
        OutputError: `out` holds something else than a report or a run.
    """
    summary = summarise(folders)
    if out.resolve() in [folder.resolve() / "report" for folder in folders]:
        check_room(out)  # a run's own
    else:
        mark_folder(out, REPORT, RUN)
    contents = {
        "report.md": to_markdown(summary),
        "report.html": to_html(summary),
        "cells.csv": cells_csv(summary),
        "kinds.csv": kinds_csv(summary),
        "reliability-locality.svg": readme_plot(summary),
        "edits.csv": edits_csv(summary) if edits else None,
    }
    written = []
    for name, content in contents.items():
        if content is not None:
            write_text(out / name, content)
            written.append(out / name)
    return written, summary
