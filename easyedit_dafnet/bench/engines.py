"""Runs a plan's cells in worker processes: on this machine, or on a Slurm cluster.

Workers need nothing of each other but the run's folder, so an engine only has to start them. For
clusters that is submitit: the field's clusters run Slurm, submitit turns a call into a Slurm job
and back, and its executor "local" runs the same jobs here. Ray would want a server of its own
beside the scheduler, for objects and messages that workers do not exchange.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from filelock import Timeout

from .cells import Cell, RunFolder, read_json
from .suite import SuiteError
from .worker import START_AFRESH, Job, fail, status_path

DEATHS = 2  #: of workers on one cell, after which it counts as failed
GRACE = 10.0  #: seconds for stopped workers to write what they have
POLL = 0.5  #: seconds


@dataclass
class _Child:
    process: subprocess.Popen[bytes]
    job: Job
    log: Path


class Workers:
    """Keeps a number of worker processes busy on this machine.

    A worker serves one method and then ends, so that methods cannot disturb each other's state and
    memory. One that dies is replaced; the second death on a cell makes it a failed cell.
    """

    def __init__(self, job: Job, jobs: int) -> None:
        """job: all cells, of whatever labels, to be shared among the workers."""
        self.job, self.jobs = job, jobs
        self.folder = RunFolder(Path(job.folder))
        self.children: dict[int, _Child] = {}
        self.deaths: Counter[tuple[str, str]] = Counter()
        self.left: set[str] = set()  # labels whose open cells are others', or too long

    def run(self, tick: Callable[[], None]) -> None:
        """Work until no cell is free; calls `tick` all the while."""
        try:
            while self._fill() or self.children or self._others_prepare():
                tick()
                time.sleep(POLL)
                for slot, child in list(self.children.items()):
                    if child.process.poll() is not None:
                        del self.children[slot]
                        self._ended(child)
        finally:
            self.stop()

    def stop(self) -> None:
        """Let the workers write what they have, and end them."""
        for child in self.children.values():
            child.process.terminate()
        try:
            end = time.monotonic() + GRACE
            for child in self.children.values():
                child.process.wait(max(0.0, end - time.monotonic()))
        except subprocess.TimeoutExpired:
            pass
        finally:
            for child in self.children.values():
                child.process.kill()
                child.process.wait()
                status_path(self.folder, child.process.pid).unlink(missing_ok=True)
            self.children.clear()

    # ---- workers --------------------------------------------------------------------------------

    def _fill(self) -> bool:
        """Start a worker in each free slot that has work. Whether it started one."""
        started = False
        for slot in range(self.jobs):
            if slot not in self.children:
                label = self._next_label()
                if label is None:
                    break
                self.children[slot] = self._start(slot, label)
                started = True
        return started

    def _others_prepare(self) -> bool:
        """Whether there is work once another command's worker has prepared its method."""
        cells = self.folder.open_cells(self.job.cells)
        return not self._late() and any(cell.label not in self.left for cell in cells)

    def _late(self) -> bool:
        return self.job.deadline is not None and time.time() > self.job.deadline

    def _next_label(self) -> str | None:
        """A method with free cells, rather one that no other worker is on."""
        if self._late():
            return None
        busy = Counter(child.job.label for child in self.children.values())
        labels: Counter[str] = Counter(
            cell.label for cell in self.folder.open_cells(self.job.cells)
        )
        free = [
            label
            for label, count in labels.items()
            # A worker on each open cell is enough.
            if label not in self.left and busy[label] < count
        ]
        alone = [label for label in free if not busy[label] and self._is_free(f"label/{label}")]
        if alone:
            return alone[0]
        # Beside another worker only once that one has prepared the method.
        ready = [label for label in free if self._is_free(f"prepared/{label}")]
        return min(ready, key=lambda label: busy[label], default=None)

    def _is_free(self, what: str | Cell) -> bool:
        lock = self.folder.lock(what)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            return False
        lock.release()
        return True

    def _start(self, slot: int, label: str) -> _Child:
        cells = [cell for cell in self.job.cells if cell.label == label]
        job = replace(self.job, label=label, cells=cells)
        self.folder.logs.mkdir(parents=True, exist_ok=True)
        log = self.folder.logs / f"{label}-{platform.node()}-{os.getpid()}-{slot}.log"
        with log.open("ab") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", f"{__package__}.worker"],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=os.environ | worker_environment(slot, self.jobs, self.job.suite["device"]),
                start_new_session=True,  # Ctrl-C is for the starter, which then stops the workers
            )
        assert process.stdin is not None
        process.stdin.write(job.to_line().encode())
        process.stdin.flush()
        return _Child(process, job, log)

    def _ended(self, child: _Child) -> None:
        label, code = child.job.label, child.process.returncode
        status = status_path(self.folder, child.process.pid)
        if code == 0:
            self.left.add(label)
            return
        self.left.discard(label)
        if code == START_AFRESH:
            return
        doing = read_json(status) or {"cell": "", "step": "starting"}
        status.unlink(missing_ok=True)
        cell = next((c for c in child.job.cells if str(c) == doing["cell"]), None)
        what = doing["cell"] or doing["step"]
        self.deaths[label, what] += 1
        if self.deaths[label, what] >= DEATHS:
            error = {
                "type": "WorkerDied",
                "message": f"The worker ended twice while it was at {what}: {_reason(code)}.",
                "traceback": _tail(child.log),
            }
            fail(self.folder, child.job, error, cell)


