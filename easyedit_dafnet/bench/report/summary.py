"""What one or several runs found, a row per data set, method and number of edits."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean
from typing import Literal

import numpy as np
import numpy.typing as npt

from ..cells import Cell as PlannedCell
from ..cells import Cost, Estimates, RunFolder
from ..same_subject import UNCOUNTED
from .bootstrap import Estimate, estimates
from .results import (
    FORCED,
    LEAKS,
    SCORINGS,
    Cell,
    Key,
    Numbers,
    Run,
    Sanity,
    measures,
    read_run,
)

#: The score of a row is the harmonic mean of these, or of what is asked of them.
SCORED = ("reliability", "generality", "locality", "same_subject")
#: What the tables show of a row, in this order.
QUALITY = ("score", *SCORED, LEAKS, "portability")
#: A point of the retention curve is a mean over this part of the stream.
WINDOW = 0.2
POINTS = 25


@dataclass(frozen=True)
class Retention:
    """How well edits are kept: running mean of their reliability, in the order of editing.

    first, last: of the edits that each mean is over, counted from 1.
    """

    first: npt.NDArray[np.int64]
    last: npt.NDArray[np.int64]
    values: Numbers


@dataclass(frozen=True)
class Row:
    """A method at one number of edits of one data set: the streams that are done, together.

    scores: by scoring; by measure and for `score`. kinds: by aspect, kind and scoring.
    edits: scored ones, over all streams. hours: estimated for the streams that were not run.
    retention: by scoring, for streams of at least two edits. state_bytes_per_edit: what each edit
    adds to the state; None where nothing tells it from the rest.
    """

    data: str
    label: str
    method: str
    host: str
    num_edits: int
    cells: tuple[Cell, ...]
    failures: tuple[Cell, ...]
    not_run: tuple[int, ...]
    hours: float | None
    sanity: Sanity | None
    run: Run
    scores: Mapping[str, Mapping[str, Estimate | None]]
    kinds: Mapping[str, Mapping[str, Mapping[str, Estimate | None]]]
    retention: Mapping[str, Retention]
    state_bytes_per_edit: float | None

    @property
    def status(self) -> Literal["done", "failed", "not run"]:
        if self.cells:
            return "done"
        return "failed" if self.failures else "not run"

    def scored(self, scoring: str) -> tuple[str, ...]:
        """What the score is the harmonic mean of; () without a score."""
        scores = self.scores.get(scoring, {})
        return scored([name for name, value in scores.items() if value])

    @property
    def doubtful(self) -> bool:
        """Whether the method's sanity cell says that its numbers here are no fair picture."""
        return self.sanity is not None and not self.sanity.passed

    @property
    def edits(self) -> int:
        return sum(len(cell.edits) for cell in self.cells)

    @property
    def planned(self) -> int:
        return len(self.cells) + len(self.failures) + len(self.not_run)

    @property
    def seconds_per_edit(self) -> float | None:
        """None for a method that does nothing, which takes microseconds."""
        total = sum(float(cell.body["seconds"]["edit"]) for cell in self.cells)
        return total / self.edits if total > 1e-4 * self.edits else None

    @property
    def peak_memory_bytes(self) -> float | None:
        """The highest of the streams'."""
        return max(self._measured("peak_memory_bytes"), default=None)

    @property
    def constant_state_bytes(self) -> float | None:
        """The state's part that is the same for any number of edits."""
        known, each = self._measured("state_bytes"), self.state_bytes_per_edit
        if not known or each is None:
            return None
        return max(0.0, sum(known) / len(known) - self.num_edits * each)

    @property
    def perplexity(self) -> tuple[float, float] | None:
        """Before and after, geometric means over the streams."""
        pairs = [c.body["perplexity"] for c in self.cells if c.body.get("perplexity")]
        known = [(p["before"], p["after"]) for p in pairs if None not in (p["before"], p["after"])]
        if not known:
            return None
        before, after = np.exp(np.log(np.array(known, dtype=float)).mean(0))
        return float(before), float(after)

    @property
    def preparation_seconds(self) -> float | None:
        """None where there is nothing to prepare, which takes no time to speak of."""
        prepared = [(c.body.get("prepared") or {}).get("seconds") for c in self.cells]
        return max((float(s) for s in prepared if s is not None and s >= 0.5), default=None)

    def _measured(self, name: str) -> list[float]:
        return [float(c.body[name]) for c in self.cells if c.body.get(name) is not None]


