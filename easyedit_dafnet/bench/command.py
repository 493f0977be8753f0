"""The command `easyedit-dafnet bench`."""

from __future__ import annotations

import argparse
import os
import platform
import re
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch
import transformers
from rich.console import Console
from rich.table import Table

from ..files import mark_folder
from .cells import RUN, Cell, Estimates, RunFolder, read_json, read_result
from .engines import Workers, run_on_slurm
from .environment import command_line
from .preflight import Preflight, quiet
from .progress import Watch, expected
from .suite import Run, Suite, SuiteError, read_suite_file, suite_file
from .worker import Job

#: Options that are the suite's settings of the same name.
SETTINGS = {f.name for f in fields(Suite)}
#: Without any of these a command goes on with the plan that is there.
PLANNED = ("suite", "data", "methods", "num_edits", "streams")


def run(args: argparse.Namespace) -> int:
    """The exit status: 1 when cells failed."""
    at_terminal = sys.stdout.isatty()  # elsewhere the width is unknown
    console = Console(
        markup=False,
        highlight=False,
        soft_wrap=not at_terminal,
        width=None if at_terminal else 120,
    )
    folder = RunFolder(args.out.absolute())
    if args.jobs < 1:
        raise SuiteError(f"--jobs is {args.jobs}; it must be at least 1.")
    cluster = dict(_pair("--slurm", entry) for entry in args.slurm)
    selection = [_selection(entry) for entry in args.only]
    older = Run.load(folder)
    suite = read_settings(args, older)
    mark_folder(folder.path, RUN)
    check_device(suite.device, here=args.engine == "local")
    transformers.logging.set_verbosity_error()
    typed = {name for name in ("methods", "data") if getattr(args, name) is not None}
    with quiet(folder):
        preflight = Preflight.check(suite, folder, older, typed)
    for table in preflight.tables():
        console.print(table)
    mine = preflight.run(command_line())
    if older and all(getattr(args, name) is None for name in PLANNED):
        rest = (c for c in older.cells if c.label in mine.methods and c.data in mine.data)
        mine = replace(mine, cells=tuple(rest))
    with folder.lock("suite"):
        older = Run.load(folder)  # another command may have been faster
        plan = mine.merge(older, folder) if older else mine
        if not mine.cells:
            raise SuiteError("Nothing can run: the tables say what is missing.")
        if not args.dry_run:
            plan.save(folder)
    cells = [c for c in mine.cells if not selection or any(fits(c, s) for s in selection)]
    if not cells:
        raise SuiteError(f"--only {' '.join(args.only)} fits none of the {len(mine.cells)} cells.")
    console.print(plan_table(folder, suite, cells, args.jobs))
    if args.dry_run:
        return 0
    if args.retry_failed:
        retry(folder, cells)
    forget_killed_workers(folder)

    job = Job(
        folder=str(folder.path),
        suite=suite.to_mapping(),
        label="",
        cells=cells,
        deadline=time.time() + args.max_hours * 3600 if args.max_hours is not None else None,
        command=mine.command,
    )
    watch = Watch(folder, suite, cells, args.jobs, console)
    try:
        with stopping(), watch.showing():
            if args.engine == "slurm":
                run_on_slurm(job, args.jobs, cluster, watch.tick)
            else:
                Workers(job, args.jobs).run(watch.tick)
            watch.tick(now=True)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(
            f"stopped; to go on: easyedit-dafnet bench --out {args.out}"
        ) from None
    return summarise(watch, folder, cells, args.out, console)


def forget_killed_workers(folder: RunFolder) -> None:
    """Those of this machine; others' may be alive, and so may this one's of another command."""
    for path in folder.workers.glob(f"{platform.node()}-*.json"):
        status = read_json(path)
        try:
            if status is not None:
                os.kill(status["pid"], 0)  # only asks
        except ProcessLookupError:
            path.unlink(missing_ok=True)
        except PermissionError:  # another user's, so it is alive
            pass


def retry(folder: RunFolder, cells: Sequence[Cell]) -> None:
    """Forget what failed."""
    paths = [folder.sanity(label) for label in {cell.label for cell in cells}]
    for path in (*paths, *map(folder.result, cells)):
        result = read_result(path)
        if result is not None and result["status"] == "failed":
            path.unlink()


