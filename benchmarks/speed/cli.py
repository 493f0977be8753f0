"""The command line: what to measure, and where the tables go."""

from __future__ import annotations

import argparse
import platform
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import transformers
from rich.console import Console

import easyedit_dafnet
from benchmarks.speed import edits, inference, memory, steps
from benchmarks.speed.reference import AuthorsCodeError, load_package
from benchmarks.speed.report import Section, to_markdown, to_table
from benchmarks.speed.setting import SIZES, Setting
from easyedit_dafnet.bench.cells import write_json
from easyedit_dafnet.bench.environment import cpu_name
from easyedit_dafnet.files import write_text
from easyedit_dafnet.smollm2 import DISPLAY_NAME, SHORT_NAME

DESCRIPTION = """How fast DAFNet is on this machine.

    python benchmarks/speed steps                             # training steps
    python benchmarks/speed all --reference ~/DAFNet          # all, beside the authors' code
    python benchmarks/speed past --sizes published --past 10 10000

steps: seconds of a training step; memory: its peak; edits: one edit and its floor; past: one edit
after many others; inference: the edited model beside the unedited one. With --reference, the folder
of a clone of the authors' code (qizhou000/DAFNet), both run in one process on the same weights and
tokens, taking turns, and the losses and gradients of a step are compared.

Networks: "small" 256/512/128x2/64x2 in one layer, "published" 1024/1536/1024x2/256x2 in two,
"hparams" as in the settings file. They are random, which changes no time.
"""
WIDTH = 150
WHAT = ("steps", "memory", "edits", "past", "inference")

Measurement = tuple[list[Any], list[Section]]


def measure(
    what: str, options: argparse.Namespace, setting: Setting, progress: Callable[[str], None]
) -> Measurement:
    """The rows of one kind of measurement, and their tables."""
    if what == "steps":
        found: list[Any] = steps.measure(setting, progress)
        return found, [steps.steps_section(found), steps.parts_section(found)]
    if what == "memory":
        found = memory.measure(options, progress)
        return found, [memory.section(found)]
    if what == "edits":
        found = edits.latencies(setting, progress)
        return found, [edits.latency_section(found)]
    if what == "past":
        found = edits.past_costs(setting, progress)
        return found, [edits.past_section(found)]
    found = inference.measure(setting, progress)
    return found, [inference.section(found)]


def environment(setting: Setting) -> dict[str, Any]:
    on_gpu = setting.device.type == "cuda"
    name = Path(setting.config.model_name).name
    return {
        "model": DISPLAY_NAME if name.startswith(SHORT_NAME) else name,
        "easyedit_dafnet": easyedit_dafnet.__version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
        "hardware": torch.cuda.get_device_name(setting.device) if on_gpu else cpu_name(),
        "threads": torch.get_num_threads(),
        "dtype": "float32",
    }


def caption(found: dict[str, Any], options: argparse.Namespace) -> str:
    return (
        f"{found['model']}, {found['dtype']}; torch {found['torch']}, transformers "
        f"{found['transformers']}, {found['hardware']}, {found['threads']} threads; seed "
        f"{options.seed}, at most {options.repetitions} repetitions."
    )


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python benchmarks/speed",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("what", choices=[*WHAT, "all"], help="what to measure")
    add("--reference", type=Path, help="folder of the authors' code")
    add("--sizes", nargs="+", choices=[*SIZES, "hparams"], default=list(SIZES), help="networks")
    add("--edits", nargs="+", type=int, default=[1, 10, 100], help="edits a step (1 10 100)")
    add("--past", nargs="+", type=int, default=[10, 100, 1000, 10000], help="edits made before")
    add(
        "--past-dtypes",
        nargs="*",
        choices=["bfloat16", "float16"],
        default=["float16"],
        help="precisions of what is kept of past edits, besides float32 (float16)",
    )
    add("--repetitions", type=int, default=5, help="of every timing (5)")
    add("--patience", type=float, default=120, help="begin none after so many seconds (120)")
    add("--hparams", default="TRAINING/DAFNet/smollm2-135m", help="training settings, with model")
    add("--data", help="records (.json, .jsonl, .csv) in place of the facts of this package")
    add("--device", default="cpu", help="cpu, mps or cuda:0 (cpu)")
    add("--threads", type=int, default=torch.get_num_threads(), help="CPU threads of both codes")
    add("--seed", type=int, default=0, help="draws the facts and the networks (0)")
    add("--out", type=Path, default=Path("results/speed.json"), help="the JSON file")
    add("--markdown", type=Path, help="a file for the tables as Markdown")
    options = parser.parse_args(arguments)
    for name in ("edits", "past", "repetitions", "threads"):
        values = getattr(options, name)
        if min(values if isinstance(values, list) else [values]) < 1:
            parser.error(f"--{name} must be at least 1")
    return options


def write(
    options: argparse.Namespace,
    found: dict[str, Any],
    results: dict[str, list[Any]],
    tables: list[Section],
) -> None:
    """All that has been measured so far, to the files that the options name."""
    left_out = {"out", "markdown", "reference"}
    settings = {name: value for name, value in vars(options).items() if name not in left_out}
    settings["reference"] = options.reference is not None
    write_json(options.out, {"settings": settings, "environment": found, "results": results})
    if options.markdown:
        options.markdown.parent.mkdir(parents=True, exist_ok=True)
        write_text(options.markdown, to_markdown(tables, caption(found, options)))


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    # The widest table, with the authors' columns, where the output is a file.
    width = None if sys.stdout.isatty() else WIDTH
    console = Console(file=sys.stdout, markup=False, highlight=False, width=width)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    warnings.simplefilter("ignore")
    start = time.perf_counter()
    results: dict[str, list[Any]] = {}
    tables: list[Section] = []
    try:
        if options.reference:
            load_package(options.reference)
        with TemporaryDirectory() as folder:
            setting = Setting(options, Path(folder))
            found = environment(setting)
            console.print(caption(found, options))
            with console.status("") as status:
                for what in WHAT if options.what == "all" else (options.what,):
                    rows, sections = measure(what, options, setting, status.update)
                    results[what] = [asdict(row) for row in rows]
                    tables += sections
                    for section in sections:
                        console.print(to_table(section))
                    write(options, found, results, tables)
    except (AuthorsCodeError, ImportError, OSError, RuntimeError, ValueError) as error:
        sys.exit(f"speed: {error}")
    console.print(f"{time.perf_counter() - start:.0f} s. Every repetition is in {options.out}.")
