"""How fast a Wikidata dump becomes tables, beside plain readers of the same dump.

    python benchmarks/dafset.py latest-all.json.bz2               # or a sample of it
    python benchmarks/dafset.py sample.json.bz2 --repeat 20       # its entities 20 times over
    python benchmarks/dafset.py sample.json.bz2 --beside stdlib   # without qwikidata

stdlib: a loop of bz2 (or gzip) and json.loads; qwikidata: its WikidataJsonDump. Both only read and
parse, each on one core; the extraction writes its tables as well. Each runs in a process of its
own, taking turns.

A full dump's hours are projected from its number of items and from its bytes. The defaults are
about those of latest-all.json.bz2 at the turn of 2025 to 2026; --items and --gigabytes say others.
"""

from __future__ import annotations

import argparse
import bz2
import gzip
import json
import multiprocessing
import platform
import re
import resource
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from itertools import count
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

if not __package__:  # run as a script: the package is found from the repository's root
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from easyedit_dafnet.bench.cells import write_json
from easyedit_dafnet.dafset.dump import Archive

if TYPE_CHECKING:
    from benchmarks.speed.report import Section

ITEMS = 115e6
GIGABYTES = 100.0
READERS = ("stdlib", "qwikidata")
NUMBER = re.compile(rb'"id":\s*"Q\d+"')
UNIT = 1 if sys.platform == "darwin" else 1024  # bytes, of ru_maxrss


@dataclass(frozen=True)
class Reading:
    """One pass over the dump: items and seconds; bytes at the peak.

    peak: of the process, and of its largest worker times their number: an upper bound.
    """

    items: int
    seconds: float
    cpu_seconds: float
    peak: int


@dataclass(frozen=True)
class Row:
    """All passes of one reader."""

    what: str
    readings: list[Reading]

    @property
    def items(self) -> int:
        return self.readings[0].items

    @property
    def seconds(self) -> float:
        return median(r.seconds for r in self.readings)

    @property
    def cpu_seconds(self) -> float:
        return median(r.cpu_seconds for r in self.readings)

    @property
    def peak(self) -> int:
        return max(r.peak for r in self.readings)


# -- The readers, each in a process of its own -----------------------------------------------------


def extraction(dump: str, jobs: int) -> int:
    from easyedit_dafnet.dafset.extract import extract

    with TemporaryDirectory() as out:
        return extract(dump, out, jobs=jobs, progress=False)["items"]


def stdlib(dump: str, _: int) -> int:
    """What many scripts do: a line at a time."""
    items = 0
    openers: dict[str, Callable[..., Any]] = {".bz2": bz2.open, ".gz": gzip.open}
    with openers.get(Path(dump).suffix, open)(dump, "rb") as file:
        for line in file:
            line = line.strip().rstrip(b",")
            if line not in (b"[", b"]", b""):
                items += json.loads(line)["type"] == "item"
    return items


def qwikidata(dump: str, _: int) -> int:
    from qwikidata.json_dump import WikidataJsonDump

    return sum(entity["type"] == "item" for entity in WikidataJsonDump(dump))


def read(reader: Callable[[str, int], int], dump: str, jobs: int) -> Reading:
    """One pass, in this process."""
    start, items = time.perf_counter(), reader(dump, jobs)
    seconds = time.perf_counter() - start
    own, workers = (
        resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    )
    cpu = sum(usage.ru_utime + usage.ru_stime for usage in (own, workers))
    peak = own_peak() + (jobs * UNIT * workers.ru_maxrss if jobs > 1 else 0)
    return Reading(items, seconds, cpu, peak)


def own_peak() -> int:
    """Of this process. On Linux ru_maxrss also counts the process that it was forked from."""
    status = Path("/proc/self/status")
    if not status.exists():
        return UNIT * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    lines = dict(line.split(":", 1) for line in status.read_text().splitlines() if ":" in line)
    return int(lines["VmHWM"].split()[0]) * 1024


# -- Measuring -------------------------------------------------------------------------------------


def measure(options: argparse.Namespace, dump: Path) -> list[Row]:
    runs: dict[str, tuple[Callable[[str, int], int], int]] = {
        f"ours, {jobs} job{'s' if jobs > 1 else ''}": (extraction, jobs) for jobs in options.jobs
    }
    runs |= {name: ({"stdlib": stdlib, "qwikidata": qwikidata}[name], 1) for name in options.beside}
    found: dict[str, list[Reading]] = {name: [] for name in runs}
    for _ in range(options.repetitions):
        for name, (reader, jobs) in runs.items():
            found[name].append(alone(read, reader, str(dump), jobs))
    rows = [Row(name, readings) for name, readings in found.items()]
    if len({row.items for row in rows}) > 1:
        counts = ", ".join(f"{row.what} {row.items}" for row in rows)
        raise ValueError(f"The readers found different numbers of items: {counts}.")
    return rows


