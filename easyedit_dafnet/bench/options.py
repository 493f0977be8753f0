"""The options of `easyedit-dafnet bench`; `command` runs it."""

from __future__ import annotations

import argparse
from pathlib import Path

EXAMPLES = """\
examples:
  # minutes on 2 cores, on embedded facts; the report is a page to open in a browser
  easyedit-dafnet bench --suite quick --out runs/quick
  easyedit-dafnet report runs/quick

  # what is there, what is missing, what would run and for how long; nothing runs
  easyedit-dafnet bench --suite paper --data-dir ~/data --out runs/paper --dry-run

  # the embedded model on records of one's own, by methods of one's own choice
  easyedit-dafnet bench --data facts.json --methods unedited FT DAFNet-strong --out runs/facts

  # another model and known data; two workers. DAFNet needs a network that was trained for it
  easyedit-dafnet bench --model ~/models/llama-2-7b --device cuda --data counterfact-edit.json \\
      --methods FT ROME MEMIT --num-edits 1 10 100 --text wikitext.txt --out runs/llama \\
      --jobs 2

  # interrupted, be it by Ctrl-C or a power cut: the same command, or just the folder, goes on;
  # with more methods, data, lengths or streams it does what is new
  easyedit-dafnet bench --out runs/llama
  easyedit-dafnet bench --out runs/llama --methods BFT

  # one part of it, for two hours; then what failed, once more
  easyedit-dafnet bench --out runs/llama --only method=ROME,num_edits=100 --max-hours 2
  easyedit-dafnet bench --out runs/llama --retry-failed

  # eight workers on a Slurm cluster; the folder must be one that all machines see
  easyedit-dafnet bench --suite full --out /shared/full --engine slurm --jobs 8 \\
      --slurm slurm_partition=gpu gpus_per_node=1 timeout_min=600
"""
#: Those shipped, named here because help must not wait for what would find them.
SUITES = "quick, paper, full, smollm2-release, smollm2-main, same-subject, dafset-effect"


def add_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--suite", help=f"settings by name ({SUITES}) or file; the options overrule it")
    add("--out", type=Path, required=True, help="folder of the run, new or to go on with")
    asked = parser.add_argument_group("what to run")
    add = asked.add_argument
    add("--model", help="folder or hub name; 'smollm2' is the embedded one (default)")
    add(
        "--data",
        nargs="+",
        help="data sets: 'facts' (embedded, default), FILE, NAME=FILE, or the NAME of a known set",
    )
    add("--data-dir", nargs="+", metavar="DIR", help="where known sets' files are (.)")
    add(
        "--methods",
        nargs="+",
        help="methods by name, as DAFNet (the published form), DAFNet-strong or one of EasyEdit's; "
        "settings of their own need a suite's file",
    )
    add("--num-edits", nargs="+", type=int, metavar="N", help="stream lengths (1 10 100 1000)")
    add("--streams", type=int, help="streams of each length (3)")
    add("--batch-size", type=int, metavar="B", help="edits applied together (1)")
    add("--single-edits", type=int, help="records in a cell of N = 1, each edited alone (25)")
    add("--seed", type=int, help="draws the streams (0)")
    add("--text", metavar="FILE", help="plain text for perplexity, covariances (embedded)")
    add(
        "--train",
        nargs="+",
        metavar="FILE",
        help="records for methods that are trained, or 'facts-train'",
    )
    add("--perplexity-passages", type=int, metavar="K", help="of the text (20)")
    add("--device", help="cpu (default) or cuda")
    add("--dtype", choices=["float32", "float16", "bfloat16"], help="the model's (float32)")
    add("--capability", nargs="+", metavar="TASK", help="tasks of lm-evaluation-harness")
    add("--capability-limit", type=int, metavar="K", help="questions of each, 0 for all (100)")
    how = parser.add_argument_group("how to run it")
    add = how.add_argument
    add("--jobs", type=int, default=1, metavar="J", help="workers at the same time (1)")
    add("--engine", choices=["local", "slurm"], default="local", help="where they run (local)")
    add("--slurm", nargs="+", default=[], metavar="KEY=VALUE", help="settings for submitit")
    add(
        "--only",
        action="append",
        default=[],
        metavar="KEY=VALUE,...",
        help="only cells with this data, method, num_edits or stream; may be repeated",
    )
    add("--max-hours", type=float, metavar="H", help="start no cell that would end later")
    add("--retry-failed", action="store_true", help="run failed cells once more")
    add("--dry-run", action="store_true", help="show what is there and the plan, run nothing")
