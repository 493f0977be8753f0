"""What each part of the strong form is worth, at editing time: one part is left out at a time.

    python benchmarks/ablation.py --data counterfact-train.json
    python benchmarks/ablation.py --data counterfact-train.json --only "as shipped" "no proposals"

Edits sequences of the records that training with --seed held out of --data, so nothing here was
trained on and nothing is an evaluation record; scores them after each sequence, teacher-forced, and
writes a table and ablation.json after each; a call with the same --out adds what it lacks. Most
targets of CounterFact are one token; --long-answers asks made-up questions about the same subjects,
whose answers are years and names. The parts of training (other losses, other modules) take a
training run each: train with other settings and name the result with --archive.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import fmean, harmonic_mean
from typing import Any

if not __package__:  # run as a script: the package is found from the repository's root
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch
import transformers
from rich.console import Console
from torch import Tensor
from tqdm import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer

import easyedit_dafnet
from benchmarks.speed.report import Section, to_markdown, to_table
from easyedit_dafnet.bench.cells import write_json
from easyedit_dafnet.bench.environment import cpu_name
from easyedit_dafnet.checkpoint import dafnet_for, load_dafnet
from easyedit_dafnet.dafnet import DAFNet, Past
from easyedit_dafnet.dafnet_hparams import DAFNetHyperParams
from easyedit_dafnet.dafnet_main import EditSequence
from easyedit_dafnet.edit_requests import hold_out
from easyedit_dafnet.files import write_text
from easyedit_dafnet.language_model import LanguageModel, Text, inference_mode_of
from easyedit_dafnet.least_squares import LeastSquares, Written
from easyedit_dafnet.losses import record_texts
from easyedit_dafnet.record_files import read_training_records
from easyedit_dafnet.records import context_length, encode_requests
from easyedit_dafnet.scoring import sequence_scores
from easyedit_dafnet.second_moments import pieces_of, sums_of_inputs
from easyedit_dafnet.signals import EditSignals, edit_signals
from easyedit_dafnet.smollm2 import weights_digest
from easyedit_dafnet.text import moment_passages, text_name

# Whose keys stand for subjects at large: more than SmolLM2's d_in, else they do not span it.
SUBJECTS = 2000


@dataclass(frozen=True)
class Moments:
    """Second moments of each module's inputs, [d_in, d_in], and keys [n, d_in] of subjects."""

    text: list[Tensor]
    keys: list[Tensor]


# Question, rephrase, and whether the answer is a year or another record's subject.
QUESTIONS = [
    ("When was {} founded?", "What year did {} begin?", True),
    ("What is {} named after?", "Which name is the origin of {}?", False),
    ("Which person is {} known to?", "Who knows {}?", False),
]