def alone(function: Callable[..., Any], *arguments: Any) -> Any:
    """What the function returns, run in a process of its own."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as fresh:
        return fresh.submit(function, *arguments).result()


def repeated(dump: Path, times: int, folder: Path) -> Path:
    """A bz2 dump that holds the dump's lines as often, each an item of its own."""
    numbers = count(1)

    def renumbered(line: bytes) -> bytes:
        return NUMBER.sub(lambda _: b'"id":"Q%d"' % next(numbers), line, count=1)

    def lines() -> Iterator[bytes]:
        with Archive(dump) as archive:
            for block in archive.blocks():
                for line in block.splitlines():
                    line = line.strip().rstrip(b",")
                    if line not in (b"[", b"]", b""):
                        yield line

    path = folder / "repeated.json.bz2"
    with path.open("wb") as file:
        # As tools that work on several cores write it: streams, one after another.
        file.write(bz2.compress(b"[\n" + renumbered(next(lines()))))
        for _ in range(times):
            file.write(bz2.compress(b",\n" + b",\n".join(map(renumbered, lines()))))
        file.write(bz2.compress(b"\n]\n"))
    return path


def section(rows: Sequence[Row], size: int, options: argparse.Namespace, note: str) -> Section:
    """size: the dump's bytes."""
    from benchmarks.speed.report import Section, bytes_text
    from benchmarks.speed.timing import show

    first = rows[0]
    header = ["", "seconds", "MB/s", "items/s", "items/s per core", "peak memory"]
    header += ["ratio", "ratio per core", "full dump: hours by items", "by bytes"]
    table = [
        [
            row.what,
            show(row.seconds),
            show(size / 1e6 / row.seconds),
            f"{row.items / row.seconds:,.0f}",
            f"{row.items / row.cpu_seconds:,.0f}",
            bytes_text(row.peak),
            f"{row.seconds / first.seconds:.2f}",
            f"{row.cpu_seconds / first.cpu_seconds:.2f}",
            show(options.items / row.items * row.seconds / 3600),
            show(options.gigabytes * 1e9 / size * row.seconds / 3600),
        ]
        for row in rows
    ]
    return Section(f"Reading {first.items:,} items, {bytes_text(size)}", header, table, note)


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python benchmarks/dafset.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("dump", type=Path, help="a Wikidata JSON dump, .bz2, .gz or plain")
    add("--repeat", type=int, default=1, help="read its entities so many times over (1)")
    add("--jobs", type=int, nargs="+", default=[1, 2], help="worker processes of ours (1 2)")
    add("--beside", nargs="*", choices=READERS, default=list(READERS), help="other readers (all)")
    add("--repetitions", type=int, default=3, help="of every timing (3)")
    add("--items", type=float, default=ITEMS, help=f"of a full dump ({ITEMS:.0f})")
    add("--gigabytes", type=float, default=GIGABYTES, help=f"of a full dump ({GIGABYTES:.0f})")
    add("--out", type=Path, default=Path("results/dafset.json"), help="the JSON file")
    options = parser.parse_args(arguments)
    for name in ("repeat", "repetitions"):
        if getattr(options, name) < 1:
            parser.error(f"--{name} must be at least 1")
    if min(options.jobs) < 1:
        parser.error("--jobs must be at least 1")
    return options


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    if "qwikidata" in options.beside and find_spec("qwikidata") is None:
        sys.exit(
            "dafset: qwikidata is not installed: run `pip install qwikidata`, or leave it out with "
            "--beside stdlib."
        )
    try:
        with TemporaryDirectory() as folder:
            dump = options.dump
            if options.repeat > 1:
                dump = alone(repeated, dump, options.repeat, Path(folder))
            size = dump.stat().st_size
            rows = measure(options, dump)
    except (ImportError, OSError, RuntimeError, ValueError) as error:
        sys.exit(f"dafset: {error}")
    # Not before: they import torch, and a process's peak counts as that of those it begins.
    from rich.console import Console

    from benchmarks.speed.report import to_table
    from easyedit_dafnet.bench.environment import cpu_name

    hardware = f"{cpu_name()}, Python {platform.python_version()}"
    note = (
        f"{hardware}. Ours writes both tables, the others only parse. Per core: by seconds of all "
        "processors' work. Ratio: seconds by those of the first line. A full dump is taken to have "
        f"{options.items / 1e6:.0f} million items and {options.gigabytes:.0f} GB."
    )
    console = Console(file=sys.stdout, markup=False, highlight=False, width=140)
    console.print(to_table(section(rows, size, options, note)))
    settings = {name: value for name, value in vars(options).items() if name != "out"}
    write_json(
        options.out,
        {
            "settings": {**settings, "dump": options.dump.name},
            "hardware": hardware,
            "bytes": size,
            "results": [asdict(row) for row in rows],
        },
    )
    console.print(f"Every repetition is in {options.out}.")


if __name__ == "__main__":
    main()