@dataclass
class Summary:
    """All rows in the order of the suites, and what must be known to read them."""

    runs: list[Run]
    rows: list[Row] = field(default_factory=list)

    @property
    def data(self) -> list[str]:
        return list(dict.fromkeys(row.data for row in self.rows))

    @property
    def labels(self) -> list[str]:
        return list(dict.fromkeys(row.label for row in self.rows))

    @property
    def scorings(self) -> list[str]:
        """Those for which there is a number."""
        return [
            name
            for name in SCORINGS
            if any(e for row in self.rows for e in row.scores.get(name, {}).values())
        ]

    @property
    def problems(self) -> list[str]:
        return [problem for run in self.runs for problem in run.problems]

    def of(self, data: str, num_edits: int | None = None) -> list[Row]:
        return [row for row in self.rows if row.data == data and num_edits in (None, row.num_edits)]

    def kinds(self, data: str) -> list[tuple[str, str]]:
        """Aspects and kinds of probe, of those aspects of which the data set names several.

        And a kind that counts in no mean, which nothing else shows.
        """
        found: dict[str, dict[str, None]] = {}
        for row in self.of(data):
            for aspect, kinds in row.kinds.items():
                found.setdefault(aspect, {}).update(dict.fromkeys(kinds))
        return [
            (aspect, kind)
            for aspect, kinds in found.items()
            if len(kinds) > 1 or kinds.keys() & {*UNCOUNTED}
            for kind in kinds
        ]

    def lengths(self, data: str) -> list[int]:
        return sorted({row.num_edits for row in self.of(data)})

    def main_length(self, data: str) -> int:
        """The largest number of edits that is done for nearly all methods."""
        done = {
            n: sum(row.status == "done" for row in self.of(data, n)) for n in self.lengths(data)
        }
        return max(n for n in done if done[n] >= 0.75 * max(done.values()))

    def doubtful(self) -> dict[str, Sanity]:
        return {row.label: row.sanity for row in self.rows if row.sanity and row.doubtful}


def summarise(folders: Sequence[Path]) -> Summary:
    """Read the runs' folders and bring their cells together.

    A label is followed by what tells runs apart: the model where there are several, and where a
    label occurs in several runs of a model the host, or the folder's name where that is the same.
    A data set of one name with other records in another run is followed by the folder's name.
    """
    runs = [read_run(folder) for folder in folders]
    summary = Summary(runs)
    for run in runs:
        expected = estimates_of(run)
        keys = (*run.planned, *run.cells)
        for place in dict.fromkeys((key.data, key.label, key.num_edits) for key in keys):
            row = make_row(run, expected, *place)
            data, label = shown_data(runs, run, place[0]), shown_label(runs, run, place[1])
            summary.rows.append(replace(row, data=data, label=label))
    order = {name: i for i, name in enumerate(summary.data)}
    summary.rows.sort(key=lambda row: (order[row.data], row.num_edits))
    return summary


def shown_label(runs: Sequence[Run], run: Run, label: str) -> str:
    alike = [r for r in runs if r.model == run.model]
    marks = [run.model] if len(alike) < len(runs) else []
    sharing = [r for r in alike if any(k.label == label for k in (*r.planned, *r.cells))]
    if len(sharing) > 1:
        marks.append(distinct_name(sharing, run))
    return f"{label} ({', '.join(marks)})" if marks else label


def distinct_name(runs: Sequence[Run], run: Run) -> str:
    hosts = [r.host.removeprefix("EasyEdit ").split(" (")[0] for r in runs]
    for names in (hosts, [r.host for r in runs], [r.folder.name for r in runs]):
        if len({*names}) == len(names):
            return names[runs.index(run)]
    return str(run.folder)


def shown_data(runs: Sequence[Run], run: Run, data: str) -> str:
    sets = [((r.suite.get("data") or {}).get(data) or {}).get("digest") for r in runs]
    if len({digest for digest in sets if digest is not None}) < 2:
        return data
    names = [r.folder.name for r in runs]
    return f"{data} ({run.folder.name if names.count(run.folder.name) == 1 else run.folder})"


def make_row(run: Run, expected: Estimates, data: str, label: str, num_edits: int) -> Row:
    keys = sorted(
        key
        for key in {*run.planned, *run.cells}
        if (key.data, key.label, key.num_edits) == (data, label, num_edits)
    )
    found = [run.cells[key] for key in keys if key in run.cells]
    cells = tuple(cell for cell in found if not cell.failed)
    missing = tuple(key.stream for key in keys if key not in run.cells)
    method = found[0].method if found else str(run.planned[keys[0]].get("method", label))
    seconds = [expected.seconds(planned_cell(key)) for key in keys if key not in run.cells]
    return Row(
        data=data,
        label=label,
        method=method,
        host=run.host,
        num_edits=num_edits,
        cells=cells,
        failures=tuple(cell for cell in found if cell.failed),
        not_run=missing,
        hours=None if None in seconds else sum(s or 0.0 for s in seconds) / 3600,
        sanity=run.sanity.get(label),
        run=run,
        scores={
            scoring: with_score(
                {m: [c.scores[scoring][m] for c in cells] for m in measures(scoring)}
            )
            for scoring in SCORINGS
            if cells
        },
        kinds=by_kind(cells),
        retention={
            scoring: retention([c.scores[scoring]["reliability"] for c in cells])
            for scoring in SCORINGS
            if cells and num_edits > 1
        },
        state_bytes_per_edit=state_growth(run, data, label, num_edits),
    )


