"""Peak memory of one training step, each measured in a process of its own."""

from __future__ import annotations

import argparse
import gc
import resource
import sys
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
import transformers

from benchmarks.speed.reference import Reference
from benchmarks.speed.report import Section, bytes_text
from benchmarks.speed.setting import Setting

STEPS = 2  # the first allocates the optimiser's state


@dataclass(frozen=True)
class Memory:
    """Bytes: once everything is imported, once the models are loaded, and at most."""

    size: str
    edits: int
    side: str  # "ours" or "authors"
    imported: int
    loaded: int
    peak: int


def high_water_mark(device: torch.device) -> int:
    """Most bytes that this process has held in memory, or on the CUDA device."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")
    if status.exists():
        # Not ru_maxrss, which on Linux is also that of the process that started this one.
        lines = status.read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def peak_of_step(options: argparse.Namespace, size: str, edits: int, side: str) -> Memory:
    """To be called in a fresh process."""
    transformers.logging.set_verbosity_error()
    warnings.simplefilter("ignore")
    with TemporaryDirectory() as folder:
        setting = Setting(options, Path(folder))
        imported = high_water_mark(setting.device)
        trainer = setting.trainer(size, "product")
        batches = setting.batches(edits, STEPS)
        if side == "ours":
            loaded = high_water_mark(setting.device)
            for records in batches:
                trainer.train_step(records)
        else:
            reference = Reference(setting, size, trainer.dafnet, setting.model)
            tokens = [setting.step_batch(trainer, records) for records in batches]
            del trainer
            gc.collect()
            reference.start_training(tokens[0], freeze=False)
            loaded = high_water_mark(setting.device)
            for batch in tokens:
                reference.step(batch)
        peak = high_water_mark(setting.device)
    return Memory(size, edits, side, imported, loaded, peak)


def in_fresh_process(options: argparse.Namespace, size: str, edits: int, side: str) -> Memory:
    measure = partial(peak_of_step, options, size, edits, side)
    try:
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            return pool.submit(measure).result()
    except BrokenProcessPool:
        raise RuntimeError(
            f"The process that measures the memory of {side} ({size}, {edits} edits) was ended, "
            "most likely for want of memory; try a smaller --sizes or --edits."
        ) from None


def measure(options: argparse.Namespace, progress: Callable[[str], None]) -> list[Memory]:
    found = []
    for size in options.sizes:
        for edits in options.edits:
            for side in ("ours", "authors") if options.reference else ("ours",):
                progress(f"memory, {size}, {edits} edits, {side}")
                found.append(in_fresh_process(options, size, edits, side))
    return found


def section(found: list[Memory]) -> Section:
    theirs = {(m.size, m.edits): m for m in found if m.side == "authors"}
    header = ["networks", "edits", "ours, peak", "ours, before the step"]
    if theirs:
        header += ["authors, peak", "authors, before the step", "ours / authors"]
    rows = []
    for ours in (m for m in found if m.side == "ours"):
        row = [ours.size, str(ours.edits), bytes_text(ours.peak), bytes_text(ours.loaded)]
        if them := theirs.get((ours.size, ours.edits)):
            row += [bytes_text(them.peak), bytes_text(them.loaded), f"{ours.peak / them.peak:.2f}"]
        rows.append(row)
    imports = bytes_text(max((m.imported for m in found), default=0))
    note = (
        f"Most memory that a fresh process held over {STEPS} training steps, {imports} of it after "
        "the imports alone, and before the steps with the models loaded."
    )
    return Section("Peak memory of a training step", header, rows, note)
