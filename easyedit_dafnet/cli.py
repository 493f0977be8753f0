"""The command line, `easyedit-dafnet`."""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import logging
import platform
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from tqdm.contrib.logging import logging_redirect_tqdm

from . import __version__, edit_command
from .bench.options import EXAMPLES, add_options
from .dafset.options import add_commands

TRAIN_EXAMPLES = """\
examples:
  # the embedded model on the embedded facts (some four minutes on one core)
  easyedit-dafnet train --hparams TRAINING/DAFNet/smollm2-135m --data facts

  # a model of your own on CounterFact in EasyEdit's layout, checkpoints under ./results
  easyedit-dafnet train --hparams my-training.yaml --data counterfact-train.json --val val.json

  # interrupted, be it by Ctrl-C or a power cut: the same command and --resume goes on, and ends
  # where an uninterrupted run would have; with more --max-iters a finished run goes on too, unless
  # its settings have `lr_schedule: cosine`, whose rates end at max_iters
  easyedit-dafnet train --hparams TRAINING/DAFNet/smollm2-135m --data facts --resume
"""
IMPORT_EXAMPLES = """\
example:
  easyedit-dafnet import-checkpoint epoch-1-i-9000-loss-0.8 imported --config llama-7b.yaml \\
      --model path/to/llama-2-7b-hf
  # then: DAFNetHyperParams.from_hparams("imported/dafnet.yaml")
"""

REPORT_EXAMPLES = """\
examples:
  # runs/quick/report/report.html, the same as Markdown and CSV, and a plot for a README
  easyedit-dafnet report runs/quick

  # two hosts side by side; a method that both have is shown with its host
  easyedit-dafnet report runs/release runs/main --out both

  # to commit: plan and results, with which `bench --out results` goes on elsewhere
  easyedit-dafnet report runs/release --publish results
"""


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        prog="easyedit-dafnet",
        description="DAFNet, sequential editing of language models, as a method of EasyEdit.",
        epilog="easyedit-dafnet COMMAND --help shows examples.",
    )
    top.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, text: str, epilog: str | None = None) -> argparse.ArgumentParser:
        return commands.add_parser(
            name,
            help=text,
            description=text[0].upper() + text[1:] + ".",
            epilog=epilog,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )

    train = command("train", "train the auxiliary networks for a language model", TRAIN_EXAMPLES)
    train.add_argument("--hparams", required=True, help="training settings: a file or shipped name")
    train.add_argument(
        "--data",
        required=True,
        action="append",
        help="records (.json, .jsonl, .csv) or 'facts', the embedded ones; may be repeated",
    )
    train.add_argument(
        "--val", help="records to validate on (default: 5 %% of the data, at most 200)"
    )
    train.add_argument("--out", help="results folder instead of the settings' results_dir")
    train.add_argument("--device", help="instead of the settings' device")
    train.add_argument("--max-iters", type=int, help="steps instead of the settings' max_iters")
    train.add_argument("--seed", type=int, help="instead of the settings' seed")
    former = train.add_mutually_exclusive_group()
    former.add_argument(
        "--resume",
        action="store_true",
        help="go on with the run whose state is in the results folder, as if it had never stopped; "
        "Ctrl-C (or SIGTERM) ends the running step and writes that state, a second Ctrl-C does not "
        "wait: then the last steps, up to the settings' save_interval, are done again",
    )
    former.add_argument(
        "--fresh",
        action="store_true",
        help="begin anew where the results folder holds a run of this language model, and replace "
        "it; without either option such a folder is refused",
    )
    train.set_defaults(run=run_train)

    edit = command(
        "edit", "edit facts from a file, one after another, and save", edit_command.EXAMPLES
    )
    edit_command.add_options(edit)

    imported = command(
        "import-checkpoint",
        "turn a checkpoint of the authors' code into ours, without executing it",
        IMPORT_EXAMPLES,
    )
    imported.add_argument("checkpoint", help="the file that the authors' code wrote")
    imported.add_argument("out", help="folder for the checkpoint and its settings, dafnet.yaml")
    imported.add_argument("--config", required=True, help="the authors' YAML for that checkpoint")
    imported.add_argument("--model", required=True, help="folder of the language model")
    imported.add_argument(
        "--fusion-order",
        choices=["paper", "released"],
        default="paper",
        help="how batches are fused; both agree for one edit at a time (paper)",
    )
    imported.set_defaults(run=run_import)

    bench = command(
        "bench", "compare methods: edit streams of facts, score them after the last edit", EXAMPLES
    )
    add_options(bench)
    bench.set_defaults(run=run_bench)

    report = command("report", "show what runs of the benchmark found", REPORT_EXAMPLES)
    report.add_argument("runs", nargs="+", type=Path, metavar="DIR", help="--out folder of a run")
    report.add_argument("--out", type=Path, help="folder for the report (DIR/report of the first)")
    report.add_argument("--edits", action="store_true", help="write each edit's scores, too")
    report.add_argument(
        "--publish",
        type=Path,
        metavar="FOLDER",
        help="copy the first run's plan and results there, without texts and this machine's paths",
    )
    report.set_defaults(run=run_report)

    dafset = command("dafset", "build a data set to train on, analyse and check it")
    add_commands(dafset)

    info = command("info", "show the host, versions and devices, and what is missing")
    info.set_defaults(run=run_info)
    return top


