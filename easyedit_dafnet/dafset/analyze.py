"""report.html: what is in a data set, as one page that needs nothing else."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median_low
from xml.etree.ElementTree import Element

from markupsafe import Markup

from ..bench.report.plots import to_text
from ..files import write_text
from .check import details, draw
from .dataset import COUNTS, PROBES, PROPERTIES, DataSet, Record, read_complete
from .describe import (
    NAMES,
    counts,
    kept_apart,
    likelihood_text,
    meanings,
    origin,
    packages,
    popularity,
    publishers,
    signals,
    sources,
)
from .packages import load
from .pages import environment
from .plots import (
    Bar,
    Histogram,
    LinearScale,
    LogScale,
    Spread,
    histograms,
    stacked_bars,
)
from .wording import KINDS, RELATIONS

CANDIDATES = "select/candidates.parquet"
HUES = {name: f"hue{number}" for number, name in enumerate(PROPERTIES)}
BARS = 24  #: in one figure
EXAMPLES = 4
NOTHING = "–"

LIKELIHOOD = "log_likelihood"
TITLES = {
    "frequency": "How often the text names the subject",
    "degree": "Statements that the subject is in",
    LIKELIHOOD: "Log-likelihood of the true answer",
}
LIMITS = {
    "views": ("popular", "at least"),
    "frequency": ("long_tail", "at most"),
    "degree": ("long_tail", "at most"),
    LIKELIHOOD: ("long_tail", "at most"),
}
"""Which property a threshold is for, and which side of it."""

Spreads = dict[str, Spread]


@dataclass(frozen=True)
class Summary:
    """A line of the first table. spreads: by signal; modified: the day of the middle record."""

    records: int
    subjects: int | None
    relations: int
    spreads: Spreads
    counterfactual: int = 0
    modified: str | None = None

    def median(self, signal: str) -> str:
        return median_text(self.spreads[signal], signal) if signal in self.spreads else NOTHING


@dataclass(frozen=True)
class Figure:
    title: str
    caption: str
    svg: Markup


def analyze(folder: Path) -> Path:
    """Write report.html into the data set's folder.

    Where select/candidates.parquet is there, the plots compare the records with it.

    Raises:
        DataSetError: the folder has no data set, or a damaged one.
        ImportError: the candidates are there, and duckdb is not installed; names the extra.
    """
    dataset = read_complete(folder)
    candidates = folder / CANDIDATES
    path = folder / "report.html"
    write_text(path, to_html(dataset, summary_of(candidates) if candidates.is_file() else None))
    return path


def to_html(dataset: DataSet, candidates: Summary | None = None) -> str:
    summaries = {name: summarise(dataset.records[name]) for name in filled(dataset)}
    return (
        environment(autoescape=True)
        .get_template("report.html.jinja")
        .render(
            title="DAFSet",
            subtitle=f"{len(dataset):,} facts to edit, from {origin(dataset)}",
            names=NAMES,
            hues=HUES,
            meanings=meanings(dataset),
            summaries=summaries,
            candidates=candidates,
            signals=shown_signals(dataset),
            distributions=distributions(dataset, summaries, candidates),
            domains=domains(dataset),
            probes=PROBES,
            coverage={name: coverage(dataset.records[name]) for name in summaries},
            examples={name: draw(dataset.records[name], EXAMPLES) for name in summaries},
            details=partial(details, measured=signals(dataset)),
            sources=sources(dataset),
            publishers=publishers(dataset),
            packages=packages(dataset),
            counts=counts(dataset),
            kept_apart=kept_apart(dataset),
            build=dataset.build,
            NOTHING=NOTHING,
        )
    )


def filled(dataset: DataSet) -> list[str]:
    """The properties that have records."""
    return [name for name in PROPERTIES if dataset.records[name]]


# -- Numbers ---------------------------------------------------------------------------------------


def summarise(records: Sequence[Record]) -> Summary:
    stats = [record["stats"] for record in records]
    signals = (*COUNTS, LIKELIHOOD)
    known = {name: [s[name] for s in stats if s[name] is not None] for name in signals}
    days = [s["modified"][:10] for s in stats if s["modified"]]
    return Summary(
        records=len(records),
        subjects=len({record["wikidata"]["head"] for record in records}),
        relations=len({record["relation"] for record in records}),
        spreads={name: Spread.of(values) for name, values in known.items() if values},
        counterfactual=sum(record["counterfactual"] for record in records),
        modified=median_low(days) if days else None,
    )


def summary_of(candidates: Path) -> Summary:
    """The same of the facts that could be chosen, which may be too many to be held in memory."""
    duckdb = load("duckdb")

    def counted(column: str) -> Spread:
        query = (
            f"SELECT {column} AS value, count(*) AS n FROM read_parquet(?) GROUP BY 1 ORDER BY 1"
        )
        found = duckdb.execute(query, [str(candidates)]).fetchnumpy()
        return Spread(found["value"], found["n"])

    relations = counted("relation")
    return Summary(
        records=len(relations),
        subjects=None,
        relations=len(relations.values),
        spreads={name: counted(name) for name in COUNTS},
    )


def coverage(records: Sequence[Record]) -> dict[str, float]:
    """The share of records with a probe of each kind, with prefixes and with an opposite."""
    found: Counter[str] = Counter()
    for record in records:
        found.update(kind for kind, probes in record["portability"].items() if probes)
        found.update(name for name in ("prefix", "opposite") if record[name])
    return {name: found[name] / len(records) for name in (*PROBES, "prefix", "opposite")}


def median_text(spread: Spread, signal: str) -> str:
    return NOTHING if spread.median is None else value_text(spread.median, signal)


def value_text(value: float, signal: str) -> str:
    return likelihood_text(value) if signal == LIKELIHOOD else f"{value:,.0f}"


def shown_signals(dataset: DataSet) -> dict[str, str]:
    """Headings by signal, of those that something was measured by."""
    found = {signal: name.capitalize() for signal, name in signals(dataset).items()}
    return found | ({LIKELIHOOD: "Log-likelihood"} if dataset.build.get("model") else {})


# -- Figures ---------------------------------------------------------------------------------------


def distributions(
    dataset: DataSet, summaries: dict[str, Summary], candidates: Summary | None
) -> list[Figure]:
    """One figure for each signal that was measured, and that any record has."""
    limits = dataset.build.get("thresholds") or {}
    known = popularity(dataset)
    titles = {**TITLES, **({"views": known.title} if known else {})}
    figures = []
    for signal in shown_signals(dataset):
        spreads = {n: s.spreads[signal] for n, s in summaries.items() if signal in s.spreads}
        behind = candidates.spreads.get(signal) if candidates else None
        if spreads:
            figures.append(
                distribution(signal, titles[signal], spreads, behind, limits.get(signal))
            )
    return figures


def distribution(
    signal: str, title: str, spreads: Spreads, behind: Spread | None, limit: float | None
) -> Figure:
    limited, side = LIMITS[signal]
    rows = [
        Histogram(
            NAMES[name],
            HUES[name],
            spread,
            median_text(spread, signal),
            limit if name == limited else None,
        )
        for name, spread in spreads.items()
    ]
    caption = "Mean of its tokens." if signal == LIKELIHOOD else "Logarithmic."
    if signal == "views" and any(spread.values[0] == 0 for spread in spreads.values()):
        caption += " 0: not known."
    ends = [end for s in [*spreads.values(), behind] if s for end in (s.values[0], s.values[-1])]
    if limit is not None and limited in spreads:
        caption += f" Dashed: the threshold, {side} {value_text(limit, signal)}."
        ends.append(limit)
    scale = LinearScale(min(ends), max(ends)) if signal == LIKELIHOOD else LogScale(max(ends))
    return Figure(title, caption, drawn(histograms(rows, scale, title, behind)))


def domains(dataset: DataSet) -> list[Figure]:
    """Records by relation, the most frequent first, and by what their subjects can be."""
    if not len(dataset):
        return []
    relations = sorted(bars(dataset, relation_of), key=lambda bar: -bar.total)
    longest = relations[0].total
    figures = []
    for first in range(0, len(relations), BARS):
        part = relations[first : first + BARS]
        title = "Relations" if not first else "Relations, continued"
        caption = (
            f"{len(relations)} in all, the most frequent first." if not first else "Rarer ones."
        )
        figures.append(Figure(title, caption, drawn(stacked_bars(part, title, longest))))
    title = "What the subjects are"
    caption = "As far as the relation tells; some relations have subjects of several kinds."
    kinds = sorted(bars(dataset, kind_of), key=lambda bar: -bar.total)
    return [*figures, Figure(title, caption, drawn(stacked_bars(kinds, title)))]


def bars(dataset: DataSet, key: Callable[[Record], str]) -> list[Bar]:
    found: dict[str, Counter[str]] = {}
    for record in dataset:
        found.setdefault(key(record), Counter())[record["property"]] += 1
    return [
        Bar(name, [(NAMES[p], HUES[p], of_property[p]) for p in PROPERTIES])
        for name, of_property in found.items()
    ]


def relation_of(record: Record) -> str:
    return record["relation_name"]


def kind_of(record: Record) -> str:
    number = record["relation"][1:]
    relation = RELATIONS.get(int(number)) if number.isdigit() else None
    kinds = [kind for kind in KINDS if relation and kind in relation.kinds]
    return (
        ", ".join(kinds[:-1]) + (" or " if len(kinds) > 1 else "") + kinds[-1] if kinds else "other"
    )


def drawn(svg: Element) -> Markup:
    return Markup(to_text(svg))
