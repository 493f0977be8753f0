"""What edits of a chat model do in the other form: made in plain and in chat form, asked in both.

    python benchmarks/chat.py --data zsre_mend_eval.json --records 20 --out chat

Each record is edited alone with the strong DAFNet as it is shipped. In chat form the prompt is the
user's turn in the model's chat template (setting `use_chat_template`). "says" is the share of
prompts after which the model names the target in its first sentence, "rephrases" the same of
rephrased prompts; "kept" is the share of unrelated questions whose first sentence stays, word for
word, what the unedited model says in the same form.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

if not __package__:  # run as a script: the package is found from the repository's root
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch
import transformers
from tqdm import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer

from easyedit_dafnet import DAFNetHyperParams, __version__, apply_dafnet_to_model
from easyedit_dafnet.bench import EditRecord
from easyedit_dafnet.bench.answers import normalise
from easyedit_dafnet.bench.cells import write_json
from easyedit_dafnet.bench.data import data_source
from easyedit_dafnet.bench.environment import cpu_name
from easyedit_dafnet.bench.scoring import Scorer
from easyedit_dafnet.files import write_text
from easyedit_dafnet.prompts import chat_form

SETTINGS = "DAFNet/smollm2-135m-strong"
FORMS = ("plain", "chat")
MEASURES = ("says", "rephrases", "kept")
Rows = dict[str, dict[str, dict[str, list[float]]]]  # edited in, asked in, measure


def prompts_of(record: EditRecord) -> dict[str, list[str]]:
    """What is asked of a record for each measure."""
    kept = [probe.prompt for probes in record.locality.values() for probe in probes]
    return {"says": [record.prompt], "rephrases": list(record.rephrases), "kept": kept}


def measure(
    model: Any,
    tok: Any,
    records: Sequence[EditRecord],
    edit: Callable[[EditRecord, bool], None],
    restore: Callable[[], None],
) -> Rows:
    """The values of all records' questions, in both forms after edits in both forms.

    Args:
        model: the language model, unedited.
        tok: its tokenizer, with a chat template.
        records: each is edited alone.
        edit: edits the model by a record, in chat form or not.
        restore: takes the edit back.
    """
    scorer = Scorer(tok)
    ask: dict[str, Callable[[str], str]] = {"plain": str, "chat": partial(chat_form, tok)}
    found: Rows = {e: {a: {m: [] for m in MEASURES} for a in FORMS} for e in FORMS}
    for record in tqdm(records, desc="Records"):
        asked = prompts_of(record)
        before = {
            form: scorer.generate(model, [ask[form](p) for p in asked["kept"]]) for form in FORMS
        }
        for edited in FORMS:
            edit(record, edited == "chat")
            for form in FORMS:
                row = found[edited][form]
                for name, prompts in asked.items():
                    texts = scorer.generate(model, [ask[form](p) for p in prompts])
                    if name == "kept":
                        row[name] += map(float, map(str.__eq__, texts, before[form]))
                    else:
                        wanted = normalise(record.target_new)
                        row[name] += [float(wanted in normalise(text)) for text in texts]
            restore()
    return found


def table(found: Rows) -> str:
    """The means as a table in Markdown."""
    lines = ["| edited in | asked in | says | rephrases | kept |", "|---|---|---|---|---|"]
    for edited, rows in found.items():
        for asked, row in rows.items():
            means = " | ".join(f"{fmean(row[m]):.2f}" if row[m] else "–" for m in MEASURES)
            lines.append(f"| {edited} form | {asked} form | {means} |")
    return "\n".join(lines) + "\n"


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").split("\n")[0],
        epilog=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--data", default="facts", help="NAME, FILE or NAME=FILE, as for bench")
    parser.add_argument("--records", type=int, default=20, help="how many, from the first on (20)")
    parser.add_argument("--hparams", default=SETTINGS, help=f"editing settings ({SETTINGS})")
    parser.add_argument("--out", type=Path, required=True, help="folder for chat.json and chat.md")
    args = parser.parse_args(argv)
    records = data_source(args.data).read()[: args.records]
    settings = DAFNetHyperParams.from_hparams(args.hparams)
    tok = AutoTokenizer.from_pretrained(settings.tokenizer_name)
    model = AutoModelForCausalLM.from_pretrained(settings.model_name).eval()
    originals: dict[str, torch.Tensor] = {}

    def edit(record: EditRecord, chat: bool) -> None:
        hparams = replace(settings, use_chat_template=chat)
        request = record.request()
        _, weights = apply_dafnet_to_model(model, tok, [request], hparams, return_orig_weights=True)
        originals.update(weights)

    def restore() -> None:
        model.load_state_dict(originals, strict=False)

    found = measure(model, tok, records, edit, restore)
    about = {
        "model": Path(settings.model_name).name,
        "settings": args.hparams,
        "data": Path(args.data).name,
        "records": len(records),
        "questions": {m: len(found["plain"]["plain"][m]) for m in MEASURES},
        "hardware": f"{cpu_name()}, {torch.get_num_threads()} threads",
        "versions": {
            "easyedit_dafnet": __version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
    }
    write_json(args.out / "chat.json", {**about, "found": found})
    write_text(args.out / "chat.md", table(found))
    print(table(found), end="")


if __name__ == "__main__":
    main()
