"""Cells, the units of the benchmark's work, and the folder that keeps what they gave.

A cell is one method on one stream of edits. Its result file is written last and at once, so a cell
whose file is there is finished, whatever happened to the process that ran it.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from statistics import fmean
from typing import Any

from filelock import FileLock, Timeout

from ..files import DamagedFile, Kind, read_object, reason_of, write_text

FORMAT = 1
PROTOCOL = "score-after-stream/2"
OLDER_PROTOCOLS = ("score-after-stream/1",)
"""Reported as they are and not continued: they do not tell same-subject from other locality."""
RUN = Kind(
    "a run of the benchmark",
    "suite.json",
    lambda suite: (
        suite.get("format") == FORMAT and suite.get("protocol") in (*OLDER_PROTOCOLS, PROTOCOL)
    ),
)
REPORT = Kind("a report of the benchmark")

# Not what follows a word, a colon or another slash, as in addresses; nor ./here.
_ABSOLUTE = re.compile(r"(?<![\w:/.~])/(?:[^\s/\"']+/)*([^\s/\"']+)")


@dataclass(frozen=True, order=True)
class Cell:
    """num_edits: edits in the stream; 1 stands for many records, each edited alone."""

    num_edits: int
    stream: int
    data: str
    label: str

    def __str__(self) -> str:
        return f"{self.data}/{self.label}/n{self.num_edits}-s{self.stream}"

    def random_seed(self, seed: int) -> int:
        """For the methods' random numbers, the same for each of them; 32 bits, as numpy wants.

        seed: the suite's.
        """
        digest = sha256(f"{seed}/{self.data}/{self.num_edits}/{self.stream}".encode()).digest()
        return int.from_bytes(digest[:4], "big")


@dataclass(frozen=True)
class RunFolder:
    """Where a run keeps everything; may be shared between machines."""

    path: Path

    @property
    def suite(self) -> Path:
        return self.path / RUN.file

    @property
    def perplexity(self) -> Path:
        """The unedited model's."""
        return self.path / "perplexity.json"

    def result(self, cell: Cell) -> Path:
        return self.path / "cells" / f"{cell}.json"

    def texts(self, cell: Cell) -> Path:
        return self.path / "texts" / f"{cell}.jsonl"

    def unedited(self, data: str) -> Path:
        return self.path / "unedited" / f"{data}.json"

    def sanity(self, label: str) -> Path:
        return self.path / "sanity" / f"{label}.json"

    def prepared(self, label: str) -> Path:
        return self.path / "prepared" / label

    @property
    def logs(self) -> Path:
        return self.path / "logs"

    @property
    def workers(self) -> Path:
        """What each worker is doing now."""
        return self.path / "workers"

    def lock(self, what: str | Cell) -> FileLock:
        """A lock of the operating system, so it is free again when its holder is gone."""
        path = self.path / "locks" / f"{str(what).replace('/', '__')}.lock"
        path.parent.mkdir(parents=True, exist_ok=True)
        return FileLock(path)

    def has_begun(self, label: str) -> bool:
        """Whether anything of the method's has run, or a worker is on it."""
        if self.sanity(label).exists() or any(self.path.glob(f"cells/*/{label}/*.json")):
            return True
        try:
            with self.lock(f"label/{label}").acquire(timeout=0):
                return False
        except Timeout:
            return True

    def open_cells(self, cells: Iterable[Cell]) -> list[Cell]:
        return [cell for cell in cells if not self.result(cell).exists()]

    def results(self, cells: Iterable[Cell]) -> Iterator[tuple[Cell, dict[str, Any]]]:
        """The finished and failed ones among the cells, with what their files say."""
        for cell in cells:
            result = read_result(self.result(cell))
            if result is not None:
                yield cell, result


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """One line for each of the content's names: the lists of numbers are long."""
    lines = (
        f" {json.dumps(name)}: {json.dumps(value, ensure_ascii=False, default=str)}"
        for name, value in content.items()
    )
    write_text(path, "{\n" + ",\n".join(lines) + "\n}\n")


