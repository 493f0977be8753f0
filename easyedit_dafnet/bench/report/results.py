"""Read the folders that runs of the benchmark leave."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import sqrt
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ...edit_records import RELATION_SPECIFICITY
from ...files import DamagedFile, read_object
from ..same_subject import UNCOUNTED

FORMAT = 1
ONE_SIDED_95 = 1.645  # standard deviations
#: In the order of the bootstrap's draws, which must keep their numbers.
ASPECTS = ("reliability", "generality", "locality", "portability", "same_subject")
FORCED, LEAKS = "teacher_forced", "leaks"
#: What the results call the scorings, and what the report calls them.
SCORINGS = {
    FORCED: "Teacher-forced",
    "exact_match": "Generation: exact match",
    "token_f1": "Generation: token F1",
    "begins": "Generation: begins with the answer",
}

Numbers = npt.NDArray[np.float64]


@dataclass(frozen=True, order=True)
class Key:
    """Which cell: the data set, the method's label, the number of edits, the stream."""

    data: str
    label: str
    num_edits: int
    stream: int


@dataclass(frozen=True)
class Cell:
    """A finished or failed cell.

    scores: by scoring and measure, one number per edit in order; NaN where the record has no such
    probe. kinds: by aspect, kind and scoring, alike. body: the file's content.
    """

    key: Key
    method: str
    failed: bool
    edits: tuple[str, ...]
    scores: Mapping[str, Mapping[str, Numbers]]
    kinds: Mapping[str, Mapping[str, Mapping[str, Numbers]]]
    body: Mapping[str, Any]

    @property
    def error(self) -> str:
        """The type and the last line of what went wrong."""
        return last_line(self.body.get("error"))

    @property
    def seconds_per_edit(self) -> float | None:
        """None for failed cells."""
        if self.failed or not self.edits:
            return None
        return float(self.body["seconds"]["edit"]) / len(self.edits)


@dataclass(frozen=True)
class Sanity:
    """Whether a method's single edits reach what its paper reports, but for chance."""

    passed: bool
    expected: Mapping[str, float]
    found: Mapping[str, float | None]
    error: str = ""


@dataclass
class Run:
    """One folder: what was planned, and what is there of it.

    problems: a sentence for each file that could not be used.
    """

    folder: Path
    host: str
    suite: Mapping[str, Any]
    planned: dict[Key, Mapping[str, Any]] = field(default_factory=dict)
    cells: dict[Key, Cell] = field(default_factory=dict)
    sanity: dict[str, Sanity] = field(default_factory=dict)
    sanity_cells: dict[str, Cell] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    @property
    def model(self) -> str:
        """The name of the unedited model."""
        return Path(str((self.suite.get("asked") or {}).get("model") or "")).name

    def texts(self, key: Key) -> Iterator[dict[str, Any]]:
        """Per record of the cell, in order; nothing where the run's texts are not at hand."""
        path = self.folder / "texts" / key.data / key.label
        path = path / f"n{key.num_edits}-s{key.stream}.jsonl"
        if not path.is_file():
            return
        with path.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                try:
                    yield json.loads(line)
                except ValueError:
                    self.problems.append(f"{path}: line {number} is not JSON; left out.")
                    return


class Damaged(ValueError):
    """A file that is not what its place in the folder says."""


def read_run(folder: Path) -> Run:
    """Read a run's folder; files that cannot be read become `problems`.

    Raises:
        ValueError: the folder holds no results at all.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder; name the --out folder of a benchmark run.")
    run = Run(folder, host="", suite={})
    suite = folder / "suite.json"
    if suite.is_file():
        try:
            body = read_json(suite)
            check_kinds(body, dict, "common", "data", "methods", "left_out", "asked")
            check_kinds(body, list, "cells")
            run.planned = {read_key(entry): entry for entry in body.get("cells") or []}
            run.suite = body
        except Damaged as problem:
            run.problems.append(f"{suite}: {problem}; cells that were not run are unknown.")
    else:
        run.problems.append(f"{folder} has no suite.json; cells that were not run are unknown.")
    for path in sorted(folder.glob("cells/*/*/*.json")):
        try:
            cell = read_cell(read_json(path))
            run.cells[cell.key] = cell
        except Damaged as problem:
            run.problems.append(f"{path}: {problem}; left out.")
    for path in sorted(folder.glob("sanity/*.json")):
        try:
            body = read_json(path)
            check_kinds(body, dict, "cell")
            # Sanity streams have a name instead of a number.
            cell = read_cell({**body, "cell": {**(body.get("cell") or {}), "stream": -1}})
            run.sanity[cell.key.label] = read_sanity(body, cell)
            run.sanity_cells[cell.key.label] = cell
        except Damaged as problem:
            run.problems.append(f"{path}: {problem}; left out.")
    if not run.cells and not run.planned and not run.sanity:
        raise ValueError(
            f"{folder} has no results that can be read; name the --out folder of a benchmark run. "
            + " ".join(run.problems)
        )
    hosts = {host_name(cell.body) for cell in (*run.cells.values(), *run.sanity_cells.values())}
    run.host = ", ".join(sorted(hosts - {""}))
    return run


def read_json(path: Path) -> dict[str, Any]:
    try:
        body = read_object(path)
    except (DamagedFile, OSError) as error:
        reason = str(error).removeprefix(f"{path} ").removesuffix(".")
        raise Damaged(reason) from error
    if body.get("format") != FORMAT:
        raise Damaged(f"has format {body.get('format')!r}, and this version reads {FORMAT}")
    return body


def check_kinds(body: Mapping[str, Any], kind: type, *names: str) -> None:
    """Raise Damaged where one of these is there and of another kind."""
    for name in names:
        if not isinstance(body.get(name), kind | None):
            raise Damaged(f"has {name} that is a {type(body[name]).__name__}")


def read_key(entry: Any) -> Key:
    try:
        return Key(
            str(entry["data"]),
            str(entry["label"]),
            int(entry["num_edits"]),
            int(entry["stream"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise Damaged("names a cell without data, label, num_edits and stream") from error


def read_cell(body: Mapping[str, Any]) -> Cell:
    """The cell of a file's content. Raises Damaged."""
    try:
        return _cell(body)
    except (LookupError, AttributeError, TypeError) as error:
        raise Damaged(f"is not made as a cell's ({type(error).__name__}: {error})") from error


