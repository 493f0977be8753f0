"""Learning curves of training runs, from the logs that they leave.

    python benchmarks/curves.py seed-42=results/logs/DAFNet/log.jsonl seed-43=... --out curves

Writes learning-curves.svg, the losses and the validation scores by step, and curves.csv with the
validations, one a line.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

if not __package__:  # run as a script: the package is found from the repository's root
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt
import numpy as np

from easyedit_dafnet.bench.report.tables import to_csv
from easyedit_dafnet.files import write_text

Log = list[dict[str, float]]
LOSSES = ("reliability", "rephrase", "locality")
SMOOTHED = 10  # logged steps that a point of a loss curve is the mean of


def read_log(path: Path) -> Log:
    """The lines of a training log. Raises ValueError for a file that is none."""
    try:
        lines = [json.loads(line) for line in path.read_text().splitlines()]
    except (OSError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is not a training log: {error}.") from None
    if not any("loss" in line for line in lines if isinstance(line, dict)):
        raise ValueError(f"{path} is not a training log: no line has a loss.")
    return lines


def validations(log: Log) -> Log:
    return [line for line in log if "score" in line]


def smoothed(values: Sequence[float]) -> np.ndarray:
    """Means over windows of SMOOTHED values, as far as they reach."""
    width = min(SMOOTHED, len(values))
    return np.convolve(values, np.full(width, 1 / width), "valid")


def draw(logs: Mapping[str, Log]) -> str:
    """The plot as SVG: a colour for each run, a line style for each loss."""
    with plt.rc_context({"svg.hashsalt": "curves", "svg.fonttype": "none", "font.size": 9}):
        figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
        for number, (name, log) in enumerate(logs.items()):
            colour = f"C{number}"
            steps = [line for line in log if "loss" in line]
            for loss, style in zip(LOSSES, ("-", "--", ":"), strict=True):
                # Steps on records without a text of a kind do not have its loss.
                has = [line for line in steps if loss in line]
                if not has:
                    continue
                values = smoothed([line[loss] for line in has])
                at = [line["step"] for line in has][len(has) - len(values) :]
                left.plot(at, values, style, color=colour, label=f"{name}, {loss}", linewidth=1)
            judged = validations(log)
            at = [line["step"] for line in judged]
            right.plot(at, [v["score"] for v in judged], "o-", color=colour, label=name)
        left.set(xlabel="step", ylabel="loss, nats per token", yscale="log", title="Losses")
        right.set(xlabel="step", ylabel="score", ylim=(0, 1), title="Validation, proposals alone")
        for axes in (left, right):
            axes.grid(alpha=0.3)
            axes.legend(fontsize=7, loc="upper right" if axes is left else "lower right")
        text = io.StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None})
        plt.close(figure)
    return text.getvalue()


def table(logs: Mapping[str, Log]) -> str:
    """The validations as CSV."""
    names = dict.fromkeys(key for log in logs.values() for line in validations(log) for key in line)
    rows = (
        [run, *(v.get(n, "") for n in names)] for run, log in logs.items() for v in validations(log)
    )
    return to_csv(["run", *names], rows)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("logs", nargs="+", metavar="NAME=FILE", help="a run's name and its log")
    parser.add_argument("--out", type=Path, default=Path("curves"), help="folder for both files")
    args = parser.parse_args(arguments)
    try:
        logs = {
            name: read_log(Path(path))
            for name, _, path in (entry.partition("=") for entry in args.logs)
        }
    except ValueError as error:
        parser.error(str(error))
    args.out.mkdir(parents=True, exist_ok=True)
    write_text(args.out / "learning-curves.svg", draw(logs))
    write_text(args.out / "curves.csv", table(logs))


if __name__ == "__main__":
    main()
