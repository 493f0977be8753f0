"""Shows how a run goes on: cells, edits, what each worker does, the time left."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from .cells import Cell, Estimates, RunFolder, read_json, read_result
from .suite import Suite

EVERY = 2.0  #: seconds between looks at the folder


class Watch:
    """Watches the run's folder, which says all there is to show."""

    def __init__(
        self, folder: RunFolder, suite: Suite, cells: Iterable[Cell], jobs: int, console: Console
    ) -> None:
        """cells: those that this command is to finish."""
        self.folder, self.suite, self.jobs, self.console = folder, suite, jobs, console
        self.cells = list(cells)
        self.results: dict[Cell, str] = {}  # the status of finished cells
        self.estimates = Estimates(folder, self.cells, suite.edits)
        self.live: Live | None = None
        self.looked = 0.0
        self._collect(quietly=True)

    @contextmanager
    def showing(self) -> Iterator[None]:
        """A live view on a terminal; elsewhere each finished cell is a line."""
        if not self.console.is_terminal:
            yield
            return
        with Live(self._view(), console=self.console, auto_refresh=False) as self.live:
            yield
            self.tick(now=True)
        self.live = None

    def tick(self, now: bool = False) -> None:
        if now or time.monotonic() - self.looked >= EVERY:
            self._collect(quietly=self.live is not None)
            self.looked = time.monotonic()
            if self.live is not None:
                self.live.update(self._view(), refresh=True)

    def counts(self) -> tuple[int, int]:
        """Finished and failed cells."""
        failed = sum(status == "failed" for status in self.results.values())
        return len(self.results) - failed, failed

    def time_left(self) -> str:
        """Of this command, with its number of workers."""
        return expected([c for c in self.cells if c not in self.results], self.estimates, self.jobs)

    # ---- views ----------------------------------------------------------------------------------

    def _collect(self, quietly: bool) -> None:
        self.estimates.look_at_sanity()
        for cell in self.cells:
            if cell in self.results:
                continue
            result = read_result(self.folder.result(cell))
            if result is None:
                continue
            self.results[cell] = result["status"]
            self.estimates.add(cell, result)
            if not quietly:
                self.console.print(f"{self._line()}: {cell} {_outcome(result)}")

    def _line(self) -> str:
        done, failed = self.counts()
        edits = sum(self.suite.edits(cell) for cell in self.results)
        total = sum(map(self.suite.edits, self.cells))
        parts = [f"{done + failed}/{len(self.cells)} cells", f"{edits}/{total} edits"]
        parts += [f"{failed} failed"] if failed else []
        return ", ".join([*parts, f"left: {self.time_left()}"])

    def _view(self) -> Group:
        edits = sum(self.suite.edits(cell) for cell in self.results)
        total = sum(map(self.suite.edits, self.cells))
        workers = Table.grid(padding=(0, 2))
        for path in sorted(self.folder.workers.glob("*.json")):
            status = read_json(path)
            if status is None:
                continue
            place = f"{status['done']}/{status['edits']}" if status["edits"] else ""
            doing = status["cell"] or status["label"]
            workers.add_row(f"  {status['host']}-{status['pid']}", doing, status["step"], place)
        bar = Table.grid()
        bar.add_row(ProgressBar(max(1, total), edits, width=60))
        return Group(Text(self._line()), bar, workers)


def _outcome(result: dict[str, Any]) -> str:
    if result["status"] == "failed":
        error = result["error"]
        message = error["message"].splitlines() or [""]
        return f"failed: {error['type']}: {message[0][:200]}"
    return f"done in {duration(result['seconds']['total'])}"


def expected(cells: Iterable[Cell], estimates: Estimates, jobs: int = 1) -> str:
    """The time that the cells will take, as far as anything is known of their methods."""
    seconds = [estimates.seconds(cell) for cell in cells]
    known = [s for s in seconds if s is not None]
    if not seconds:
        return "nothing"
    if not known:
        return "not known yet"
    more = "at least" if len(known) < len(seconds) else "about"
    return f"{more} {duration(sum(known) / jobs)}"


def duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
