"""The report as Markdown tables."""

from __future__ import annotations

from collections.abc import Sequence

from .notes import (
    absent_notes,
    capability_rows,
    failure_notes,
    left_out_notes,
    method_notes,
    reading_notes,
    same_subject_notes,
    sanity_notes,
    score_notes,
    setup,
    together_notes,
)
from .results import SCORINGS
from .summary import SCORED, Row, Summary, shown
from .wording import (
    NOTHING,
    PARTIAL,
    bytes_text,
    duration_text,
    hours_text,
    name_of,
    number_text,
    score_text,
)


def to_markdown(summary: Summary) -> str:
    """One table for each data set and scoring, one for the costs of each data set."""
    parts = ["# Benchmark of editing methods", ""]
    parts += [f"- {name}: {one_line(value)}" for name, value in setup(summary)]
    for data in summary.data:
        parts += ["", f"## {data}"]
        for scoring in summary.scorings:
            parts += ["", f"### {SCORINGS[scoring]}", ""]
            parts += table(
                ["method", "N", *map(name_of, shown(scoring)), "edits", "streams"],
                [quality(row, scoring) for row in summary.of(data)],
            )
            if names := summary.kinds(data):
                parts += ["", f"### {SCORINGS[scoring]}, by kind of probe", ""]
                parts += table(
                    ["method", "N", *(f"{name_of(aspect)}: {kind}" for aspect, kind in names)],
                    [by_kind(row, scoring, names) for row in summary.of(data) if row.kinds],
                )
        if rows := [found for found in capability_rows(summary) if found[0].data == data]:
            parts += ["", "### Capability", ""]
            parts += table(
                ["method", "N", "stream", "found"],
                [[marked(r), f"{r.num_edits:,}", str(stream), text] for r, stream, text in rows],
            )
        parts += ["", "### Cost", ""]
        parts += table(
            [
                "method",
                "N",
                "time per edit",
                "peak memory",
                "constant state",
                "state per edit",
                "perplexity",
                "preparation",
            ],
            [costs(row) for row in summary.of(data)],
        )
    parts += ["", "## Notes", ""]
    notes = [*sanity_notes(summary), *failure_notes(summary), *score_notes(summary)]
    notes += [*absent_notes(summary), *method_notes(summary), *together_notes(summary)]
    notes += [*left_out_notes(summary), *same_subject_notes(summary), *reading_notes()]
    notes += summary.problems
    parts += [f"- {one_line(note)}" for note in notes]
    return "\n".join(parts) + "\n"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    rule = ["---", *["---:"] * (len(header) - 1)]
    cells = [header, rule, *([escaped(cell) for cell in row] for row in rows)]
    return [f"| {' | '.join(row)} |" for row in cells]


def escaped(text: str) -> str:
    return one_line(text).replace("|", "\\|").replace("<", "&lt;")


def one_line(text: str) -> str:
    return " ".join(text.split())


def marked(row: Row) -> str:
    return f"{row.label}{'†' if row.doubtful else ''}{'‡' if row.failures else ''}"


def partial(row: Row, scoring: str) -> bool:
    """Whether the row's score is not over all of SCORED."""
    return row.scored(scoring) not in ((), SCORED)


def quality(row: Row, scoring: str) -> list[str]:
    names = shown(scoring)
    if row.status != "done":
        said = "failed" if row.status == "failed" else f"not run, {hours_text(row.hours)}"
        return [
            marked(row),
            f"{row.num_edits:,}",
            said,
            *[""] * (len(names) - 1),
            "0",
            streams(row),
        ]
    scores = [score_text(row.scores[scoring][name], row.edits) for name in names]
    if partial(row, scoring):
        scores[0] += f" {PARTIAL}"
    return [marked(row), f"{row.num_edits:,}", *scores, f"{row.edits:,}", streams(row)]


def by_kind(row: Row, scoring: str, names: Sequence[tuple[str, str]]) -> list[str]:
    scores = [row.kinds.get(aspect, {}).get(kind, {}).get(scoring) for aspect, kind in names]
    return [marked(row), f"{row.num_edits:,}", *map(score_text, scores)]


def streams(row: Row) -> str:
    """2, or 1 of 3 where some failed or were not run."""
    done = len(row.cells)
    return str(done) if done == row.planned else f"{done} of {row.planned}"


def costs(row: Row) -> list[str]:
    if row.status != "done":
        return [*quality(row, "")[:3], *[""] * 5]
    return [
        marked(row),
        f"{row.num_edits:,}",
        duration_text(row.seconds_per_edit),
        bytes_text(row.peak_memory_bytes),
        bytes_text(row.constant_state_bytes),
        bytes_text(row.state_bytes_per_edit),
        perplexity_text(row),
        duration_text(row.preparation_seconds),
    ]


def perplexity_text(row: Row) -> str:
    if row.perplexity is None:
        return NOTHING
    return " → ".join(number_text(value) for value in row.perplexity)
