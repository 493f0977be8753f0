"""A worker: a process that prepares one method and runs its cells, as many as are free.

The process that starts a worker writes it one line of JSON, the Job, and keeps the pipe open: a
worker whose starter is gone ends. Several workers, of several machines too, share a run's folder
by locks of the operating system.
"""

from __future__ import annotations

import json
import logging
import os
import platform
import signal
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import transformers
from filelock import BaseFileLock, Timeout

from ..edit_records import EditRecord
from ..files import write_text
from .cells import (
    FORMAT,
    PROTOCOL,
    Cell,
    Estimates,
    RunFolder,
    read_json,
    without_paths,
    write_json,
)
from .environment import environment
from .materials import DataSet, Passages, TrainingRecords
from .method import Method, Workbench
from .protocol import Protocol, start_random_numbers
from .registry import find_method
from .scoring import Scorer
from .streams import draw, stream_seed
from .suite import Run, Suite, SuiteError
from .unedited_model import UneditedModel, load_model, load_tokenizer, model_path

SANITY_EDITS = 8
SANITY_STREAM = -1
CHUNK = 100  #: records whose unedited answers are computed and written together
LONG = 5  #: seconds; a preparation that took longer has a process of its own
START_AFRESH = 10  #: exit status of a worker after a failed cell or a long preparation


@dataclass(frozen=True)
class Job:
    """What a worker does: cells of one method.

    suite: the settings as `Suite.read` takes them. deadline: seconds of the epoch; no cell starts
    that would likely end later. command: what the user typed.
    """

    folder: str
    suite: Mapping[str, Any]
    label: str
    cells: Sequence[Cell]
    deadline: float | None
    command: str

    def to_line(self) -> str:
        return json.dumps(asdict(self)) + "\n"

    @classmethod
    def from_line(cls, line: str) -> Job:
        given = json.loads(line)
        return cls(**given | {"cells": [Cell(**cell) for cell in given["cells"]]})


@dataclass
class Status:
    """What a worker is doing, for those who watch; a file in the run's folder."""

    path: Path
    label: str
    step: str = "starting"
    cell: str = ""
    done: int = 0
    edits: int = 0
    since: float = field(default_factory=time.time)
    pid: int = field(default_factory=os.getpid)
    host: str = field(default_factory=platform.node)
    _written: float = 0.0

    @classmethod
    def of(cls, folder: RunFolder, label: str) -> Status:
        return cls(status_path(folder, os.getpid()), label)

    def show(self, step: str, done: int | None = None, **changes: Any) -> None:
        """Write it down; every second at most while only `done` changes."""
        old = (self.step, self.cell)
        self.step = step
        self.done = self.done if done is None else done
        for name, value in changes.items():
            setattr(self, name, value)
        if old != (self.step, self.cell) or time.time() - self._written > 1:
            self._written = time.time()
            shown = {k: v for k, v in asdict(self).items() if not k.startswith("_") and k != "path"}
            write_json(self.path, shown)

    def remove(self) -> None:
        self.path.unlink(missing_ok=True)


def status_path(folder: RunFolder, pid: int) -> Path:
    return folder.workers / f"{platform.node()}-{pid}.json"


def now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def describe(error: BaseException) -> dict[str, str]:
    return {
        "type": type(error).__name__,
        "message": str(error),
        "traceback": "".join(traceback.format_exception(error)),
    }


