"""Edit SmolLM2-135M-Instruct with FT, ROME and DAFNet through EasyEdit, on the same facts.

    make demo                                       # FT, ROME and DAFNet, a few minutes on 2 cores
    python benchmarks/demo.py --methods DAFNet      # one method, all of its edits
    python benchmarks/demo.py --single 50 --sequences 5 --length 20 --seed 7
    EASYEDIT_HOME=~/EasyEdit python benchmarks/demo.py      # EasyEdit's git main as the host

Single edits: each is applied to the unedited model and scored, then the weights are restored.
Sequences: all edits are applied one after another, and only then all of them are scored.
Reliability, generality and locality are computed by EasyEdit. Every method goes through the same
code: EasyEdit's BaseEditor and its settings file hparams/METHOD/smollm2-135m.yaml. ROME takes
several seconds an edit, so it gets the first of the same facts; the table tells how many.

The table, with every edit's scores, settings and versions, also goes to a JSON file.
"""

from __future__ import annotations

import argparse
import gc
import json
import logging
import os
import platform
import random
import resource
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass, field, fields
from functools import partial
from importlib import import_module
from pathlib import Path
from statistics import fmean
from typing import Any, TextIO

import numpy as np
import torch
import transformers
import yaml
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

import easyedit_dafnet
from easyedit_dafnet.bench.environment import cpu_name
from easyedit_dafnet.bridge import host_info, load_easyeditor
from easyedit_dafnet.facts import load_facts
from easyedit_dafnet.smollm2 import DISPLAY_NAME, smollm2_path

METHODS = ("FT", "ROME", "DAFNet")
HPARAMS = Path(__file__).resolve().parents[1] / "hparams"
SHOWN = 4  # facts whose answers are shown before and after the edit

Record = dict[str, Any]
Request = dict[str, Any]
Weights = dict[str, torch.Tensor]


@dataclass
class Score:
    """One edit's scores by EasyEdit, each the fraction of its answer's tokens."""

    reliability: float
    generality: float
    locality: float


@dataclass
class Edited:
    """What one protocol gave for one method, edit by edit."""

    method: str
    protocol: str
    requests: Sequence[Request]
    scores: list[Score] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    def mean(self, score: str) -> float:
        return fmean(getattr(s, score) for s in self.scores)


# -- Facts ----------------------------------------------------------------------------------------


def choose_facts(tok: Any, count: int, seed: int) -> list[Record]:
    """Draw facts of different subjects whose new target is one token.

    EasyEdit's FT asks all of the target's tokens at one position, so it can learn no longer one.
    """
    facts = load_facts("demo", seed=seed)
    random.Random(seed).shuffle(facts)
    chosen: dict[str, Record] = {}
    for fact in facts:
        if len(tok.encode(f" {fact['target_new']}", add_special_tokens=False)) == 1:
            chosen.setdefault(fact["subject"], fact)
    if len(chosen) < count:
        raise ValueError(
            f"{count} facts of different subjects are asked for, but the demo's part has "
            f"{len(chosen)}: lower --single, --sequences or --length."
        )
    return list(chosen.values())[:count]


def to_request(fact: Record) -> Request:
    """The fact as EasyEdit's editors take it."""
    return {
        "prompt": fact["prompt"],
        "subject": fact["subject"],
        "target_new": fact["target_new"],
        "ground_truth": fact["ground_truth"],
        "rephrase_prompt": fact["rephrase_prompt"],
        "locality": {
            "neighborhood": {
                "prompt": fact["locality_prompt"],
                "ground_truth": fact["locality_ground_truth"],
            }
        },
        "portability": {},
    }


# -- EasyEdit -------------------------------------------------------------------------------------


def make_editor(method: str) -> Any:
    """EasyEdit's BaseEditor with the method's settings file, on the embedded model."""
    easyeditor = load_easyeditor()
    if method == "DAFNet":
        hparams: Any = easyedit_dafnet.DAFNetHyperParams.from_hparams("DAFNet/smollm2-135m")
    else:
        settings = yaml.safe_load((HPARAMS / method / "smollm2-135m.yaml").read_text())
        settings["model_name"] = str(smollm2_path())
        kind = getattr(easyeditor, f"{method}HyperParams")
        # The release refuses the settings that EasyEdit's git main has added.
        hparams = kind(**{f.name: settings[f.name] for f in fields(kind) if f.name in settings})
    return easyeditor.BaseEditor.from_hparams(hparams)


def evaluate(editor: Any, request: Request) -> dict[str, Any]:
    """EasyEdit's own scores of one edit in the editor's model as it is."""
    compute_edit_quality = import_module("easyeditor.evaluate").compute_edit_quality
    return compute_edit_quality(
        editor.model, editor.model_name, editor.hparams, editor.tok, request, editor.hparams.device
    )