def long_answers(records: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Questions in the manner of ZsRE about the records' subjects; their locality prompts stay."""
    years, made = random.Random(1), []
    for i, record in enumerate(records):
        prompt, rephrase, year = QUESTIONS[i % len(QUESTIONS)]
        name = records[i - 1]["subject"]
        made.append(
            {
                **record,
                "prompt": prompt.format(record["subject"]),
                "rephrase_prompt": rephrase.format(record["subject"]),
                "target_new": str(years.randint(1700, 2015)) if year else name,
            }
        )
    return made


@dataclass(frozen=True)
class Variant:
    """What is done otherwise: settings, and a change of the DAFNet (solver, moments)."""

    about: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    change: Callable[[DAFNet, Moments], None] | None = None


def _solver(dafnet: DAFNet) -> LeastSquares:
    assert dafnet.least_squares is not None, (
        "the ablation is of the form that fuses by least squares"
    )
    return dafnet.least_squares


def _sizes(solver: LeastSquares, m: int, keys: Tensor) -> Tensor:
    """[n], k S kᵀ: an edit alone gets the share size / (1 + size) of its value."""
    return (solver.spread(m, keys) * keys).sum(-1)


def with_moments(choose: Callable[[Moments, int], list[Tensor]]) -> Callable[..., None]:
    """Other inputs to leave alone."""

    def protect(solver: LeastSquares, m: int, moments: Moments) -> None:
        if chosen := choose(moments, m):
            solver.protect(m, *chosen)
        else:
            solver.get_buffer(f"freedom_{m}").fill_(1.0)

    return with_metric(protect)


def with_directions(kept: int) -> Callable[..., None]:
    """Fewer principal directions of M are told apart; the others share their mean strength."""

    def merge(solver: LeastSquares, m: int, _: Moments) -> None:
        directions, freedom = (solver.get_buffer(f"{n}_{m}") for n in ("directions", "freedom"))
        d_in, told_apart = directions.shape
        if kept < told_apart:
            strengths = 1 / freedom  # of the directions; those that are not told apart have 1
            others = strengths[kept:].sum() + d_in - told_apart
            freedom[:kept] *= others / (d_in - kept)
            freedom[kept:] = 1.0

    return with_metric(merge)


def with_metric(alter: Callable[[LeastSquares, int, Moments], None]) -> Callable[..., None]:
    """Another M; what the inputs to leave alone weigh beside a key stays."""

    def change(dafnet: DAFNet, moments: Moments) -> None:
        solver = _solver(dafnet)
        for m, keys in enumerate(moments.keys):
            before = _sizes(solver, m, keys).log().mean()
            alter(solver, m, moments)
            after = _sizes(solver, m, keys).log().mean()
            solver.log_weights[m] += after - before

    return change


def weighed(factor: float) -> Callable[..., None]:
    def change(dafnet: DAFNet, _: Moments) -> None:
        _solver(dafnet).log_weights.add_(torch.tensor(factor).log())

    return change


def without_proposals(dafnet: DAFNet, _: Moments) -> None:
    dafnet.step_sizes.zero_()


def without_past(dafnet: DAFNet, _: Moments) -> None:
    """The networks see each edit by itself."""
    values = dafnet.values

    def alone(signals: Sequence[EditSignals], past: Past | None = None) -> Any:
        edits = zip(*(part.split() for part in signals), strict=True)
        each = [values(edit)[0] for edit in edits]
        return [torch.cat(module) for module in zip(*each, strict=True)], past

    dafnet.values = alone  # type: ignore[method-assign]


def without_memory(dafnet: DAFNet, _: Moments) -> None:
    """Edits do not know what former ones have written."""
    solver = _solver(dafnet)
    write = solver.write

    def forgetting(keys: Any, values: Any, prompts: Any, written: Written, changes: Any) -> Any:
        steps = []
        for i in range(len(prompts)):
            row = slice(i, i + 1)
            nothing = replace(written, keys=written.keys[:0], prompts=written.prompts[:0])
            one, alone = write(
                [k[row] for k in keys], [v[row] for v in values], prompts[row], nothing,
                [torch.zeros_like(c) for c in changes],
            )  # fmt: skip
            steps.append(one)
            # How many there are is known, so the margin falls as it does with a memory.
            written = replace(
                written,
                keys=torch.cat([written.keys, alone.keys]),
                prompts=torch.cat([written.prompts, alone.prompts]),
            )
        joined = [
            (torch.cat([a for a, _ in s]), torch.cat([b for _, b in s]))
            for s in zip(*steps, strict=True)
        ]
        return joined, written

    solver.write = forgetting  # type: ignore[method-assign]


VARIANTS = {
    "as shipped": Variant("the preset"),
    "five steps": Variant("no more of the values' descent", {"value_steps": 5}),
    "proposals alone": Variant("no steps from what the networks say", {"value_steps": 0}),
    "no proposals": Variant("the same steps, from nothing", change=without_proposals),
    "no proposals, 25 steps": Variant(
        "as many steps as ROME and MEMIT take", {"value_steps": 25}, without_proposals
    ),
    "no past": Variant("the networks do not see other edits", change=without_past),
    "text's moments alone": Variant(
        "M without the subjects' keys", change=with_moments(lambda s, m: [s.text[m]])
    ),
    "subjects' moments alone": Variant(
        "M without the text's tokens",
        change=with_moments(lambda s, m: [s.keys[m].T @ s.keys[m]]),
    ),
    "no moments": Variant("M = 1", change=with_moments(lambda s, m: [])),
    "400 directions": Variant("M is told apart in fewer directions", change=with_directions(400)),
    "no memory": Variant("a sum of edits made one by one", {"rehearsed": 0}, without_memory),
    "as trained": Variant(
        "no more protection than in training, nothing louder",
        {"protection": 1.0, "margin": 1.0, "margin_decay": 0.0},
    ),
    "no rehearsal": Variant("no edit is asked again", {"rehearsed": 0}),
    "one step of rehearsal": Variant("what lacks gets one step", {"rehearsal_steps": 1}),
    "no contexts": Variant("edits are asked by their prompts alone", {"rehearsal_contexts": []}),
    "lambda / 4": Variant("what should be left alone weighs less", change=weighed(0.25)),
    "lambda * 4": Variant("and more", change=weighed(4.0)),
    "no decay": Variant("the margin of a single edit, however many", {"margin_decay": 0.0}),
}


def scores_of(
    model: Any,
    tok: Any,
    dafnet: DAFNet,
    hparams: DAFNetHyperParams,
    sequences: Sequence[Sequence[Mapping[str, Any]]],
    texts: Mapping[int, dict[str, Text]],
    language_model: LanguageModel,
) -> dict[str, float]:
    """Means over all edits, each scored after its sequence; the score is their harmonic mean."""
    found: dict[str, list[float]] = {}
    for sequence in sequences:
        held = EditSequence(model, dafnet, hparams)
        held.extend(model, dafnet, held.encode(tok, sequence, model), hparams)
        with inference_mode_of(model):
            asked = [texts[id(record)] for record in sequence]
            for name, values in sequence_scores(language_model, asked, {}).items():
                found.setdefault(name, []).extend(values)
        with torch.no_grad():
            for name, value in held.originals.items():
                model.get_parameter(name).copy_(value)
    means = {name: fmean(values) for name, values in found.items() if values}
    return {"score": harmonic_mean([max(v, 1e-9) for v in means.values()]), **means}


def moments_of(
    model: Any, tok: Any, dafnet: DAFNet, records: Sequence[Mapping[str, Any]], text: str | None
) -> Moments:
    pieces = pieces_of(tok, moment_passages(text), 30_000, context_length(model))
    with inference_mode_of(model):
        sums = sums_of_inputs(model, [m.name for m in dafnet.edited], pieces)
    batch = encode_requests(tok, records, model, at_subject=True)
    signals = edit_signals(model, dafnet.edited, batch)
    return Moments([sums[m.name] for m in dafnet.edited], [s.x for s in signals])


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--data", required=True, help="the records that training was given")
    add("--hparams", default="DAFNet/smollm2-135m-strong", help="editing settings")
    add("--archive", help="another trained network of the same sizes")
    add("--seed", type=int, default=42, help="of the training: says what it held out (42)")
    add("--text", help="plain text for second moments (default: Python's documentation)")
    add("--num-edits", type=int, nargs="+", default=[1, 10, 100], help="lengths of sequences")
    add("--edits", type=int, default=100, help="edits for each length (100)")
    add("--long-answers", action="store_true", help="made-up questions about the same subjects")
    add("--only", nargs="+", choices=list(VARIANTS), metavar="ROW", help=f"{', '.join(VARIANTS)}")
    add(
        "--dtype", default="float32", help="of the language model (bfloat16 is faster on some CPUs)"
    )
    add("--out", type=Path, default=Path("ablation"), help="folder for the table and the numbers")
    args = parser.parse_args(arguments)

    hparams = DAFNetHyperParams.from_hparams(args.hparams)
    if args.archive:
        hparams = replace(hparams, archive=args.archive)
    held_out, others = hold_out(read_training_records(args.data), args.seed)
    records: list[Any] = held_out[: args.edits]
    if max(args.num_edits) > len(records):
        parser.error(
            f"--num-edits {max(args.num_edits)}: there are {len(records)} edits, those of --edits "
            f"that training held out of {args.data}; give a smaller length or more data."
        )
    if args.long_answers:
        records = long_answers(records)
    load_dafnet(str(hparams.archive))  # says so if there is none
    archive = Path(str(hparams.archive))
    held = f"{len(records)} of those held out of training by seed {args.seed}"
    facts = {
        "data": Path(args.data).name,
        "records": f"made-up questions about {held}" if args.long_answers else held,
        "archive": archive.name,
        "weights": weights_digest(archive)[:16],
        "text": text_name(args.text),
        "dtype": args.dtype,
        "settings": {name: _without_folder(value) for name, value in asdict(hparams).items()},
        "versions": {
            "easyedit_dafnet": easyedit_dafnet.__version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
        "hardware": f"{cpu_name()}, {torch.get_num_threads()} threads",
    }
    try:
        rows = rows_so_far(args.out / "ablation.json", facts)
    except ValueError as error:
        parser.error(str(error))
    model = AutoModelForCausalLM.from_pretrained(
        hparams.model_name, torch_dtype=getattr(torch, args.dtype)
    ).to(hparams.torch_device)
    model.eval().requires_grad_(False)
    tok = AutoTokenizer.from_pretrained(hparams.tokenizer_name)
    shipped = dafnet_for(model, hparams)
    language_model = LanguageModel(model, hparams.inner_params)
    texts: dict[int, dict[str, Text]] = {}
    with inference_mode_of(model):
        for record in tqdm(records, desc="Unedited model", leave=False):
            own = record_texts(tok, record, model)
            (own["locality"],) = language_model.with_unedited([own["locality"]])
            texts[id(record)] = own
    named = args.only or list(VARIANTS)
    lengths = [str(n) for n in args.num_edits]
    left = [name for name in named if not rows.get(name, {}).keys() >= set(lengths)]
    moments = Moments([], [])
    if any(VARIANTS[name].change for name in left):
        moments = moments_of(model, tok, shipped, others[:SUBJECTS], args.text)
    for name in left:
        variant = VARIANTS[name]
        dafnet = deepcopy(shipped)
        if variant.change is not None:
            variant.change(dafnet, moments)
        settings = replace(hparams, **variant.settings)
        found = rows.setdefault(name, {})
        for n in args.num_edits:
            if str(n) in found:
                continue
            runs = [records[i : i + n] for i in range(0, len(records) - n + 1, n)]
            found[str(n)] = scores_of(model, tok, dafnet, settings, runs, texts, language_model)
            print(f"{name}, N = {n}: {found[str(n)]}", flush=True)
            write_json(args.out / "ablation.json", {**facts, "rows": rows})
    done = {name: rows[name] for name in VARIANTS if name in rows}
    section = _table(done, sorted({int(n) for row in done.values() for n in row}))
    Console().print(to_table(section))
    about = (facts["archive"], f"{facts['data']}: {facts['records']}", args.dtype)
    caption = f"{'; '.join(map(str, about))}; {facts['hardware']}."
    write_text(args.out / "ablation.md", to_markdown([section], caption))


def _without_folder(value: Any) -> Any:
    """A setting as it is, but of a folder on this machine its name alone."""
    return Path(value).name if isinstance(value, str) and Path(value).is_dir() else value


def rows_so_far(path: Path, facts: Mapping[str, Any]) -> dict[str, dict[str, dict[str, float]]]:
    """What an earlier call has left. Raises ValueError for a file that is of something else."""
    if not path.exists():
        return {}
    before = json.loads(path.read_text())
    differ = [name for name, value in facts.items() if before.get(name) != value]
    if differ:
        raise ValueError(f"{path} has rows with other {', '.join(differ)}; choose another --out.")
    rows: dict[str, dict[str, dict[str, float]]] = before["rows"]
    return rows


def _table(
    rows: Mapping[str, Mapping[str, Mapping[str, float]]], lengths: Sequence[int]
) -> Section:
    cells = [
        [
            name,
            VARIANTS[name].about,
            *(
                " / ".join(
                    f"{row[str(n)][key]:.2f}"
                    for key in ("reliability", "generality", "locality", "score")
                )
                if str(n) in row
                else "–"
                for n in lengths
            ),
        ]
        for name, row in rows.items()
    ]
    return Section(
        "One part left out at a time",
        ["", "what it is", *(f"N = {n}" for n in lengths)],
        cells,
        "Reliability / generality / locality / harmonic mean, after the sequence, teacher-forced.",
        names=2,
    )


if __name__ == "__main__":
    main()