class Worker:
    """The cells of one method, one after another."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.folder = RunFolder(Path(job.folder))
        self.status = Status.of(self.folder, job.label)
        self.status.show("starting")
        plan = Run.load(self.folder)
        if plan is None:
            raise SuiteError(f"{self.folder.suite} is not there; give the command again.")
        self.plan = plan
        self.suite = Suite.read(job.suite)
        (self.entry,) = (m for m in self.suite.methods if m.label == job.label)
        self.data: dict[str, DataSet] = {}
        self.text = Passages.load(self.suite)
        self.bench = workbench(
            self.suite,
            self.folder,
            job.label,
            self.text,
            TrainingRecords(
                self.suite.train if self.entry.train is None else self.entry.train,
                self.suite.data_dir,
                self.all_data,
            ),
        )
        self.scorer = Scorer(self.bench.tok)
        self.environment = environment(self.suite.device) | {"command": job.command}
        self.estimates = Estimates(
            self.folder, [c for c in plan.cells if c.label == job.label], self.suite.edits
        )

    # ---- records --------------------------------------------------------------------------------

    def all_data(self) -> list[DataSet]:
        return [self.data_set(name) for name in self.plan.data]

    def data_set(self, name: str) -> DataSet:
        if name not in self.data:
            path = self.suite.data.get(name, "")
            folders = self.suite.data_dir
            self.data[name] = DataSet.again(name, self.plan.data[name], path, folders)
        return self.data[name]

    def stream(self, cell: Cell) -> list[EditRecord]:
        data = self.data_set(cell.data)
        count = min(self.suite.edits(cell), data.most_edits)
        return draw(data.records, count, stream_seed(self.suite.seed, cell.data, cell.stream))

    def unedited(self, cell: Cell, records: Sequence[EditRecord]) -> dict[str, Any]:
        """What the unedited model says of the records, from the file that all workers fill.

        It is filled in the order of the plan and in chunks of one size, whoever does it, because
        which texts share a batch changes their last bits.
        """
        path = self.folder.unedited(cell.data)
        wanted = {record.id for record in records}
        known = read_json(path) or {}
        if not wanted <= known.keys():
            self.status.show("waiting for the unedited answers")
            with self.folder.lock(f"unedited/{cell.data}"):
                known = read_json(path) or {}
                cells = (c for c in self.plan.cells if c.data == cell.data)
                streams = dict.fromkeys((c.num_edits, c.stream) for c in cells)
                planned = {
                    record.id: record
                    for length, number in streams
                    for record in self.stream(Cell(length, number, cell.data, cell.label))
                }
                missing = [record for name, record in planned.items() if name not in known]
                model = self.unedited_model.put_back()
                for start in range(0, len(missing), CHUNK):
                    if wanted <= known.keys():
                        break
                    self.status.show("asking the unedited model", done=0)
                    known |= self.scorer.unedited(model, missing[start : start + CHUNK])
                    write_json(path, known)
        return {name: known[name] for name in wanted}

    def perplexity(self) -> dict[str, Any] | None:
        """The unedited model's, measured by whoever comes first."""
        if not self.text.perplexity:
            return None
        with self.folder.lock("perplexity"):
            found = read_json(self.folder.perplexity)
            if found is None:
                self.status.show("measuring the unedited perplexity")
                model = self.unedited_model.put_back()
                perplexity, tokens = self.scorer.perplexity(model, self.text.perplexity)
                found = {"perplexity": perplexity, "tokens": tokens}
                write_json(self.folder.perplexity, found)
        return found

    # ---- work -----------------------------------------------------------------------------------

    def run(self) -> int:
        """The exit status: 0 when no cell is free, START_AFRESH after one that failed."""
        first = self.folder.lock(f"label/{self.job.label}")
        with suppress(Timeout):  # held while this process lives: others prefer another method
            first.acquire(timeout=0)
        try:
            method = self.prepare()
        except (Exception, SystemExit) as error:  # whatever a method raises is its result
            fail(self.folder, self.job, describe(error))
            return 0
        if self.prepared_here > LONG:
            return START_AFRESH  # what it left in memory would count as the cells'
        self.unedited_model = UneditedModel(self.bench.load_model)
        if not self.check_sanity(method):
            return START_AFRESH
        before = self.perplexity()
        while True:
            claimed = self.claim()
            if claimed is None:
                return 0
            cell, lock = claimed
            with lock:
                if not self.run_cell(method, cell, before):
                    return START_AFRESH

    def prepare(self) -> Method:
        """The method, ready to edit."""
        label = self.job.label
        self.bench.folder.mkdir(parents=True, exist_ok=True)
        path = self.bench.folder.with_name(f"{label}.json")
        self.status.show("waiting for the preparation")
        with self.folder.lock(f"prepared/{label}"):
            self.status.show("preparing")
            method = find_method(self.entry.name)(self.bench, self.entry.settings)
            settings = json.loads(json.dumps(dict(method.effective_settings), default=str))
            settings = without_paths(settings)
            done = read_json(path) or {}
            if done.get("settings", settings) != settings:
                done = {}  # of other settings
            done = {"seconds": 0.0, "done": False, **done, "settings": settings}
            start, finished = time.perf_counter(), False
            self.prepared_here = 0.0
            try:
                start_random_numbers(self.suite.seed)
                method.prepare()
                finished = True
            finally:
                # An interrupted preparation may go on where it was: its parts add up.
                if not done["done"]:
                    self.prepared_here = time.perf_counter() - start
                    done["seconds"] += self.prepared_here
                    write_json(path, done | {"done": finished})
        known = method.preparation_seconds()
        self.prepared = {"seconds": done["seconds"] if known is None else known}
        return method

    def protocol(
        self, method: Method, seed: int, text: Sequence[str], before: Mapping[str, Any] | None
    ) -> Protocol:
        return Protocol(
            method,
            self.unedited_model,
            self.scorer,
            text=text,
            before=before,
            capability=self.suite.capability if text is self.text.perplexity else (),
            capability_limit=self.suite.capability_limit,
            device=self.suite.device,
            seed=seed,
            progress=self.status.show,
        )

    def check_sanity(self, method: Method) -> bool:
        """Single edits of a stream of their own must reach what the method's paper reports.

        False when they failed; the method's cells run even so.
        """
        path = self.folder.sanity(self.job.label)
        with self.folder.lock(f"sanity/{self.job.label}"):
            if path.exists():
                return True
            # The first set of this job: this machine may lack others of the plan.
            mine = {cell.data for cell in self.job.cells}
            name = next(name for name in self.plan.data if name in mine)
            data = self.data_set(name)
            count = min(SANITY_EDITS, data.most_edits)
            records = draw(data.records, count, stream_seed(self.suite.seed, name, SANITY_STREAM))
            cell = {"data": name, "num_edits": 1, "stream": "sanity", "batch_size": 1}
            seed = Cell(1, SANITY_STREAM, name, self.job.label).random_seed(self.suite.seed)
            self.status.show("sanity", done=0, cell="sanity", edits=len(records))
            expected = dict(method.expects)

            def measure() -> tuple[dict[str, Any], list[dict[str, Any]]]:
                unedited = self.scorer.unedited(self.unedited_model.put_back(), records)
                protocol = self.protocol(method, seed, (), None)
                return protocol.run(records, unedited, single=True, batch_size=1)

            result, _ = self.measure(method, cell, seed, records, measure)
            scores = result.get("scores", {}).get("teacher_forced", {})
            found = {n: _mean(scores.get(n, [])) for n in expected}
            write_json(path, result | {"sanity": {"expected": expected, "found": found}})
            self.status.show("between cells", done=0, cell="", edits=0)
            return result["status"] == "done"

    def claim(self) -> tuple[Cell, BaseFileLock] | None:
        """The first cell that is open and that no other worker has, with its lock held."""
        for cell in self.job.cells:
            if self.folder.result(cell).exists() or self._too_long(cell):
                continue
            lock = self.folder.lock(cell)
            try:
                lock.acquire(timeout=0.2)
            except Timeout:
                continue
            if not self.folder.result(cell).exists():
                return cell, lock
            lock.release()
        return None

    def _too_long(self, cell: Cell) -> bool:
        """Whether the cell would likely end after the deadline."""
        if self.job.deadline is None:
            return False
        expected = self.estimates.seconds(cell) or 0.0
        return time.time() + expected > self.job.deadline

    def run_cell(self, method: Method, cell: Cell, before: Mapping[str, Any] | None) -> bool:
        """Whether the cell went well. Either way its result is written."""
        records = self.stream(cell)
        self.status.show("starting", done=0, cell=str(cell), edits=len(records))
        unedited = self.unedited(cell, records)
        single = cell.num_edits == 1
        size = 1 if single else self.suite.batch_size
        together = len(records) if method.whole_stream and not single else size
        names = asdict(cell) | {"batch_size": together}
        seed = cell.random_seed(self.suite.seed)

        def measure() -> tuple[dict[str, Any], list[dict[str, Any]]]:
            protocol = self.protocol(method, seed, self.text.perplexity, before)
            return protocol.run(records, unedited, single, size)

        result, texts = self.measure(method, names, seed, records, measure)
        if texts:
            lines = (json.dumps(text, ensure_ascii=False) + "\n" for text in texts)
            write_text(self.folder.texts(cell), "".join(lines))
        write_json(self.folder.result(cell), result)
        self.estimates.add(cell, result)
        self.status.show("between cells", done=0, cell="", edits=0)
        return result["status"] == "done"

    def measure(
        self,
        method: Method,
        cell: Mapping[str, Any],
        seed: int,
        records: Sequence[EditRecord],
        run: Callable[[], tuple[dict[str, Any], list[dict[str, Any]]]],
    ) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """A result with all that it rests on, and the texts. A failure is a result as well."""
        started, error = now(), None
        measured: dict[str, Any] = {}
        texts: list[dict[str, Any]] = []
        try:
            measured, texts = run()
        except (Exception, SystemExit) as problem:  # whatever a method raises is its result
            error = describe(problem)
        result = {
            "format": FORMAT,
            "protocol": PROTOCOL,
            "cell": {
                **cell,
                "method": self.entry.name,
                "label": self.job.label,
                "seed": self.suite.seed,
                "random_seed": seed,
            },
            "status": "failed" if error else "done",
            "error": error,
            "edits": [record.id for record in records],
            **measured,
            "prepared": self.prepared,
            "settings": dict(method.effective_settings),
            "environment": self.environment,
            "started": started,
            "finished": now(),
        }
        return result, texts


