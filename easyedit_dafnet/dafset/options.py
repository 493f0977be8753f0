"""The command line of the data set's builder, `easyedit-dafnet dafset`. Imports nothing heavy."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

BUILD_EXAMPLES = """\
examples:
  # from the facts that come with this package: nothing to download, a minute
  easyedit-dafnet dafset build --out dafset

  # from Wikidata, for a language model of one's own; --records of each property
  easyedit-dafnet dafset build --dump latest-all.json.bz2 --views pageviews-202610*.bz2 \\
      --text enwiki.txt.gz --model path/to/model --records 10000 \\
      --exclude counterfact-edit.json zsre_mend_eval.json --out dafset

  # the same queries on Spark; extraction still runs here
  easyedit-dafnet dafset build --dump latest-all.json.bz2 --engine spark://host:7077 --out dafset

A build that was interrupted goes on with the same command. Another one in the same folder reads the
views and the text again only where these are others; another dump or language needs a folder of its
own.
"""
ANALYZE_EXAMPLES = """\
example:
  easyedit-dafnet dafset analyze dafset      # writes dafset/report.html
"""
CHECK_EXAMPLES = """\
examples:
  easyedit-dafnet dafset check dafset --exclude counterfact-edit.json
  easyedit-dafnet dafset check dafset --read 50      # shows 50 records, drawn by --seed, to read
"""


def add_commands(dafset: argparse.ArgumentParser) -> None:
    """build, analyze and check, with `run` set to what runs them."""
    commands = dafset.add_subparsers(dest="dafset_command", required=True, metavar="COMMAND")

    def command(name: str, text: str, epilog: str) -> argparse.ArgumentParser:
        return commands.add_parser(
            name,
            help=text,
            description=text[0].upper() + text[1:] + ".",
            epilog=epilog,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )

    build = command("build", "build a data set from a Wikidata dump or own facts", BUILD_EXAMPLES)
    _add_build_options(build)
    build.set_defaults(run=run_build)

    analyze = command(
        "analyze", "show what a data set holds: one page with plots", ANALYZE_EXAMPLES
    )
    analyze.add_argument("folder", type=Path, help="of a data set that was built")
    analyze.set_defaults(run=run_analyze)

    check = command("check", "look for records that a data set should not have", CHECK_EXAMPLES)
    check.add_argument("folder", type=Path, help="of a data set that was built")
    check.add_argument("--exclude", nargs="+", default=[], metavar="FILE", help="evaluation sets")
    check.add_argument("--read", type=int, default=0, metavar="N", help="show N records to read")
    check.add_argument("--seed", type=int, default=0, help="of the draw (0)")
    check.set_defaults(run=run_check)


def _add_build_options(build: argparse.ArgumentParser) -> None:
    sources = build.add_argument_group("sources")
    sources.add_argument(
        "--dump", help="Wikidata's JSON dump: .json, .json.gz or .json.bz2 (default: own facts)"
    )
    sources.add_argument("--views", nargs="+", default=[], help="Wikimedia's page-view files")
    sources.add_argument("--text", nargs="+", default=[], help="a corpus, to count names in")
    sources.add_argument("--model", help="the language model to be edited, or smollm2")
    sources.add_argument(
        "--exclude", nargs="+", default=[], metavar="FILE",
        help="evaluation sets (CounterFact, ZsRE, RippleEdits, ...) to share nothing with",
    )  # fmt: skip
    sources.add_argument("--language", default="en", help="of labels and page views (en)")
    build.add_argument("--out", type=Path, required=True, help="folder of the data set")

    choice = build.add_argument_group("which facts")
    number: dict[str, Any] = {"type": int, "metavar": "N"}
    share: dict[str, Any] = {"type": float, "metavar": "SHARE"}
    choice.add_argument(
        "--records", default=5000, help="of each property, at most (5000)", **number
    )
    choice.add_argument("--per-relation", help="of these, of one relation (any)", **number)
    choice.add_argument("--before", metavar="DATE", help="end of `recent` (the newest change)")
    choice.add_argument("--window-days", default=7, help="length of `recent` (7)", **number)
    choice.add_argument(
        "--views-quantile", default=0.9, **share,
        help="`popular`: page views, or inhabitants by own facts, from here on (0.9)",
    )  # fmt: skip
    choice.add_argument(
        "--hub", default=1000, help="`popular`: no path through more links", **number
    )
    choice.add_argument(
        "--frequency-quantile", default=0.3, help="`long_tail`: rarer in the text (0.3)", **share
    )
    choice.add_argument(
        "--degree-quantile", default=0.3, help="`long_tail`: fewer statements (0.3)", **share
    )
    choice.add_argument(
        "--likelihood-quantile", default=0.5, help="`long_tail`: less likely (0.5)", **share
    )
    choice.add_argument(
        "--several-answers", action="store_true", help="also where a fact has several true answers"
    )
    choice.add_argument("--seed", type=int, default=0, help="of all draws (0)")

    how = build.add_argument_group("how")
    how.add_argument(
        "--engine", default="duckdb", help="duckdb, or a Spark master such as local[*] (duckdb)"
    )
    how.add_argument("--memory-gb", type=float, default=0.9, help="that DuckDB takes (0.9)")
    how.add_argument("--jobs", type=int, help="processes that read the dump (all cores)")
    how.add_argument("--device", default="cpu", help="of the language model (cpu)")


def run_build(args: argparse.Namespace) -> int:
    """1 where nothing came out."""
    from dataclasses import fields

    from ..files import check_folder
    from .dataset import DATA_SET

    check_folder(args.out, DATA_SET, in_place=True)
    from ..bench.environment import command_line
    from .build import Settings, build  # here: what it imports takes seconds

    given = {f.name: getattr(args, f.name) for f in fields(Settings)}
    lists = {name: tuple(given[name]) for name in ("views", "text", "exclude")}
    found = build(Settings(**{**given, **lists}), args.out, command_line())
    names = ("recent", "popular", "long_tail", "robust")
    for name in names:
        print(f"{found['counts'][name]:7,} {name}")
    if not any(found["counts"][name] for name in names):
        print(
            f"No fact fits, of {found['counts']['candidates']:,} that can be asked for in language "
            f"{args.language!r}; {args.out / 'build.json'} says what was skipped.",
            file=sys.stderr,
        )
        return 1
    excluded = found["excluded"]
    if excluded["files"]:
        print(
            f"Left out for {', '.join(excluded['files'])}: {excluded['subjects']:,} subjects with "
            f"{excluded['facts']:,} facts, and {excluded['prompts']:,} records by a prompt."
        )
    print(f"The data set is in {args.out}.")
    return 0


def run_analyze(args: argparse.Namespace) -> None:
    from .analyze import analyze

    print(analyze(args.folder))


def run_check(args: argparse.Namespace) -> int:
    """1 where there are problems."""
    from .check import problems, report, sample, to_text
    from .dataset import read_dataset
    from .describe import signals
    from .exclude import Excluded

    dataset = read_dataset(args.folder)
    for record in sample(dataset, args.read, args.seed):
        print(to_text(record, signals(dataset)), end="\n\n")
    found = problems(dataset, Excluded.read(args.exclude))
    print(report(found))
    return 1 if found else 0
