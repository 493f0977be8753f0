"""How fast the benchmark scores an edited model, beside EasyEdit's own loop on the same records.

    python benchmarks/scoring.py                                   # 100 of the embedded facts
    python benchmarks/scoring.py --data counterfact.json --records 1000
    EASYEDIT_HOME=~/EasyEdit python benchmarks/scoring.py          # EasyEdit's git main

EasyEdit's loop calls `compute_edit_quality` record by record. Both run in one process on the same
model and records, taking turns, teacher-forced; their scores are compared. The generated answers,
which EasyEdit's loop does not ask for, are timed apart.
"""

from __future__ import annotations

import argparse
import platform
import sys
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib import import_module
from pathlib import Path
from statistics import fmean
from types import SimpleNamespace
from typing import Any

if not __package__:  # run as a script: the package is found from the repository's root
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch
import transformers
from rich.console import Console
from transformers import AutoModelForCausalLM, AutoTokenizer

import easyedit_dafnet
from benchmarks.speed.report import Section, ratio, to_table
from benchmarks.speed.timing import Timing, show, take_turns, timed
from easyedit_dafnet.bench import EditRecord
from easyedit_dafnet.bench.cells import write_json
from easyedit_dafnet.bench.data import load_data
from easyedit_dafnet.bench.environment import cpu_name
from easyedit_dafnet.bench.same_subject import SAME_SUBJECT, UNCOUNTED
from easyedit_dafnet.bench.scoring import Forced, Scorer
from easyedit_dafnet.bench.streams import draw, usable
from easyedit_dafnet.bridge import host_info, load_easyeditor
from easyedit_dafnet.smollm2 import DISPLAY_NAME, SHORT_NAME, smollm2_path

# Longer than any text: the release cuts answers where its settings say so.
HOST_SETTINGS = SimpleNamespace(max_length=512, alg_name="FT", evaluation_type=None)


def host_record(record: EditRecord) -> dict[str, Any]:
    """A record as `compute_edit_quality` takes it: it knows one rephrase, and one answer each."""
    found: dict[str, Any] = {
        "prompt": record.prompt,
        "target_new": record.target_new,
        "ground_truth": record.ground_truth,
        "locality": {},
        "portability": {},
    }
    if record.rephrases:
        found["rephrase_prompt"] = record.rephrases[0]
    for metric in ("locality", "portability"):
        for kind, probes in getattr(record, metric).items():
            found[metric][kind] = {
                "prompt": [probe.prompt for probe in probes],
                "ground_truth": [probe.answers[0] for probe in probes],
            }
    return found


def host_quality(model: Any, tok: Any, record: Mapping[str, Any]) -> dict[str, Any]:
    """EasyEdit's `compute_edit_quality` of one record in its own layout."""
    quality = import_module("easyeditor.evaluate").compute_edit_quality
    device = next(model.parameters()).device
    place = "cpu" if device.type == "cpu" else device.index or 0
    return quality(model, SHORT_NAME, HOST_SETTINGS, tok, record, place)


def host_scores(model: Any, unedited: Any, tok: Any, record: EditRecord) -> dict[str, Any]:
    """The scores of one record by EasyEdit, as EasyEdit's editor makes them of what it is told.

    METRICS: one number each, None where nothing is asked; kinds: those of locality, same_subject
    and portability.
    """
    asked = host_record(record)
    post, pre = (host_quality(m, tok, asked) for m in (model, unedited))
    return summary(post, pre["locality"])


def summary(post: Mapping[str, Any], before: Mapping[str, Any]) -> dict[str, Any]:
    """before: `locality` of the unedited model."""
    locality = {
        name.removesuffix("_output"): [
            fmean(a == b for a, b in zip(new, old, strict=True))
            for new, old in zip(found, before[name], strict=True)
        ]
        for name, found in post["locality"].items()
        if name.endswith("_output")
    }
    portability = {
        name.removesuffix("_acc"): found
        for name, found in post["portability"].items()
        if name.endswith("_acc")
    }

    same_subject = {kind: locality.pop(kind) for kind in SAME_SUBJECT if kind in locality}

    def mean(values: Sequence[float]) -> float | None:
        return fmean(map(float, values)) if values else None

    return {
        "reliability": mean(post["rewrite_acc"]),
        "generality": mean(post.get("rephrase_acc", [])),
        "locality": mean(
            [x for kind, found in locality.items() if kind not in UNCOUNTED for x in found]
        ),
        "same_subject": mean([x for found in same_subject.values() for x in found]),
        "portability": mean([x for found in portability.values() for x in found]),
        "kinds": {
            "locality": {kind: mean(found) for kind, found in locality.items()},
            "same_subject": {kind: mean(found) for kind, found in same_subject.items()},
            "portability": {kind: mean(found) for kind, found in portability.items()},
        },
    }


# -- Timing ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """Seconds for all records; theirs is None where EasyEdit's loop has nothing of the kind."""

    what: str
    texts: int
    ours: Timing
    theirs: Timing | None


