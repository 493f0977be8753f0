"""The report as one page that needs nothing else: no network, no other file."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from ..answers import begins
from .bootstrap import Estimate
from .markdown import partial as partial_score
from .markdown import perplexity_text, streams
from .notes import (
    absent_notes,
    capability_rows,
    counts,
    failure_notes,
    in_words,
    left_out_notes,
    method_notes,
    reading_notes,
    same_subject_notes,
    sanity_notes,
    score_notes,
    setup,
    together_notes,
)
from .plots import (
    Amount,
    Curve,
    Point,
    Style,
    amounts,
    retention_curves,
    scatter,
    standalone,
    to_text,
)
from .results import LEAKS, SCORINGS
from .summary import QUALITY, Row, Summary
from .wording import (
    FEW,
    NOTHING,
    PARTIAL,
    bytes_text,
    counted,
    duration_text,
    hours_text,
    interval_text,
    listed,
    name_of,
    spread_text,
)

TEMPLATES = Path(__file__).parent / "templates"
SHOWN_EDITS = 12


@dataclass(frozen=True)
class Column:
    """key: in the page's address. best: which end a first click on the header puts on top."""

    key: str
    title: str
    best: str = "high"


COLUMNS = (
    Column("method", "Method", "low"),
    Column("n", "N", "low"),
    *(
        Column(name, name_of(name).capitalize(), "low" if name == LEAKS else "high")
        for name in QUALITY
    ),
    Column("edits", "Edits"),
    Column("time", "Time / edit", "low"),
    Column("memory", "Memory", "low"),
    Column("constant", "Constant state", "low"),
    Column("state", "State / edit", "low"),
    Column("perplexity", "Perplexity", "low"),
    Column("preparation", "Preparation", "low"),
)


@dataclass(frozen=True)
class Figure:
    """A plot for one data set, scoring and N. scoring: None where it makes no difference."""

    data: str
    scoring: str | None
    num_edits: int
    svg: Markup


@dataclass(frozen=True)
class Panel:
    """The place of a kind of plot in the page; one of its figures is in view."""

    title: str
    caption: str
    figures: list[Figure]


@dataclass
class EditTexts:
    """What the models say of one edit: asked is by prompt, rephrase, locality and same_subject."""

    data: str
    num_edits: int
    position: int
    target_new: str
    asked: dict[str, str] = field(default_factory=dict)
    before: dict[str, str] = field(default_factory=dict)
    after: list[tuple[str, dict[str, str]]] = field(default_factory=list)

    def wanted(self, name: str, text: str) -> bool:
        """Whether an answer opens with the new target or, of either locality, is the old one."""
        if name in ("locality", "same_subject"):
            return text == self.before[name]
        return bool(begins(text, [self.target_new]))


