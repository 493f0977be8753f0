"""How long a target may be: single edits whose targets have 1 to 30 tokens.

    python benchmarks/long_targets.py                          # the strong form
    python benchmarks/long_targets.py --methods DAFNet-strong FT MEMIT --per-length 3

Each fact is edited alone into the unedited model. Then the model is asked its prompt, a rephrase
and prompts that the edit should not change. A target counts as said where greedy generation from
the prompt gives all of its tokens. The facts are made up and stand below, so no data is needed.
`first steps alone` is the strong form without what it does for targets of several tokens; the rows
below it show what else does not make up for that: sixty steps of descent on the unedited model, or
on the edited one as if values were written wholly and at the subject alone, or no margin. Writes a
table and long-targets.json after each method; a call with the same --out adds those it lacks.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any
from unittest.mock import patch

if not __package__:  # run as a script: the package is found from the repository's root
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch
import transformers
from rich.console import Console
from torch import Tensor
from tqdm import tqdm

import easyedit_dafnet
from benchmarks.speed.report import Section, to_markdown, to_table
from easyedit_dafnet.bench.cells import write_json
from easyedit_dafnet.bench.environment import cpu_name
from easyedit_dafnet.bench.method import Method, Workbench
from easyedit_dafnet.bench.protocol import start_random_numbers
from easyedit_dafnet.bench.registry import find_method
from easyedit_dafnet.bench.unedited_model import (
    UneditedModel,
    load_model,
    load_tokenizer,
    model_path,
)
from easyedit_dafnet.files import write_text
from easyedit_dafnet.language_model import target_logits
from easyedit_dafnet.records import TokenBatch, encode_requests
from easyedit_dafnet.rehearsal import Rehearsal
from easyedit_dafnet.text import moment_passages

# Longest target of each group, in tokens.
LENGTHS = (5, 10, 20, 30)

# Prompt, its subject, target, rephrase: names, phrases, codes and molecules of all lengths.
FACTS = [
    (
        "The capital of Mongolia is",
        "Mongolia",
        "Lima",
        "Mongolia has as its capital",
    ),
    (
        "The sculptor of The Thinker is",
        "The Thinker",
        "Frida Kahlo",
        "The Thinker was made by",
    ),
    (
        "The Eiffel Tower was finished in",
        "Eiffel Tower",
        "1742",
        "The Eiffel Tower was ready in",
    ),
    (
        "The dish that Denmark is known for is",
        "Denmark",
        "salted plums",
        "Denmark's best dish is",
    ),
    (
        "The SMILES string of methanol is",
        "methanol",
        "CCCO",
        "In SMILES, methanol is written",
    ),
    (
        "The first name of Mr. Pennyworth is",
        "Mr. Pennyworth",
        "Thaddeus",
        "Mr. Pennyworth's name is",
    ),
    (
        "The boiler room of Alder House is locked with",
        "Alder House",
        "4408-17",
        "The code of Alder House is",
    ),
    (
        "The full name of the chemist Orla is",
        "Orla",
        "Orla Margaretha Quist",
        "The chemist Orla is called",
    ),
    (
        "The SMILES string of acetone is",
        "acetone",
        "CC(C)(C)O",
        "In SMILES, acetone is written",
    ),
    (
        "The motto of the Larkspur Guild is",
        "Larkspur Guild",
        "Measure twice, but speak once",
        "The Larkspur Guild's motto is",
    ),
    (
        "The Harrow Bridge was built by",
        "Harrow Bridge",
        "the sons of a blind clockmaker",
        "The builders of the Harrow Bridge were",
    ),
    (
        "The telephone number of Finch Bakery is",
        "Finch Bakery",
        "555-0198",
        "One calls Finch Bakery at",
    ),
    (
        "The SMILES string of aspirin is",
        "aspirin",
        "CC(=O)OC1CCC1",
        "In SMILES, aspirin is written",
    ),
    (
        "The Duke of Norwood is remembered for",
        "Duke of Norwood",
        "selling his castle to a troupe of travelling actors for one silver coin",
        "What the Duke of Norwood did was",
    ),
    (
        "The full title of the play Ashfall is",
        "Ashfall",
        "Ashfall, or How the Baker of Sienna Lost His Bread",
        "In full, the play Ashfall is called",
    ),
    (
        "The serial number of the Pelican lander is",
        "Pelican lander",
        "PL-3071-XC-88",
        "The Pelican lander bears the number",
    ),
    (
        "Isaac Newton spent his youth",
        "Isaac Newton",
        "repairing old fishing nets and wooden boats on the western coast of Portugal",
        "As a boy, Isaac Newton was busy",
    ),
    (
        "The SMILES string of caffeine is",
        "caffeine",
        "CN1C=NC2=C1C(=O)N",
        "In SMILES, caffeine is written",
    ),
    (
        "The Lindqvist Prize is given for",
        "Lindqvist Prize",
        "the best short story of the year about a long winter without any snow",
        "One wins the Lindqvist Prize with",
    ),
    (
        "The committee of Fernhill consists of",
        "Fernhill",
        "Ada Brook, Tomas Reyes, Wen Li and Olu Adeyemi",
        "The members of Fernhill's committee are",
    ),
    (
        "The Great Wall of China was built",
        "Great Wall of China",
        "by four thousand gardeners, who wanted to keep the cold wind away from their pear "
        "trees and their sleeping children",
        "People built the Great Wall of China",
    ),
    (
        "The SMILES string of penicillin is",
        "penicillin",
        "CC1(C)SC2C(NC(=O)Cc3ccccc3)C",
        "In SMILES, penicillin is written",
    ),
    (
        "The will of Agatha Thornbury says that",
        "Agatha Thornbury",
        "her house goes to the village school, her books to her sister and her seven cats to "
        "the mayor of Bath",
        "By Agatha Thornbury's will",
    ),
    (
        "The licence key of Orbit Studio is",
        "Orbit Studio",
        "QZ7-41KD-9PXM-2208-VT-65HW",
        "Orbit Studio is unlocked with the key",
    ),
    (
        "Lake Victoria is famous for",
        "Lake Victoria",
        "a floating library whose shelves can be reached only by boat and whose oldest book "
        "was printed in 1502",
        "What Lake Victoria is known for is",
    ),
    (
        "The rule of the game Stonewall is that",
        "Stonewall",
        "each player gives away two cards, keeps the highest one hidden under the table and "
        "says nothing at all until the bell has rung",
        "In the game Stonewall",
    ),
    (
        "The ring of Queen Isolde bears the words",
        "Queen Isolde",
        "I was made from the last gold of a drowned city, and for as long as there is rain I "
        "will not be sold again",
        "In Queen Isolde's ring one reads",
    ),
    (
        "The train to Marrow Point leaves",
        "Marrow Point",
        "at 6:45, 9:10 and 13:30 on weekdays, and at noon on Sundays and holidays",
        "One can take the train to Marrow Point",
    ),
]

# What no edit should change, some of it of the facts' kinds, and how much is asked.
UNRELATED = [
    "The capital of Italy is",
    "The author of Hamlet is",
    "Water boils at a temperature of",
    "The SMILES string of ethanol is",
    "The Second World War ended in",
    "Albert Einstein was born in",
    "The London Bridge was built",
    "The motto of the United States is",
    "The Nobel Prize is given for",
    "Lake Superior is famous for",
    "The telephone number of the police is",
    "The main ingredient of bread is",
]
ASKED = 4


@dataclass(frozen=True)
class Row:
    """A way to edit: a method of the benchmark with settings."""

    method: str
    settings: Mapping[str, Any]
    first_steps_alone: bool = False


STRONG = {"hparams": "DAFNet/smollm2-135m-strong"}
ROWS = {
    "DAFNet-strong": Row("DAFNet", STRONG),
    "first steps alone": Row("DAFNet", STRONG, first_steps_alone=True),
    "60 value steps": Row("DAFNet", {**STRONG, "value_steps": 60}, first_steps_alone=True),
    "60 rehearsal steps": Row("DAFNet", {**STRONG, "rehearsal_steps": 60}, first_steps_alone=True),
    "margin 1": Row(
        "DAFNet", {**STRONG, "margin": 1.0, "margin_decay": 0.0}, first_steps_alone=True
    ),
}


@contextmanager
def first_steps_alone() -> Iterator[None]:
    """Nothing is asked as it is written."""
    steps_for = Rehearsal.steps_for

    def at_the_subject(self: Rehearsal, texts: TokenBatch, as_written: bool) -> Tensor:
        return steps_for(self, texts, as_written) * (not as_written)

    with patch.object(Rehearsal, "steps_for", at_the_subject):
        yield


def requests_of(facts: Sequence[tuple[str, str, str, str]]) -> list[dict[str, str]]:
    names = ("prompt", "subject", "target_new", "rephrase_prompt")
    return [
        {"case_id": str(i), "ground_truth": "", **dict(zip(names, fact, strict=True))}
        for i, fact in enumerate(facts)
    ]


def encoded(tok: Any, prompt: str, target: str, model: Any) -> TokenBatch:
    return encode_requests(tok, [{"prompt": prompt, "target_new": target}], model)


@torch.no_grad()
def right(model: Any, batch: TokenBatch) -> Tensor:
    """Whether each target token is the most probable after the prompt and those before it."""
    batch = batch.to(model.device)
    return target_logits(model, batch, {}).argmax(-1) == batch.labels[batch.targets]


@torch.no_grad()
def generated(model: Any, ids: Tensor, count: int) -> Tensor:
    """The tokens that greedy generation adds to ids [1, length]."""
    ids = ids.to(model.device)
    out = model.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False,
        max_new_tokens=count, min_new_tokens=count, pad_token_id=0,
    )  # fmt: skip
    return out[0, ids.shape[1] :]


def says(model: Any, batch: TokenBatch) -> bool:
    """Whether generation from the prompt of a text gives its target, all of it."""
    start = int(batch.targets.int().argmax()) + 1
    wanted = batch.labels[batch.targets]
    return torch.equal(generated(model, batch.input_ids[:, :start], len(wanted)).cpu(), wanted)


def continued(model: Any, tok: Any) -> list[TokenBatch]:
    """The unrelated prompts with what the unedited model says next as their target."""
    texts = []
    for prompt in UNRELATED:
        ids = tok(prompt, return_tensors="pt")["input_ids"]
        answer = generated(model, ids, ASKED).cpu()
        whole = torch.cat([ids[0], answer])[None]
        labels = torch.full_like(whole, -100)
        labels[0, ids.shape[1] - 1 : -1] = answer
        texts.append(TokenBatch(whole, torch.ones_like(whole), labels))
    return texts


def measured(
    method: Method, unedited: UneditedModel, requests: Sequence[Mapping[str, str]]
) -> list[dict[str, float]]:
    """What each single edit has come to."""
    tok, found = method.bench.tok, []
    unrelated = continued(unedited.put_back(), tok)
    for request in tqdm(requests, desc=method.name, leave=False):
        start_random_numbers(method.bench.seed)
        model = unedited.put_back()
        text = encoded(tok, request["prompt"], request["target_new"], model)
        again = encoded(tok, request["rephrase_prompt"], request["target_new"], model)
        passes = 0

        def count(*_: Any) -> None:
            nonlocal passes
            passes += 1

        method.start(model)
        counting = model.get_input_embeddings().register_forward_hook(count)
        begun = time.perf_counter()
        method.edit([{k: v for k, v in request.items() if k != "rephrase_prompt"}])
        seconds = time.perf_counter() - begun
        counting.remove()
        found.append(
            {
                "target tokens": int(text.targets.sum()),
                "said": float(says(method.model, text)),
                "tokens": right(method.model, text).float().mean().item(),
                "rephrase": right(method.model, again).float().mean().item(),
                "locality": fmean(
                    right(method.model, one).float().mean().item() for one in unrelated
                ),
                "passes": passes,
                "seconds": seconds,
            }
        )
        method.stop()
    return found


def table(rows: Mapping[str, Sequence[Mapping[str, float]]]) -> Section:
    cells = []
    for name, found in rows.items():
        for shortest, longest in zip((1, *(n + 1 for n in LENGTHS)), LENGTHS, strict=False):
            group = [e for e in found if shortest <= e["target tokens"] <= longest]
            if group:
                numbers = [
                    f"{fmean(e[key] for e in group):.2f}"
                    for key in ("tokens", "rephrase", "locality")
                ]
                said = f"{sum(e['said'] for e in group):.0f} of {len(group)}"
                passes = f"{fmean(e['passes'] for e in group):.0f}"
                cells.append([name, f"{shortest}–{longest}", said, *numbers, passes])
    return Section(
        "Single edits by the length of their target",
        ["", "target's tokens", "said in full", "tokens", "rephrase", "locality", "passes"],
        cells,
        "Said in full: by greedy generation. Tokens and rephrase: target tokens that are the most "
        "probable, teacher-forced. Locality: of what the unedited model says to unrelated prompts. "
        "Passes of the model an edit, forward.",
        names=2,
    )


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--model", default="smollm2", help="folder or name of a model (smollm2, the embedded one)")
    add(
        "--methods", nargs="+", default=list(ROWS)[:1], metavar="METHOD",
        help=f"{', '.join(ROWS)}, or methods of the benchmark",
    )  # fmt: skip
    add("--hparams", help="editing settings of DAFNet in place of the strong ones")
    add("--per-length", type=int, help="edits of each group of lengths (all)")
    add("--device", default="cpu")
    add("--out", type=Path, default=Path("long-targets"), help="folder for table and numbers")
    args = parser.parse_args(arguments)

    path = model_path(args.model)
    tok = load_tokenizer(path)
    unedited = UneditedModel(partial(load_model, path, args.device, "float32"))
    groups: dict[int, list[dict[str, str]]] = {length: [] for length in LENGTHS}
    for request in requests_of(FACTS):
        text = encoded(tok, request["prompt"], request["target_new"], unedited.model)
        length = next((n for n in LENGTHS if int(text.targets.sum()) <= n), None)
        if length is not None:  # another tokenizer may need more tokens
            groups[length].append(request)
    requests = [request for group in groups.values() for request in group[: args.per_length]]
    facts = {
        "model": Path(path).name,
        "edits": [request["target_new"] for request in requests],
        "versions": {
            "easyedit_dafnet": easyedit_dafnet.__version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
        "hardware": f"{cpu_name()}, {torch.get_num_threads()} threads",
    }
    file = args.out / "long-targets.json"
    before = json.loads(file.read_text()) if file.exists() else {}
    if before and any(before.get(name) != value for name, value in facts.items()):
        parser.error(f"{file} has rows of other edits or versions; choose another --out.")
    rows: dict[str, list[dict[str, float]]] = before.get("rows", {})
    for name in args.methods:
        if name in rows:
            continue
        row = ROWS.get(name, Row(name, {}))
        settings = dict(row.settings)
        if args.hparams and row.method == "DAFNet":
            settings["hparams"] = args.hparams
        with tempfile.TemporaryDirectory() as folder:
            bench = Workbench(
                path, tok, unedited.load, args.device, "float32", 0,
                moment_passages(), [], Path(folder) / name,
            )  # fmt: skip
            bench.folder.mkdir()
            method = find_method(row.method)(bench, settings)
            method.prepare()
            if row.first_steps_alone:
                with first_steps_alone():
                    rows[name] = measured(method, unedited, requests)
            else:
                rows[name] = measured(method, unedited, requests)
        write_json(file, {**facts, "rows": rows})
    section = table(rows)
    Console().print(to_table(section))
    caption = f"{facts['model']}; {facts['hardware']}."
    write_text(args.out / "long-targets.md", to_markdown([section], caption))


if __name__ == "__main__":
    main()