def to_score(quality: dict[str, Any], unedited: dict[str, Any]) -> Score:
    """Locality: the answer's tokens that are as in the unedited model."""
    answers = (q["locality"]["neighborhood_output"] for q in (quality, unedited))
    return Score(
        reliability=float(np.mean(quality["rewrite_acc"])),
        generality=float(np.mean(quality["rephrase_acc"])),
        locality=float(np.mean(np.equal(*answers))),
    )


def apply_edit(editor: Any, request: Request) -> float:
    """Edit the editor's model in place; return the seconds it took."""
    start = time.perf_counter()
    editor.model, _ = editor.apply_algo(
        editor.model, editor.tok, [request], editor.hparams, copy=False, return_orig_weights=True
    )
    return time.perf_counter() - start


def take_snapshot(model: torch.nn.Module) -> Weights:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


@torch.no_grad()
def restore(model: torch.nn.Module, snapshot: Weights) -> None:
    """Write the snapshot's weights back; RuntimeError unless they then are bit by bit the same."""
    parameters = dict(model.named_parameters())
    for name, saved in snapshot.items():
        if not torch.equal(parameters[name], saved):
            parameters[name].copy_(saved)
            if not torch.equal(parameters[name], saved):
                raise RuntimeError(f"The unedited weights of {name} did not come back.")
    if parameters.keys() != snapshot.keys():
        raise RuntimeError(f"Editing added parameters: {parameters.keys() - snapshot.keys()}.")


@torch.no_grad()
def answer(editor: Any, prompt: str, tokens: int = 6) -> str:
    """What the model says after the prompt, decoded greedily."""
    encoded = editor.tok(prompt, return_tensors="pt").to(editor.model.device)
    output = editor.model.generate(
        **encoded, max_new_tokens=tokens, do_sample=False, pad_token_id=editor.tok.pad_token_id
    )
    text = editor.tok.decode(output[0, encoded["input_ids"].shape[1] :], skip_special_tokens=True)
    return " ".join(text.split())


# -- Protocols ------------------------------------------------------------------------------------

Step = Callable[[], None]


def edit_singly(
    editor: Any,
    requests: Sequence[Request],
    unedited: Sequence[dict[str, Any]],
    step: Step,
) -> Edited:
    """Apply each edit to the unedited model, score it, restore the weights."""
    snapshot = take_snapshot(editor.model)
    result = Edited(editor.alg_name, "single", requests)
    for request, before in zip(requests, unedited, strict=True):
        result.seconds.append(apply_edit(editor, request))
        result.scores.append(to_score(evaluate(editor, request), before))
        restore(editor.model, snapshot)
        step()
    return result


def edit_in_sequence(
    editor: Any, requests: Sequence[Request], unedited: Sequence[dict[str, Any]], step: Step
) -> Edited:
    """Apply all edits one after another, then score all of them, then restore."""
    snapshot = take_snapshot(editor.model)
    result = Edited(editor.alg_name, "sequence", requests)
    for request in requests:
        result.seconds.append(apply_edit(editor, request))
        step()
    for request, before in zip(requests, unedited, strict=True):
        result.scores.append(to_score(evaluate(editor, request), before))
    restore(editor.model, snapshot)
    return result


# -- Report ---------------------------------------------------------------------------------------


def make_table(results: Sequence[Edited], length: int, caption: str) -> Table:
    table = Table(title="SmolLM2-135M edited through EasyEdit", caption=caption)
    table.add_column("protocol")
    table.add_column("method")
    for column in ("edits", "reliability", "generality", "locality", "s/edit"):
        table.add_column(column, justify="right")
    for protocol in ("single", "sequence"):
        for method in dict.fromkeys(r.method for r in results):
            runs = [r for r in results if (r.method, r.protocol) == (method, protocol)]
            count = len(runs[0].scores)
            seconds = [s for r in runs for s in r.seconds]
            table.add_row(
                protocol if protocol == "single" else f"{length} edits",
                method,
                str(count) if protocol == "single" else f"{len(runs)} x {count}",
                *(
                    f"{fmean(r.mean(score) for r in runs):.2f}"
                    for score in ("reliability", "generality", "locality")
                ),
                f"{fmean(seconds):.2f}" if seconds else "",
            )
        table.add_section()
    return table


def peak_memory_gib() -> float:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**30 if sys.platform == "darwin" else 2**20)


def environment() -> dict[str, Any]:
    host = host_info()
    return {
        "model": DISPLAY_NAME,
        "easyedit": f"EasyEdit {host.kind} ({host.version})",
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
        "cpu": cpu_name(),
        "threads": torch.get_num_threads(),
    }


def write_json(path: Path, content: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"{path.name}.{os.getpid()}")
    unfinished.write_text(json.dumps(content, indent=1) + "\n")
    unfinished.replace(path)


# -- The demo -------------------------------------------------------------------------------------