def to_html(summary: Summary) -> str:
    environment = Environment(
        loader=PackageLoader(__package__, "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals.update(
        spread_text=spread_text,
        few=FEW,
        interval_text=interval_text,
        duration_text=duration_text,
        bytes_text=bytes_text,
        hours_text=hours_text,
        perplexity_text=perplexity_text,
        streams=streams,
        counted=counted,
        in_words=in_words,
        name_of=name_of,
        listed=listed,
        partial=partial_score,
        NOTHING=NOTHING,
        PARTIAL=PARTIAL,
    )
    styles = method_styles(summary)
    data = summary.data
    return environment.get_template("page.html.jinja").render(
        title="Benchmark of editing methods",
        models=", ".join(dict.fromkeys(filter(None, (run.model for run in summary.runs)))),
        subtitle=counts(summary.rows),
        summary=summary,
        styles=styles,
        doubtful=set(summary.doubtful()),
        columns=COLUMNS,
        quality=QUALITY,
        scorings=SCORINGS,
        choices={
            "data": data,
            "scoring": summary.scorings,
            "n": sorted({row.num_edits for row in summary.rows}),
        },
        main_lengths={name: summary.main_length(name) for name in data},
        sort_values=sort_values,
        best=best_scores(summary),
        setup=setup(summary),
        sanity_notes=sanity_notes(summary),
        failure_notes=failure_notes(summary),
        score_notes=score_notes(summary),
        absent_notes=[*method_notes(summary), *together_notes(summary), *absent_notes(summary)],
        left_out_notes=left_out_notes(summary),
        same_subject_notes=same_subject_notes(summary),
        reading_notes=reading_notes(),
        panels=panels(summary, styles),
        kinds=list(kind_tables(summary)),
        texts=edit_texts(summary),
        capability=list(capability_rows(summary)),
        settings=method_settings(summary),
    )


def method_styles(summary: Summary) -> dict[str, Style]:
    return {label: Style(number) for number, label in enumerate(summary.labels)}


def sort_values(row: Row, scoring: str) -> list[Any]:
    """One value a column; null sorts last."""
    scores = row.scores.get(scoring, {})
    means = [None if (e := scores.get(a)) is None else round(e.mean, 6) for a in QUALITY]
    after = row.perplexity[1] if row.perplexity else None
    values = [
        row.label.lower(),
        row.num_edits,
        *means,
        row.edits or None,
        row.seconds_per_edit,
        row.peak_memory_bytes,
        row.constant_state_bytes,
        row.state_bytes_per_edit,
        after,
        row.preparation_seconds,
    ]
    # JSON has no infinity.
    return [1e308 if isinstance(v, float) and math.isinf(v) else v for v in values]


def best_scores(summary: Summary) -> dict[tuple[str, str, int, tuple[str, ...]], float]:
    """The highest score of each data set, scoring and N, of those over the same parts.

    None where all are zero.
    """
    found: dict[tuple[str, str, int, tuple[str, ...]], float] = {}
    for row in summary.rows:
        for scoring, scores in row.scores.items():
            key = (row.data, scoring, row.num_edits, row.scored(scoring))
            score = scores["score"]
            if score and score.mean > 0:
                found[key] = max(found.get(key, 0.0), score.mean)
    return found


def tip(row: Row, scoring: str) -> str:
    lines = [f"{row.label}, N = {row.num_edits:,}"]
    for name in QUALITY:
        value = row.scores[scoring].get(name)
        if value is not None:
            lines.append(f"{name_of(name)} {interval_text(value)}")
    return "\n".join([*lines, f"{counted(row.edits, 'edit')}, {streams(row)} streams"])


def scatter_of(
    summary: Summary, data: str, scoring: str, num_edits: int, styles: dict[str, Style]
) -> Any:
    """Against same-subject locality where that alone is asked."""
    points = []
    rows = summary.of(data, num_edits)
    other = any(row.scores.get(scoring, {}).get("locality") for row in rows)
    across = "locality" if other else "same_subject"
    for row in rows:
        scores = row.scores.get(scoring, {})
        x, y = scores.get(across), scores.get("reliability")
        if x is not None and y is not None:
            text = tip(row, scoring)
            points.append(Point(row.label, styles[row.label], x, y, text, row.doubtful))
    title = f"{data}, N = {num_edits:,}, {SCORINGS[scoring].lower()}"
    return scatter(points, title, (name_of(across), "reliability")) if points else None


def panels(summary: Summary, styles: dict[str, Style]) -> list[Panel]:
    return [
        Panel(
            "Reliability against locality",
            "Better towards the upper right. Whiskers are 95 % intervals."
            + (" Hollow: the sanity cell was not passed." if summary.doubtful() else ""),
            list(scatters(summary, styles)),
        ),
        Panel(
            "Retention",
            "Reliability after the last edit, in the order of the edits; a running mean over a "
            "fifth of them.",
            list(curves(summary, styles)),
        ),
        Panel(
            "Time per edit",
            "To apply it, without scoring. Logarithmic.",
            list(costs(summary, styles, "seconds_per_edit", duration_text)),
        ),
        Panel(
            "Constant state",
            "Kept beside the model's weights for any number of edits. Logarithmic.",
            list(costs(summary, styles, "constant_state_bytes", bytes_text)),
        ),
        Panel(
            "State per edit",
            "Kept for each of them, beside the constant state. Logarithmic.",
            list(costs(summary, styles, "state_bytes_per_edit", bytes_text)),
        ),
        Panel(
            "Peak memory",
            "The most in use in any stream. Logarithmic.",
            list(costs(summary, styles, "peak_memory_bytes", bytes_text)),
        ),
    ]


def scatters(summary: Summary, styles: dict[str, Style]) -> Iterator[Figure]:
    for data in summary.data:
        for scoring in summary.scorings:
            for num_edits in summary.lengths(data):
                svg = scatter_of(summary, data, scoring, num_edits, styles)
                if svg is not None:
                    yield Figure(data, scoring, num_edits, Markup(to_text(svg)))


def curves(summary: Summary, styles: dict[str, Style]) -> Iterator[Figure]:
    for data in summary.data:
        for scoring in summary.scorings:
            for num_edits in summary.lengths(data):
                found = [
                    Curve(
                        row.label,
                        styles[row.label],
                        (kept.first + kept.last) / 2,
                        kept.values,
                        [
                            f"edits {first:,} to {last:,}" if first < last else f"edit {first:,}"
                            for first, last in zip(kept.first, kept.last, strict=True)
                        ],
                        row.doubtful,
                    )
                    for row in summary.of(data, num_edits)
                    if (kept := row.retention.get(scoring)) is not None
                ]
                if found:
                    title = f"{data}, N = {num_edits:,}, {SCORINGS[scoring].lower()}"
                    svg = retention_curves(found, num_edits, title, "reliability")
                    yield Figure(data, scoring, num_edits, Markup(to_text(svg)))


def costs(
    summary: Summary, styles: dict[str, Style], name: str, show: Callable[[float], str]
) -> Iterator[Figure]:
    for data in summary.data:
        for num_edits in summary.lengths(data):
            found = [
                Amount(row.label, styles[row.label], value, show(value), row.doubtful)
                for row in summary.of(data, num_edits)
                if (value := getattr(row, name)) is not None
            ]
            if found:
                title = f"{name.replace('_', ' ')}, {data}, N = {num_edits:,}"
                svg = amounts(found, title, partial(tick, show))
                yield Figure(data, None, num_edits, Markup(to_text(svg)))


def tick(show: Callable[[float], str], value: float) -> str:
    """0.01 s, 10 MB: a power of ten without zeros behind the point."""
    number, unit = show(value).rsplit(" ", 1)
    return f"{number.rstrip('0').rstrip('.') if '.' in number else number} {unit}"


@dataclass(frozen=True)
class KindTable:
    """Means by the kinds of probe that a data set names."""

    data: str
    scoring: str
    columns: list[Column]
    rows: list[tuple[Row, list[Estimate | None]]]

    def sort_values(self, row: Row, values: list[Estimate | None]) -> list[Any]:
        return [row.label.lower(), row.num_edits, *(e and round(e.mean, 6) for e in values)]


def kind_tables(summary: Summary) -> Iterator[KindTable]:
    """For data sets with several kinds of one aspect."""
    for data in summary.data:
        rows = [row for row in summary.of(data) if row.kinds]
        if not (names := summary.kinds(data)):
            continue
        columns = [
            *COLUMNS[:2],
            *(
                Column(f"kind{i}", f"{name_of(a).capitalize()}: {k}")
                for i, (a, k) in enumerate(names)
            ),
        ]
        for scoring in summary.scorings:
            yield KindTable(
                data,
                scoring,
                columns,
                [
                    (row, [row.kinds.get(a, {}).get(k, {}).get(scoring) for a, k in names])
                    for row in rows
                ],
            )


def edit_texts(summary: Summary) -> list[EditTexts]:
    """Edits evenly spread over the first stream, with what each method's model says of them."""
    found: dict[tuple[str, int, str], EditTexts] = {}
    for row in summary.rows:
        cell = next((cell for cell in row.cells if cell.key.stream == 0), None)
        if cell is None:
            continue
        count = len(cell.edits)
        chosen = {round(i * (count - 1) / (SHOWN_EDITS - 1)) for i in range(SHOWN_EDITS)}
        for position, said in enumerate(row.run.texts(cell.key)):
            if position not in chosen:
                continue
            key = (row.data, row.num_edits, f"{position}/{said.get('id')}")
            shown = found.setdefault(
                key,
                EditTexts(row.data, row.num_edits, position + 1, str(said.get("target_new", ""))),
            )
            after = {}
            for name in ("prompt", "rephrase", "locality", "same_subject"):
                text = said.get(name)
                if text:
                    shown.asked.setdefault(name, str(text["asked"]))
                    shown.before.setdefault(name, str(text["before"]))
                    after[name] = str(text["after"])
            shown.after.append((row.label, after))
    return list(found.values())


def method_settings(summary: Summary) -> dict[str, str]:
    found = {}
    for row in summary.rows:
        for cell in row.cells:
            if cell.body.get("settings"):
                found[row.label] = in_words(cell.body["settings"])
    return found


def readme_plot(summary: Summary) -> str | None:
    """Reliability against locality of the first data set and scoring, as a file of its own."""
    if not summary.scorings:
        return None
    data, scoring = summary.data[0], summary.scorings[0]
    svg = scatter_of(summary, data, scoring, summary.main_length(data), method_styles(summary))
    css = (TEMPLATES / "plots.css").read_text(encoding="utf-8")
    return None if svg is None else standalone(svg, css)