def measure(options: argparse.Namespace, model: Any, tok: Any) -> tuple[list[Row], int]:
    """The timings, and how many of the records' scores differ from EasyEdit's."""
    records = drawn(options)
    scorer = Scorer(tok, max_new_tokens=options.max_new_tokens)
    hosts = [host_record(record) for record in records]
    pairs = [pair for record in records for pair in asked(record)]
    prompts = [prompt for prompt, _ in pairs]
    found: dict[str, Any] = {}

    def ours(_: int) -> float:
        return timed(lambda: found.update(ours=scorer.teacher_forced(model, pairs)), model.device)

    def theirs(_: int) -> float:
        def loop() -> None:
            found["theirs"] = [host_quality(model, tok, record) for record in hosts]

        return timed(loop, model.device)

    # The first passes of a process are slower; both get theirs before the clock runs.
    scorer.teacher_forced(model, pairs[:4])
    host_quality(model, tok, hosts[0])
    forced = take_turns({"theirs": theirs, "ours": ours}, options.repetitions, options.patience)
    generated = take_turns(
        {"ours": lambda _: timed(lambda: scorer.generate(model, prompts), model.device)},
        options.repetitions,
        options.patience,
    )
    rows = [
        Row("teacher-forced", len(pairs), forced["ours"], forced["theirs"]),
        Row("generated", len(prompts), generated["ours"], None),
    ]
    mine = iter(found["ours"])
    different = 0
    for record, quality in zip(records, found["theirs"], strict=True):
        tokens = [next(mine) for _ in asked(record)]
        different += not same(tokens, quality, record)
    return rows, different


def drawn(options: argparse.Namespace) -> list[EditRecord]:
    """Records of the data, each with the first of its rephrases."""
    records, _ = usable(load_data(options.data))
    records = draw(records, min(options.records, len(records)), options.seed)
    return [replace(record, rephrases=record.rephrases[:1]) for record in records]


def asked(record: EditRecord) -> list[tuple[str, str]]:
    """All prompts with the answers that teacher forcing asks for, in EasyEdit's order."""
    pairs = [(prompt, record.target_new) for prompt in (record.prompt, *record.rephrases)]
    for kinds in (record.locality, record.portability):
        pairs += [(p.prompt, p.answers[0]) for probes in kinds.values() for p in probes]
    return pairs


def same(found: Sequence[Forced], quality: Mapping[str, Any], record: EditRecord) -> bool:
    """Whether our tokens for `asked(record)` are what EasyEdit's scores and outputs say."""
    rest = list(found)
    edits = [rest.pop(0).accuracy for _ in (record.prompt, *record.rephrases)]
    theirs = [*quality["rewrite_acc"], *quality.get("rephrase_acc", [])]
    agree = edits == [float(value) for value in theirs]
    for kind, probes in record.locality.items():
        tokens = [rest.pop(0).predicted for _ in probes]
        agree &= tokens == quality["locality"][f"{kind}_output"]
    for kind, probes in record.portability.items():
        values = [rest.pop(0).accuracy for _ in probes]
        agree &= [v for v in values if v is not None] == [
            float(value) for value in quality["portability"][f"{kind}_acc"]
        ]
    return agree


def section(rows: Sequence[Row], records: int, note: str) -> Section:
    header = ["", "texts", "EasyEdit's loop (s)", "ours (s)", "records a second", "ratio"]
    table = [
        [
            row.what,
            str(row.texts),
            str(row.theirs) if row.theirs else "-",
            str(row.ours),
            show(records / row.ours.median),
            ratio(row.theirs, row.ours) if row.theirs else "-",
        ]
        for row in rows
    ]
    return Section(f"Scoring {records} records", header, table, note)


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python benchmarks/scoring.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--data", default="facts", help="a data set's name or file (the embedded facts)")
    add("--records", type=int, default=100, help="records to draw (100)")
    add("--model", help="folder or name of a causal model (SmolLM2-135M-Instruct)")
    add("--device", default="cpu", help="cpu, mps or cuda:0 (cpu)")
    add("--threads", type=int, default=torch.get_num_threads(), help="CPU threads of both codes")
    add("--max-new-tokens", type=int, default=16, help="of a generated answer (16)")
    add("--repetitions", type=int, default=3, help="of every timing (3)")
    add("--patience", type=float, default=300, help="begin none after so many seconds (300)")
    add("--seed", type=int, default=0, help="draws the records (0)")
    add("--out", type=Path, default=Path("results/scoring.json"), help="the JSON file")
    options = parser.parse_args(arguments)
    for name in ("records", "threads", "max_new_tokens", "repetitions"):
        if getattr(options, name) < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1")
    return options


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    console = Console(file=sys.stdout, markup=False, highlight=False, width=120)
    transformers.logging.set_verbosity_error()
    warnings.simplefilter("ignore")
    torch.set_num_threads(options.threads)
    try:
        load_easyeditor()
        name = options.model or str(smollm2_path())
        tok = AutoTokenizer.from_pretrained(name, padding_side="left")
        tok.pad_token = tok.pad_token or tok.eos_token
        model = AutoModelForCausalLM.from_pretrained(name).eval().to(options.device)
        rows, different = measure(options, model, tok)
    except (ImportError, OSError, RuntimeError, ValueError) as error:
        sys.exit(f"scoring: {error}")
    found = {
        "model": DISPLAY_NAME if options.model is None else Path(name).name,
        "easyedit": f"{host_info().kind} ({host_info().version})",
        "easyedit_dafnet": easyedit_dafnet.__version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
        "hardware": cpu_name() if options.device == "cpu" else options.device,
        "threads": torch.get_num_threads(),
    }
    count = len(drawn(options))
    note = (
        f"{found['model']}; EasyEdit {found['easyedit']}, torch {found['torch']}, transformers "
        f"{found['transformers']}, {found['hardware']}, {found['threads']} threads. "
        f"Records whose scores differ from EasyEdit's: {different}."
    )
    console.print(to_table(section(rows, count, note)))
    settings = {k: v for k, v in vars(options).items() if k != "out"}
    write_json(
        options.out,
        {
            "settings": settings,
            "environment": found,
            "records": count,
            "different": different,
            "results": [asdict(row) for row in rows],
        },
    )
    console.print(f"Every repetition is in {options.out}.")


if __name__ == "__main__":
    main()
