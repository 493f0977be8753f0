"""The report as comma-separated values, for other programs."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain

import numpy as np

from .bootstrap import harmonic_mean
from .results import SCORINGS, Cell, Numbers, measures
from .summary import Summary, mean_of, scored, shown

#: What spreadsheets take for the beginning of a formula, or drop in front of one.
FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")


def to_csv(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Comma-separated values; a text that begins as a formula does gets an apostrophe in front.

    Numbers stay as they are, negative ones included.
    """
    out = io.StringIO()
    write = csv.writer(out, lineterminator="\r\n")  # else a lone \r in a text would end the line
    for row in chain([header], rows):
        write.writerow([quoted(cell) for cell in row])
    return out.getvalue().replace("\r\n", "\n")


def quoted(cell: object) -> object:
    return f"'{cell}" if isinstance(cell, str) and cell.startswith(FORMULA) else cell


def cells_csv(summary: Summary) -> str:
    """One row a cell, those not run included. score_over: what the score is the mean of."""
    columns = [f"{n}_{scoring}" for scoring in SCORINGS for n in (*shown(scoring), "score_over")]
    header = [
        *("data", "label", "method", "host", "num_edits", "stream", "status", "error"),
        *("sanity_passed", "edits"),
        *columns,
        *("seconds_per_edit", "peak_memory_bytes", "state_bytes", "constant_state_bytes"),
        *("state_bytes_per_edit", "perplexity_before", "perplexity_after", "preparation_seconds"),
        *("estimated_hours", "started", "finished"),
    ]
    rows = ([entry.get(name, "") for name in header] for entry in cell_entries(summary, columns))
    return to_csv(header, rows)


def cell_entries(summary: Summary, columns: Sequence[str]) -> Iterator[dict[str, object]]:
    for row in summary.rows:
        common: dict[str, object] = {
            "data": row.data,
            "label": row.label,
            "method": row.method,
            "host": row.host,
            "num_edits": row.num_edits,
            "sanity_passed": "" if row.sanity is None else row.sanity.passed,
        }
        for cell in sorted((*row.cells, *row.failures), key=lambda cell: cell.key):
            perplexity = cell.body.get("perplexity") or {}
            state = (
                {}
                if cell.failed
                else {
                    "constant_state_bytes": blank(row.constant_state_bytes),
                    "state_bytes_per_edit": blank(row.state_bytes_per_edit),
                }
            )
            yield {
                **common,
                **state,
                "stream": cell.key.stream,
                "status": "failed" if cell.failed else "done",
                "error": cell.error,
                "edits": len(cell.edits),
                **dict(zip(columns, cell_means(cell), strict=True)),
                "seconds_per_edit": blank(cell.seconds_per_edit),
                "peak_memory_bytes": blank(cell.body.get("peak_memory_bytes")),
                "state_bytes": blank(cell.body.get("state_bytes")),
                "perplexity_before": blank(perplexity.get("before")),
                "perplexity_after": blank(perplexity.get("after")),
                "preparation_seconds": blank((cell.body.get("prepared") or {}).get("seconds")),
                "started": blank(cell.body.get("started")),
                "finished": blank(cell.body.get("finished")),
            }
        for stream in row.not_run:
            hours = "" if row.hours is None else row.hours / len(row.not_run)
            yield {**common, "stream": stream, "status": "not run", "estimated_hours": hours}


def cell_means(cell: Cell) -> Iterator[object]:
    for scoring in SCORINGS:
        values = cell.scores.get(scoring)
        if values is None:
            yield from [""] * (len(shown(scoring)) + 1)
            continue
        means = {name: mean for name, of in values.items() if (mean := mean_of(of)) is not None}
        if parts := scored(means):
            means["score"] = float(harmonic_mean([np.array(means[part]) for part in parts]))
        yield from (means.get(name, "") for name in shown(scoring))
        yield " ".join(parts)


def kinds_csv(summary: Summary) -> str | None:
    """One row a kind of probe of every finished cell, for data sets that name several.

    asked: edits that have such a probe. None if no data set does.
    """
    rows = []
    for row in summary.rows:
        for cell in row.cells:
            of_cell = [row.data, row.label, row.host, row.num_edits, cell.key.stream]
            for aspect, kind in summary.kinds(row.data):
                if values := cell.kinds.get(aspect, {}).get(kind):
                    asked = max(np.count_nonzero(~np.isnan(values[s])) for s in SCORINGS)
                    means = [blank(mean_of(values[s])) for s in SCORINGS]
                    rows.append([*of_cell, aspect, kind, asked, *means])
    place = ["data", "label", "host", "num_edits", "stream"]
    return to_csv([*place, "aspect", "kind", "asked", *SCORINGS], rows) if rows else None


def edits_csv(summary: Summary) -> str:
    """One row an edit of every finished cell, first edit first."""
    columns = [f"{name}_{scoring}" for scoring in SCORINGS for name in measures(scoring)]
    header = ["data", "label", "num_edits", "stream", "position", "id", *columns]
    return to_csv(header, edit_rows(summary))


def edit_rows(summary: Summary) -> Iterator[list[object]]:
    for row in summary.rows:
        for cell in row.cells:
            values: list[Numbers] = [cell.scores[s][n] for s in SCORINGS for n in measures(s)]
            place = [row.data, row.label, row.num_edits, cell.key.stream]
            for i, edit in enumerate(cell.edits):
                numbers = ["" if v[i] != v[i] else v[i] for v in values]  # NaN differs from itself
                yield [*place, i + 1, edit, *numbers]


def blank(value: object) -> object:
    return "" if value is None else value
