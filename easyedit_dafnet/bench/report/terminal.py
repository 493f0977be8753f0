"""The report's first table of each data set, for the terminal."""

from __future__ import annotations

from collections.abc import Iterator

from rich.table import Table

from .markdown import costs, marked, quality
from .notes import score_notes_of
from .results import SCORINGS
from .summary import Summary, shown
from .wording import counted, name_of


def terminal_tables(summary: Summary) -> Iterator[Table]:
    """Each data set's scores by the first scoring, and seconds per edit, as in report.md."""
    if not summary.scorings:
        return  # nothing is finished
    scoring = summary.scorings[0]
    for data in summary.data:
        rows = [row for row in summary.of(data) if row.status != "not run"]
        left = sum(row.status == "not run" for row in summary.of(data))
        notes = [f"not run: {counted(left, 'row')}"] if left else []
        notes += score_notes_of(summary, data)
        # Not every data set asks for everything.
        names = shown(scoring)
        columns = [n for n in names if any(r.scores.get(scoring, {}).get(n) for r in rows)]
        table = Table(
            title=f"{data}, {SCORINGS[scoring].lower()}",
            title_justify="left",
            caption="\n".join(notes) or None,
            caption_justify="left",
        )
        table.add_column("method", no_wrap=True)
        for column in ("N", *map(name_of, columns), "edits", "time per edit"):
            table.add_column(column, justify="right")
        length = None
        for row in rows:
            if length not in (None, row.num_edits):
                table.add_section()
            length = row.num_edits
            told = quality(row, scoring)
            cells = dict(zip(("method", "N", *names, "edits"), told, strict=False))
            scores = (cells[name] for name in ("N", *columns, "edits"))
            table.add_row(marked(row), *scores, costs(row)[2])
        yield table