def read_json(path: Path) -> dict[str, Any] | None:
    """None when the file is not there. Raises DamagedFile, which names it."""
    try:
        return read_object(path)
    except FileNotFoundError:
        return None


def read_result(path: Path) -> dict[str, Any] | None:
    """What the file of a finished or failed cell says; None when it is not there.

    Raises:
        DamagedFile: it is cut off or something else; the message names it.
    """
    try:
        result = read_json(path)
        if result is None:
            return None
        if result["status"] == "done":
            Cost.of(result)
        elif result["status"] != "failed":
            raise ValueError(f"its status is {result['status']!r}")
        elif not all(isinstance(result["error"][name], str) for name in ("type", "message")):
            raise ValueError("its error is no text")
    except (LookupError, AttributeError, TypeError, ValueError) as error:
        raise DamagedFile(
            f"{path} is no result of a cell ({reason_of(error)}); remove it, and the cell "
            "runs again."
        ) from None
    return result


def without_paths(value: Any) -> Any:
    """The value with every absolute path in its texts shortened."""
    if isinstance(value, str):
        return _ABSOLUTE.sub(r"\1", value)
    if isinstance(value, dict):
        return {without_paths(name): without_paths(item) for name, item in value.items()}
    if isinstance(value, list):
        return [without_paths(item) for item in value]
    return value


# -- How long the rest will take -----------------------------------------------------------------


@dataclass(frozen=True)
class Cost:
    """Seconds that one finished cell took."""

    data: str
    num_edits: int
    per_edit: float  #: applying and scoring it
    fixed: float  #: whatever the number of edits

    @classmethod
    def of(cls, result: Mapping[str, Any]) -> Cost:
        seconds, edits = result["seconds"], max(1, len(result["edits"]))
        per_edit = (seconds["edit"] + seconds["score"]) / edits
        return cls(
            result["cell"]["data"],
            result["cell"]["num_edits"],
            per_edit,
            max(0.0, seconds["total"] - per_edit * edits),
        )


class Estimates:
    """Expected seconds of cells that have not run, from those that have."""

    def __init__(
        self, folder: RunFolder, cells: Iterable[Cell], edits: Callable[[Cell], int]
    ) -> None:
        """cells: the whole plan; edits: how many edits a cell has."""
        cells = list(cells)
        self.folder, self.edits = folder, edits
        self.labels = list(dict.fromkeys(cell.label for cell in cells))
        self.costs: dict[str, list[Cost]] = {}
        self.sanity: dict[str, Cost] = {}
        for cell, result in folder.results(cells):
            self.add(cell, result)
        self.look_at_sanity()

    def look_at_sanity(self) -> None:
        """The sanity cells are all there is to go by before a method's first cell ends."""
        for label in self.labels:
            if label not in self.sanity and label not in self.costs:
                result = read_result(self.folder.sanity(label))
                if result is not None and result["status"] == "done":
                    self.sanity[label] = Cost.of(result)

    def add(self, cell: Cell, result: Mapping[str, Any]) -> None:
        if result["status"] == "done":
            self.costs.setdefault(cell.label, []).append(Cost.of(result))

    def seconds(self, cell: Cell) -> float | None:
        """None when nothing of the method has run yet.

        Of the method's cells those of the same data and of the nearest length count most: some
        methods slow down as edits add up.
        """
        costs = self.costs.get(cell.label, [])
        costs = [c for c in costs if c.data == cell.data] or costs
        if not costs:
            costs = [self.sanity[cell.label]] if cell.label in self.sanity else []
        if not costs:
            return None

        def distance(cost: Cost) -> float:
            return abs(math.log(cost.num_edits / cell.num_edits))

        near = min(map(distance, costs))
        costs = [cost for cost in costs if distance(cost) == near]
        return fmean(c.per_edit for c in costs) * self.edits(cell) + fmean(c.fixed for c in costs)


def cell_from(entry: Mapping[str, Any]) -> Cell:
    """The cell of an entry of suite.json's plan or of a result."""
    names = asdict(Cell(0, 0, "", ""))
    return Cell(**{name: entry[name] for name in names})