def worker_environment(slot: int, jobs: int, device: str) -> dict[str, str]:
    """Variables for a worker: its share of the cores, unless the user has set it, and its GPU."""
    # Unbuffered, so that the log has what a method printed before its process died.
    own = {"PYTHONHASHSEED": "0", "PYTHONUNBUFFERED": "1", "TOKENIZERS_PARALLELISM": "false"}
    if jobs > 1 and "OMP_NUM_THREADS" not in os.environ:
        own["OMP_NUM_THREADS"] = str(max(1, torch.get_num_threads() // jobs))
    if device == "cuda":
        visible = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(
            map(str, range(torch.cuda.device_count()))
        )
        gpus = visible.split(",")
        own["CUDA_VISIBLE_DEVICES"] = gpus[slot % len(gpus)]
    return own


def _reason(code: int) -> str:
    if code < 0:
        return f"killed by {signal.Signals(-code).name}"
    return f"exit status {code}"


def _tail(log: Path, lines: int = 30) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-lines:])


# -- Slurm ----------------------------------------------------------------------------------------


@dataclass
class SlurmJob:
    """A Slurm job: one worker after another until no cell is free."""

    job: Job

    def __call__(self) -> None:
        Workers(self.job, 1).run(lambda: None)

    def checkpoint(self) -> Any:
        """What submitit queues when Slurm takes the machine away: the same, results are kept."""
        import submitit

        return submitit.helpers.DelayedSubmission(self)


def run_on_slurm(
    job: Job, jobs: int, settings: Mapping[str, Any], tick: Callable[[], None]
) -> None:
    """Submit as many Slurm jobs and wait for them; the run's folder must be visible to all.

    settings: as submitit's AutoExecutor takes them, such as slurm_partition, timeout_min, mem_gb,
    cpus_per_task, gpus_per_node; and cluster ("slurm"; "local" runs the jobs on this machine).
    """
    if importlib.util.find_spec("submitit") is None:
        raise ImportError("--engine slurm needs submitit: pip install 'easyedit_dafnet[slurm]'.")
    import submitit

    parameters: dict[str, Any] = {"timeout_min": 24 * 60, "name": "easyedit-bench", **settings}
    cluster = parameters.pop("cluster", "slurm")
    if cluster == "slurm" and shutil.which("srun") is None:
        raise SuiteError(
            "--engine slurm: Slurm's srun is not on this machine; start the command where jobs are "
            "submitted, or try it here with --slurm cluster=local."
        )
    executor = submitit.AutoExecutor(RunFolder(Path(job.folder)).logs / "slurm", cluster=cluster)
    try:
        executor.update_parameters(**parameters)
    except (NameError, TypeError, ValueError) as error:
        raise SuiteError(f"--slurm: {error}") from error
    submitted = [executor.submit(SlurmJob(job)) for _ in range(jobs)]
    try:
        while not all(task.done() for task in submitted):
            tick()
            time.sleep(4 * POLL)
    finally:  # interrupted, their jobs must not go on
        for task in submitted:
            if not task.done():
                task.cancel()
    for task in submitted:
        if problem := task.exception():
            raise SuiteError(f"The Slurm job {task.job_id} failed: {problem}")
