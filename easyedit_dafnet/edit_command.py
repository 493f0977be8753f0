"""The command `easyedit-dafnet edit`: facts from a file are edited one after another, and saved.

What cannot work is refused before torch and transformers are imported, as far as that can be told.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from .edit_requests import RequestError, check_requests, name_of
from .files import check_file, check_folder

EXAMPLES = """\
examples:
  # facts.csv:  prompt,subject,target_new
  #             The capital of Cambodia is,Cambodia,Lusaka
  #             "Toko Yasuda, the",Toko Yasuda,piano
  easyedit-dafnet edit --hparams DAFNet/smollm2-135m-strong --facts facts.csv --out edited-model

  # interrupted, be it by Ctrl-C, a power cut or a full disk: the same command and --resume goes
  # on, and ends with the weights of an uninterrupted run
  easyedit-dafnet edit --hparams DAFNet/smollm2-135m-strong --facts facts.csv --out edited-model \\
      --resume

  # only what changed, to keep or send instead of a whole model: a safetensors file of
  # {parameter name: edited - unedited}, to be added to the unedited model's parameters
  easyedit-dafnet edit --hparams DAFNet/smollm2-135m-strong --facts facts.jsonl \\
      --delta edits.safetensors

settings that are shipped, by name:
  DAFNet/smollm2-135m-strong  the strong form, for many facts: written where the subject ends
  DAFNet/smollm2-135m         the published form, for a few
  DAFNet/llama-7b, DAFNet/gpt-j-6B, DAFNet/gpt2-xl  published sizes, for an archive of your own
"""
DTYPES = ("auto", "float32", "bfloat16", "float16")


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--hparams", required=True, help="editing settings: a file or a shipped name"
    )
    parser.add_argument(
        "--facts",
        required=True,
        help="records with prompt, target_new and the subject, the words of the prompt that the "
        "fact is about (.json, .jsonl, .csv); rephrase_prompt and locality_prompt are asked too",
    )
    target = parser.add_mutually_exclusive_group(required=True)
    target.add_argument("--out", type=Path, help="new folder for the edited model and tokenizer")
    target.add_argument(
        "--delta", type=Path, help="safetensors file for the change alone, and FILE.json beside it"
    )
    again = parser.add_mutually_exclusive_group()
    again.add_argument(
        "--resume",
        action="store_true",
        help="go on with the interrupted run whose journal lies beside the output, as if it had "
        "never stopped; Ctrl-C (or SIGTERM) ends the running edit and writes the journal, which "
        "is also written about every minute; a second Ctrl-C does not wait",
    )
    again.add_argument(
        "--fresh", action="store_true", help="begin anew, and give up an interrupted run's edits"
    )
    parser.add_argument(
        "--skip-unfit",
        action="store_true",
        help="leave out facts that cannot be edited, count and list them, instead of refusing all",
    )
    parser.add_argument("--device", help="instead of the settings' device")
    parser.add_argument(
        "--dtype",
        choices=DTYPES,
        help="number format to load, edit and save the model in (auto: that of its files; float16 "
        "where the settings say fp16)",
    )
    parser.add_argument("--show", type=int, default=5, help="facts to show before and after (5)")
    parser.set_defaults(run=run)


def report_of(delta: Path) -> Path:
    """The report beside a file with the change alone."""
    return delta.with_name(f"{delta.name}.json")


def check_place(args: argparse.Namespace, size: int = 0) -> None:
    """Raise OutputError where the output must not or cannot be written, or is too large."""
    if args.out:
        check_folder(args.out, size=size)
    else:
        check_file(args.delta, size=size)
        check_file(report_of(args.delta))


def usable(
    records: Sequence[Any],
    check: Callable[[Sequence[Any]], list[Any]],
    skip_unfit: bool,
    left_out: list[str],
) -> list[Any]:
    """What `check` makes of the records.

    Args:
        records: Of a file.
        check: Raises RequestError about all that it cannot use.
        skip_unfit: Leave those out.
        left_out: Takes what was left out and why.

    Raises:
        RequestError: Some cannot be used and are not to be left out, or none can be used.
    """
    try:
        return check(records)
    except RequestError as error:
        problems = error.problems
        if not skip_unfit or not problems or len(problems) == len(records):
            raise
    left_out += [f"{name_of(records[i], i)}: {why}" for i, why in sorted(problems.items())]
    rest = [record for i, record in enumerate(records) if i not in problems]
    return usable(rest, check, skip_unfit, left_out)


def run(args: argparse.Namespace) -> None:
    from .archive import read_archive
    from .dafnet_hparams import DAFNetHyperParams
    from .record_files import load_records

    hparams = DAFNetHyperParams.from_hparams(args.hparams)
    if hparams.archive:
        read_archive(hparams.archive)
    if args.device is not None:
        hparams.device = args.device
    check_place(args)
    left_out: list[str] = []
    records = usable(load_records(args.facts), check_requests, args.skip_unfit, left_out)

    from .edit_run import EditRun  # torch and transformers

    EditRun(args, hparams, records, left_out).run()