def run_train(args: argparse.Namespace) -> None:
    from .archive import read_archive
    from .dafnet_hparams import DAFNetTrainingHparams
    from .edit_requests import RequestError, hold_out
    from .record_files import read_training_records
    from .training_folder import TrainingFolder

    config = DAFNetTrainingHparams.from_hparams(args.hparams)
    for name in ("device", "max_iters", "seed"):
        if getattr(args, name) is not None:
            setattr(config, name, getattr(args, name))
    config.results_dir = args.out or config.results_dir
    config.__post_init__()

    sets: dict[str, list[Any]] = {}
    for source in args.data:
        if source == "facts":
            from .facts import load_facts

            sets["facts"] = load_facts("train", seed=0)
        else:
            name = Path(source).stem
            if name in sets:
                raise RequestError(
                    f"--data {source}: another data set is called {name!r} too; rename one, the "
                    "losses are named by them."
                )
            sets[name] = read_training_records(source)
    if args.val:
        validation = read_training_records(args.val)
    else:
        validation = []
        for name, records in sets.items():
            if len(records) == 1:
                raise RequestError(f"{name} has one record; give more, or name some with --val.")
            held, sets[name] = hold_out(records, config.seed)
            validation += held
    if config.archive:
        read_archive(config.archive)
    TrainingFolder.of(config).check(args.resume, args.fresh)
    from .trainer import DAFNetTrainer  # here: importing torch and transformers takes seconds

    trainer = DAFNetTrainer(config=config, train_set=sets, val_set=validation)
    trainer.run(resume=args.resume, fresh=args.fresh)
    print(f"The trained DAFNet is in {trainer.save_path}; name it as `archive` to edit with it.")


def run_import(args: argparse.Namespace) -> None:
    from .archive import read_released_config

    read_released_config(args.checkpoint, args.out, args.config)  # before torch is imported
    from .checkpoint import import_released_checkpoint

    path = import_released_checkpoint(
        args.checkpoint, args.out, args.config, args.model, args.fusion_order
    )
    print(f"Edit with it: DAFNetHyperParams.from_hparams({str(path)!r})")


def run_bench(args: argparse.Namespace) -> int:
    check_extra("bench", "filelock", "rich")
    from .bench.cells import RUN, RunFolder
    from .bench.suite import Run
    from .files import check_folder

    Run.load(RunFolder(args.out))
    check_folder(args.out, RUN, in_place=True)
    from .bench.command import run  # here: importing torch and transformers takes seconds

    return run(args)


def run_report(args: argparse.Namespace) -> None:
    check_extra("report", "filelock", "jinja2", "rich", "markupsafe")
    from rich.console import Console

    from .bench.report import check_publish, publish, write_report
    from .bench.report.terminal import terminal_tables

    if args.publish:
        check_publish(args.runs[0], args.publish)
    files, summary = write_report(args.runs, args.out or args.runs[0] / "report", args.edits)
    for problem in summary.problems:
        print(f"easyedit-dafnet: {problem}", file=sys.stderr)
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 200)
    console.print(*terminal_tables(summary))
    print("\n".join(map(str, files)))
    if args.publish:
        print(f"{len(publish(args.runs[0], args.publish))} files in {args.publish}")


def check_extra(extra: str, *packages: str) -> None:
    for package in packages:
        if importlib.util.find_spec(package) is None:
            raise ImportError(f"{package} is missing: pip install 'easyedit_dafnet[{extra}]'.")


def extras() -> dict[str, list[str]]:
    """What each extra of the package installs, by the package's metadata."""
    try:
        package = importlib.metadata.metadata("easyedit_dafnet")
    except importlib.metadata.PackageNotFoundError:  # run from its folder, not installed
        return {}
    asked = [Requirement(line) for line in package.get_all("Requires-Dist") or []]
    return {
        extra: sorted(
            canonicalize_name(r.name)
            for r in asked
            if r.marker and r.marker.evaluate({"extra": extra})
        )
        for extra in package.get_all("Provides-Extra") or []
    }


def run_info(args: argparse.Namespace) -> None:
    import torch

    from .bridge import host_info
    from .dafnet_hparams import shipped

    try:
        host = str(host_info())
    except ImportError as error:
        host = f"missing. {error}"
    devices = ["cpu"]
    devices += [
        f"cuda:{i} ({torch.cuda.get_device_name(i)})" for i in range(torch.cuda.device_count())
    ]
    names = ("torch", "transformers", "safetensors", "peft")
    installed: dict[str, str] = {
        canonicalize_name(d.metadata["Name"]): d.version for d in importlib.metadata.distributions()
    }
    print(f"easyedit_dafnet  {__version__}")
    print(f"Python           {platform.python_version()}")
    for name in names:
        print(f"{name:<16} {installed.get(name, 'missing')}")
    print(f"EasyEdit         {host}")
    print(f"devices          {', '.join(devices)}")
    for extra, packages in extras().items():
        missing = [p for p in packages if p not in installed]
        state = (
            f"missing {', '.join(missing)}: pip install 'easyedit_dafnet[{extra}]'"
            if missing
            else "installed"
        )
        print(f"{'[' + extra + ']':<16} {state}")
    settings = sorted(
        p.relative_to(shipped("hparams")) for p in shipped("hparams").rglob("DAFNet/*.yaml")
    )
    print(f"settings         {', '.join(str(p.with_suffix('')) for p in settings)}")
    archives = sorted(p.parent.name for p in shipped("checkpoints").glob("*/config.json"))
    print(f"checkpoints      {', '.join(archives) or 'none'}")


def main(argv: Sequence[str] | None = None) -> int:
    args = parser().parse_args(argv)

    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    try:
        with logging_redirect_tqdm():  # a line above a progress bar, not on it
            return args.run(args) or 0
    except (ValueError, OSError, ImportError, FloatingPointError) as error:
        print(f"easyedit-dafnet: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt as stop:
        # Training says how to go on, and which of the signals it was.
        print(f"easyedit-dafnet: {str(stop) or 'stopped'}", file=sys.stderr)
        return getattr(stop, "exit_code", 130)


if __name__ == "__main__":
    sys.exit(main())