def measures(scoring: str) -> tuple[str, ...]:
    """What a scoring gives for each edit: the aspects and, teacher-forced alone, leaks."""
    return (*ASPECTS, LEAKS) if scoring == FORCED else ASPECTS


def _cell(body: Mapping[str, Any]) -> Cell:
    check_kinds(body, dict, "cell", "environment", "error", "kinds")
    check_kinds(body, list, "edits")
    key = read_key(body.get("cell"))
    if body.get("status") not in ("done", "failed"):
        raise Damaged(f"has the status {body.get('status')!r} instead of done or failed")
    failed = body["status"] == "failed"
    edits = tuple(str(edit) for edit in body.get("edits") or ())
    scores: dict[str, dict[str, Numbers]] = {}
    kinds: dict[str, dict[str, dict[str, Numbers]]] = {}
    if not failed:
        if not isinstance(body.get("scores"), dict):
            raise Damaged("is done and has no scores")
        check_seconds(body)
        for scoring in SCORINGS:
            aspects = body["scores"].get(scoring) or {}
            scores[scoring] = {
                aspect: numbers(aspects.get(aspect), len(edits), f"{scoring} {aspect}")
                for aspect in ASPECTS
            }
        scores[FORCED][LEAKS] = numbers(body.get("leaks"), len(edits), LEAKS)
        for aspect, by_kind in (body.get("kinds") or {}).items():
            kinds[aspect] = {
                kind: {
                    scoring: numbers(by_scoring.get(scoring), len(edits), f"{aspect} {kind}")
                    for scoring in SCORINGS
                }
                for kind, by_scoring in by_kind.items()
            }
        if "same_subject" not in kinds:
            tell_apart(scores, kinds)
    method = str(body["cell"].get("method", key.label))
    return Cell(key, method, failed, edits, scores, kinds, body)


def tell_apart(
    scores: Mapping[str, dict[str, Numbers]], kinds: dict[str, dict[str, dict[str, Numbers]]]
) -> None:
    """Take same-subject locality out of an older cell's locality, where its kinds tell it.

    Data sets that name these kinds have no other, or one; of several, each would count alike.
    """
    locality = kinds.get("locality", {})
    if not {RELATION_SPECIFICITY, *UNCOUNTED} & locality.keys():
        return
    specific = locality.pop(RELATION_SPECIFICITY, None)
    if specific is not None:
        kinds["same_subject"] = {RELATION_SPECIFICITY: specific}
    for scoring, values in scores.items():
        if specific is not None:
            values["same_subject"] = specific[scoring]
        nothing = np.full_like(values["locality"], np.nan)
        others = [of[scoring] for kind, of in locality.items() if kind not in UNCOUNTED]
        known = np.sum([~np.isnan(of) for of in others], 0)
        total = np.nansum(others, 0)
        values["locality"] = np.divide(total, known, out=nothing, where=known > 0)


def check_seconds(body: Mapping[str, Any]) -> None:
    seconds = body.get("seconds")
    for name in ("edit", "score", "total"):
        if not isinstance(seconds, dict) or not isinstance(seconds.get(name), int | float):
            raise Damaged(f"is done and does not say its seconds to {name}")


def numbers(values: Sequence[float | None] | None, count: int, what: str) -> Numbers:
    """[count] float64, NaN for null; all NaN when the scoring has no such values."""
    if values is None:
        return np.full(count, np.nan)
    try:
        array = np.array([math.nan if v is None else float(v) for v in values])
    except (TypeError, ValueError) as error:
        raise Damaged(f"has a score that is no number ({what})") from error
    if len(array) != count:
        raise Damaged(f"has {len(array)} scores for {count} edits ({what})")
    return array


def read_sanity(body: Mapping[str, Any], cell: Cell) -> Sanity:
    try:
        expected, found = body["sanity"]["expected"], body["sanity"]["found"]
        passed = not cell.failed and all(
            reaches(found[name], least, len(cell.edits)) for name, least in expected.items()
        )
        return Sanity(passed, expected, found, cell.error)
    except (KeyError, TypeError) as error:
        raise Damaged("lacks expected and found of the sanity cell") from error


def reaches(found: float | None, expected: float, edits: int) -> bool:
    """Whether a mean over so few edits may be that of a method with the expected one.

    Such a method misses now and then: at 0.9, one of eight edits is nothing unusual, three are
    (one-sided 95 %, normal approximation for edits that are right or wrong).
    """
    spread = sqrt(expected * (1 - expected) / max(edits, 1))
    return (found or 0.0) >= expected - ONE_SIDED_95 * spread


def last_line(error: Mapping[str, Any] | None) -> str:
    if not error:
        return ""
    lines = str(error.get("message") or "").strip().splitlines()
    return ": ".join(filter(None, (str(error.get("type") or ""), lines[-1] if lines else "")))


def host_name(body: Mapping[str, Any]) -> str:
    return str((body.get("environment") or {}).get("host") or "")