def shown(scoring: str) -> list[str]:
    """Of QUALITY what a table by this scoring has."""
    return [name for name in QUALITY if name != LEAKS or scoring == FORCED]


def scored(asked: Container[str]) -> tuple[str, ...]:
    """Of SCORED what a score is over: what is asked.

    Nothing where reliability is not asked, or neither locality: the unedited model would come
    first, or one that says the target everywhere.
    """
    local = "locality" in asked or "same_subject" in asked
    return tuple(a for a in SCORED if a in asked) if local and "reliability" in asked else ()


def with_score(streams: Mapping[str, Sequence[Numbers]]) -> dict[str, Estimate | None]:
    asked = [name for name, values in streams.items() if not np.isnan(np.concatenate(values)).all()]
    return {"score": None, **estimates(streams, scored(asked))}


def state_growth(run: Run, data: str, label: str, num_edits: int) -> float | None:
    """Bytes that an edit adds to the state: as measured within streams of that length, or else from
    that length to the next shorter one, of the shortest to the next longer."""
    within: list[float] = []
    totals: dict[int, list[float]] = {}
    for key, cell in run.cells.items():
        if (key.data, key.label) == (data, label) and not cell.failed:
            if cell.body.get("state_bytes") is not None:
                totals.setdefault(key.num_edits, []).append(float(cell.body["state_bytes"]))
            if key.num_edits == num_edits and cell.body.get("state_bytes_per_edit") is not None:
                within.append(float(cell.body["state_bytes_per_edit"]))
    if within:
        return fmean(within)
    if num_edits not in totals:
        return None
    if not any(totals[num_edits]):
        return 0.0
    shorter = [length for length in totals if length < num_edits]
    longer = [length for length in totals if length > num_edits]
    if not shorter and not longer:
        return None
    other = max(shorter) if shorter else min(longer)
    return max(0.0, (fmean(totals[num_edits]) - fmean(totals[other])) / (num_edits - other))


def by_kind(cells: Sequence[Cell]) -> dict[str, dict[str, dict[str, Estimate | None]]]:
    found: dict[str, dict[str, dict[str, Estimate | None]]] = {}
    for aspect in dict.fromkeys(aspect for cell in cells for aspect in cell.kinds):
        kinds = dict.fromkeys(kind for cell in cells for kind in cell.kinds.get(aspect, ()))
        found[aspect] = {
            kind: estimates(
                {
                    scoring: [
                        cell.kinds.get(aspect, {}).get(kind, {}).get(scoring, none(cell))
                        for cell in cells
                    ]
                    for scoring in SCORINGS
                }
            )
            for kind in kinds
        }
    return found


def mean_of(values: Numbers) -> float | None:
    return None if np.isnan(values).all() else float(np.nanmean(values))


def none(cell: Cell) -> Numbers:
    return np.full(len(cell.edits), np.nan)


def retention(streams: Sequence[Numbers]) -> Retention:
    """Means over the streams; [POINTS], or one a place of the window in a short stream."""
    length = max(len(stream) for stream in streams)
    size = max(1, round(WINDOW * length))
    last_start = length - size
    starts = np.unique(np.linspace(0, last_start, min(POINTS, last_start + 1)).round().astype(int))
    windows = [np.concatenate([s[start : start + size] for s in streams]) for start in starts]
    values = [np.nan if np.isnan(w).all() else float(np.nanmean(w)) for w in windows]
    return Retention(starts + 1, starts + size, np.array(values))


def estimates_of(run: Run) -> Estimates:
    """Hours of the cells that were not run, from those that were."""
    singles = int((run.suite.get("common") or {}).get("single_edits") or 25)
    found = Estimates(
        RunFolder(run.folder), [], lambda c: singles if c.num_edits == 1 else c.num_edits
    )
    for label, cell in run.sanity_cells.items():
        if not cell.failed:
            found.sanity[label] = Cost.of(cell.body)
    for cell in run.cells.values():
        found.add(planned_cell(cell.key), cell.body)
    return found


def planned_cell(key: Key) -> PlannedCell:
    return PlannedCell(key.num_edits, key.stream, key.data, key.label)