def summarise(
    watch: Watch, folder: RunFolder, cells: Sequence[Cell], out: Path, console: Console
) -> int:
    done, failed = watch.counts()
    left = len(cells) - done - failed
    console.print(
        f"{done} of {len(cells)} cells are done"
        + (
            f", {failed} failed (their files in {out}/cells say why; --retry-failed)"
            if failed
            else ""
        )
        + (f", {left} are left to others or to another run" if left else "")
        + f". See them: easyedit-dafnet report {out}"
    )
    return 1 if failed else 0


def read_settings(args: argparse.Namespace, older: Run | None) -> Suite:
    """The suite's file, or all that the folder was asked for, overruled by the options."""
    given = {
        name: value for name, value in vars(args).items() if name in SETTINGS and value is not None
    }
    base: Mapping[str, Any] = {}
    if args.suite:
        base = read_suite_file(suite_file(args.suite))
    elif older:
        base = older.everything()
    suite = Suite.read({**base, **given}).absolute(Path.cwd())
    if not suite.methods:
        raise SuiteError("Which methods? Name them with --methods, or a --suite.")
    # What the user types counts for all methods, those with values of their own included.
    own: dict[str, Any] = {
        name: None for name in ("num_edits", "streams", "train") if name in given
    }
    return replace(suite, methods=tuple(replace(method, **own) for method in suite.methods))


def check_device(device: str, here: bool) -> None:
    """Raises SuiteError. here: whether the workers run on this machine."""
    if not re.fullmatch(r"cpu|cuda(:\d+)?", device):
        raise SuiteError(f"device is {device!r}; it must be cpu, cuda or cuda:NUMBER.")
    number = torch.device(device).index or 0
    if here and device != "cpu" and number >= torch.cuda.device_count():
        raise SuiteError(f"device is {device!r}, and PyTorch finds no such GPU here; use cpu.")


# -- Options with an = ----------------------------------------------------------------------------


def _pair(option: str, text: str) -> tuple[str, Any]:
    name, mark, value = text.partition("=")
    if not mark or not name or not value:
        raise SuiteError(f"{option} {text!r} is not of the form KEY=VALUE.")
    return name, int(value) if value.lstrip("-").isdigit() else value


def _selection(text: str) -> dict[str, Any]:
    chosen = dict(_pair("--only", part) for part in text.split(","))
    known = {"data": "data", "method": "label", "num_edits": "num_edits", "stream": "stream"}
    for name in chosen:
        if name not in known:
            raise SuiteError(f"--only {name}=...: choose by {', '.join(known)}.")
    return {known[name]: value for name, value in chosen.items()}


def fits(cell: Cell, selection: Mapping[str, Any]) -> bool:
    return all(str(getattr(cell, name)) == str(value) for name, value in selection.items())


# -- Plan -----------------------------------------------------------------------------------------


def plan_table(folder: RunFolder, suite: Suite, cells: Sequence[Cell], jobs: int) -> Table:
    """Cells by method and length, and how long the open ones will take one after another."""
    estimates = Estimates(folder, cells, suite.edits)
    lengths = sorted({cell.num_edits for cell in cells})
    table = Table("method", title="Cells: done/planned by number of edits", title_justify="left")
    for length in lengths:
        table.add_column(str(length), justify="right")
    table.add_column("time left", justify="right")
    for label in dict.fromkeys(cell.label for cell in cells):
        mine = [cell for cell in cells if cell.label == label]
        open_cells = set(folder.open_cells(mine))
        row = []
        for length in lengths:
            these = [cell for cell in mine if cell.num_edits == length]
            done = sum(cell not in open_cells for cell in these)
            row.append(f"{done}/{len(these)}" if these else "")
        table.add_row(label, *row, expected(open_cells, estimates))
    table.add_section()
    rest = expected(folder.open_cells(cells), estimates, jobs)
    table.add_row("all" if jobs == 1 else f"all, by {jobs} workers", *[""] * len(lengths), rest)
    return table


@contextmanager
def stopping() -> Iterator[None]:
    """SIGTERM stops as Ctrl-C does, which shells let processes in the background ignore."""

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