def show_answers(editor: Any, requests: Sequence[Request], console: Console) -> None:
    """Print what the model says before and after single edits."""
    snapshot = take_snapshot(editor.model)
    console.print(f"One edit each with {editor.alg_name}, greedy decoding:")
    for request in requests:
        before = answer(editor, request["prompt"])
        apply_edit(editor, request)
        after = answer(editor, request["prompt"])
        restore(editor.model, snapshot)
        console.print(f"  {request['prompt']} ...   (new fact: {request['target_new']})")
        console.print(f"    before: {before}\n    after:  {after}")


def run(options: argparse.Namespace, console: Console, log: TextIO) -> list[Edited]:
    """Edit with every method; return one item a method and run, the unedited model's first."""
    tok = transformers.AutoTokenizer.from_pretrained(smollm2_path())
    count = options.single + options.sequences * options.length
    requests = [to_request(fact) for fact in choose_facts(tok, count, options.seed)]
    single = slice(0, options.single)
    sequences = [slice(i, i + options.length) for i in range(options.single, count, options.length)]
    fewer = {
        "ROME": (
            slice(0, min(options.rome_single, options.single)),
            sequences[: options.rome_sequences],
        )
    }

    unedited: list[dict[str, Any]] = []
    results: list[Edited] = []
    bar = Progress(
        TextColumn("{task.description:<10}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console,
    )
    # EasyEdit and its methods print line after line about every edit.
    with bar, redirect_stdout(log):
        for method in reversed(options.methods):
            torch.manual_seed(options.seed)  # ROME samples its context templates
            editor = make_editor(method)
            if not unedited:
                show_answers(editor, requests[single][:SHOWN], console)
                for request in bar.track(requests, description="unedited"):
                    unedited.append(evaluate(editor, request))
            mine, in_a_row = fewer.get(method, (single, sequences))
            task = bar.add_task(method, total=mine.stop + len(in_a_row) * options.length)
            step = partial(bar.advance, task)
            runs = [edit_singly(editor, requests[mine], unedited[mine], step)]
            runs += [edit_in_sequence(editor, requests[s], unedited[s], step) for s in in_a_row]
            results = runs + results
            del editor
            gc.collect()  # one copy of the model at a time
    scores = [to_score(quality, quality) for quality in unedited]
    runs = [Edited("unedited", "single", requests[single], scores[single])]
    runs += [Edited("unedited", "sequence", requests[s], scores[s]) for s in sequences]
    return runs + results


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--single", type=int, default=20, help="single edits (20)")
    parser.add_argument("--sequences", type=int, default=2, help="number of sequences (2)")
    parser.add_argument("--length", type=int, default=10, help="edits in each sequence (10)")
    parser.add_argument("--rome-single", type=int, default=8, help="single edits with ROME (8)")
    parser.add_argument("--rome-sequences", type=int, default=1, help="sequences with ROME (1)")
    parser.add_argument("--seed", type=int, default=0, help="draws the facts (0)")
    parser.add_argument("--out", type=Path, default=Path("results/demo.json"), help="the JSON file")
    options = parser.parse_args(arguments)
    for name in ("single", "sequences", "length", "rome_single", "rome_sequences"):
        if getattr(options, name) < 1:
            flag = "--" + name.replace("_", "-")
            parser.error(f"{flag} is {getattr(options, name)}; it must be at least 1")
    return options


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    console = Console(file=sys.stdout, markup=False, highlight=False, soft_wrap=True)
    start = time.perf_counter()
    # Warnings about EasyEdit's code would break the progress bar.
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    warnings.simplefilter("ignore")
    options.out.parent.mkdir(parents=True, exist_ok=True)
    log_path = options.out.with_suffix(".log")
    try:
        with log_path.open("w") as log:
            with redirect_stdout(log):
                load_easyeditor()
                # EasyEdit sets the root logger to INFO.
                logging.getLogger().setLevel(logging.WARNING)
                easyedit_dafnet.register()
            found = environment()
            console.print(f"{found['easyedit']}, {found['model']}, {found['cpu']}")
            results = run(options, console, log)
    except (ImportError, OSError, RuntimeError, ValueError) as error:
        sys.exit(f"demo: {error}")

    found["seconds"] = round(time.perf_counter() - start, 1)
    found["peak_memory_gib"] = round(peak_memory_gib(), 2)
    settings = {name: value for name, value in vars(options).items() if name != "out"}
    write_json(
        options.out,
        {"settings": settings, "environment": found, "results": [asdict(r) for r in results]},
    )
    caption = (
        f"single: restored after each edit; {options.length} edits: applied one by one, then all "
        f"scored. {found['model']}; facts of easyedit_dafnet.facts, part demo, seed "
        f"{options.seed}, one-token targets (longer ones EasyEdit's FT cannot learn); scores by "
        f"{found['easyedit']}; torch {found['torch']}, transformers {found['transformers']}, "
        f"{found['cpu']}, {found['threads']} threads"
    )
    console.print(make_table(results, options.length, caption))
    console.print(
        f"{found['seconds']:.0f} s, at most {found['peak_memory_gib']} GiB of memory. Every edit "
        f"is in {options.out}, what EasyEdit printed in {log_path}."
    )


if __name__ == "__main__":
    main()