def workbench(
    suite: Suite,
    folder: RunFolder,
    label: str,
    text: Passages,
    train: Sequence[EditRecord],
) -> Workbench:
    """What the method of this label has to work with."""
    path = model_path(suite.model)
    return Workbench(
        model_name=path,
        tok=load_tokenizer(path),
        load_model=partial(load_model, path, suite.device, suite.dtype),
        device=suite.device,
        dtype=suite.dtype,
        seed=suite.seed,
        text=text.methods,
        train=train,
        folder=folder.prepared(label),
    )


def fail(folder: RunFolder, job: Job, error: Mapping[str, str], cell: Cell | None = None) -> None:
    """Record a failure of the cell, or of all of the job's cells that are free.

    Those that another worker is on may go well: it may be on another machine.
    """
    suite = Suite.read(job.suite)
    (entry,) = (m for m in suite.methods if m.label == job.label)
    where = environment(suite.device) | {"command": job.command}
    for open_cell in folder.open_cells([cell] if cell else job.cells):
        result = {
            "format": FORMAT,
            "protocol": PROTOCOL,
            "cell": asdict(open_cell) | {"method": entry.name, "seed": suite.seed},
            "status": "failed",
            "error": error,
            "edits": [],
            "settings": dict(entry.settings),
            "environment": where,
            "finished": now(),
        }
        with suppress(Timeout), folder.lock(open_cell).acquire(timeout=0):
            if not folder.result(open_cell).exists():  # another worker may have been faster
                write_json(folder.result(open_cell), result)


def _mean(numbers: Sequence[float | None]) -> float | None:
    present = [n for n in numbers if n is not None]
    return fmean(present) if present else None


def _end_with_starter() -> None:
    """Wait until the pipe closes: the starter is gone, whatever ended it."""
    while os.read(0, 1):
        pass
    os._exit(1)


def _stop(*_: Any) -> None:
    raise KeyboardInterrupt


def main() -> int:
    job = Job.from_line(sys.stdin.readline())
    threading.Thread(target=_end_with_starter, daemon=True).start()
    signal.signal(signal.SIGTERM, _stop)
    logging.basicConfig(level=logging.WARNING)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    warnings.simplefilter("ignore")
    worker = Worker(job)
    try:
        code = worker.run()
    except KeyboardInterrupt:
        code = 130
    worker.status.remove()  # after an error it stays: it tells the starter in which cell
    return code


if __name__ == "__main__":
    sys.exit(main())
