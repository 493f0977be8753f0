"""Counts how often Wikipedia's pages were viewed, from the files that Wikimedia publishes.

Hourly files (https://dumps.wikimedia.org/other/pageviews/, pageviews-YYYYMMDD-HH0000.gz) have lines
of domain, title, views and bytes; daily ones (https://dumps.wikimedia.org/other/pageview_complete/,
pageviews-YYYYMMDD-user.bz2) of wiki, title, page id, access, views and the views of each hour:

    en.m Douglas_Adams 17 0
    en.wikipedia Douglas_Adams 8091 desktop 55 A1B2
"""

from __future__ import annotations

import logging
import re
import shutil
from collections import Counter
from collections.abc import Iterable
from hashlib import sha256
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ..sources import CC0, Source
from .dump import Archive
from .packages import load
from .provenance import Popularity
from .workspace import Sums, database, fetch, quoted, write

LOG = logging.getLogger(__name__)

PAGE_VIEWS = Popularity(
    name="page views",
    title="Views of the subject's page",
    meaning="how often its Wikipedia page was viewed",
    popular="subjects whose Wikipedia pages are read often",
    limit=", with {:,} views or more",
    sources=(
        Source(
            name="Wikimedia's page views",
            address="https://dumps.wikimedia.org/other/pageviews/readme.html",
            gives="numbers of page views",
            licence=CC0,
        ),
    ),
)


def read_views(
    files: Iterable[str | Path], out: str | Path, language: str = "en", progress: bool = True
) -> dict[str, Any]:
    """Write the views of each page of a language's Wikipedia, summed over all files.

    files: hourly and daily ones, .gz, .bz2 or plain; do not mix both of one day.
    out: the Parquet file (views.parquet): title string (as given, with underscores), views int64;
        sorted by title. An interrupted run goes on with the first file that it had not finished.
    language: the Wikipedia's; views with mobile devices are counted as well.

    Returns:
        {"files": n, "titles": n, "views": n, "skipped": {reason: n}}
    """
    load("pyarrow")
    paths = sorted({Path(file).resolve() for file in files})
    if not paths:
        raise ValueError("No page-view files are given: --views takes at least one.")
    out = Path(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    line, ours = _patterns(language)
    with database(_work_folder(out, paths, language), keep=True) as db:
        db.execute("CREATE TABLE IF NOT EXISTS files (name VARCHAR)")
        db.execute("CREATE TABLE IF NOT EXISTS skipped (reason VARCHAR, n BIGINT)")
        sums = Sums(db, "VARCHAR")
        for path in tqdm(paths, desc="views", unit="file", disable=not progress):
            if not fetch(db, "SELECT 1 FROM files WHERE name = ?", [str(path)]):
                _add_file(db, sums, path, line, ours)
                sums.shrink()
        write(db, sums.query("title", "views") + " ORDER BY title", out)
        total = f"SELECT count(*), coalesce(sum(views), 0)::BIGINT FROM read_parquet({quoted(out)})"
        [(titles, views)] = fetch(db, total)
        reasons = "SELECT reason, sum(n)::BIGINT FROM skipped GROUP BY reason ORDER BY reason"
        skipped = dict(fetch(db, reasons))
    return {"files": len(paths), "titles": titles, "views": views, "skipped": skipped}


def _work_folder(out: Path, paths: list[Path], language: str) -> Path:
    """Where the work on these files is; that on others, which an earlier run left, is removed."""
    status = [path.stat() for path in paths]
    names = [f"{path} {s.st_size} {s.st_mtime_ns}" for path, s in zip(paths, status, strict=True)]
    digest = sha256("\n".join([language, *names]).encode()).hexdigest()[:12]
    folder = out.with_name(f".{out.name}.{digest}.work")
    for old in out.parent.glob(f".{out.name}.*.work"):
        if old != folder:
            shutil.rmtree(old)
    return folder


def _patterns(language: str) -> tuple[re.Pattern[bytes], re.Pattern[bytes]]:
    """What a good line of the language is, with (title, views) twice; and any line of it."""
    code = re.escape(language.encode())
    hourly = rb"(?:\.m)? (\S+) (\d+) \d+"
    daily = rb"\.wikipedia (\S+) \S+ \S+ (\d+) \S+"
    line = rb"^" + code + rb"(?:" + hourly + rb"|" + daily + rb")\r?$"
    return re.compile(line, re.M), re.compile(
        rb"^" + code + rb"(?:\.m|\.wikipedia)?(?=\s|\Z)", re.M
    )


def _add_file(
    db: Any, sums: Sums, path: Path, line: re.Pattern[bytes], ours: re.Pattern[bytes]
) -> None:
    """All of the file or, where the process is killed, nothing."""
    skipped: Counter[str] = Counter()
    db.execute("BEGIN")
    with Archive(path) as archive:
        for block in archive.blocks():
            found = line.findall(block)
            skipped["damaged line"] += len(ours.findall(block)) - len(found)
            if found:
                sums.add(*_columns(found))
    if archive.problem:
        LOG.warning("%s is cut off or damaged: what comes before is counted.", path)
        skipped["truncated archive"] += 1
    for reason, n in (+skipped).items():
        db.execute("INSERT INTO skipped VALUES (?, ?)", [reason, n])
    db.execute("INSERT INTO files VALUES (?)", [str(path)])
    db.execute("COMMIT")


def _columns(found: list[tuple[bytes, bytes, bytes, bytes]]) -> tuple[Any, Any]:
    """Titles and views; found: both of an hourly line, then both of a daily one, two are empty."""
    pa = load("pyarrow")
    titles = [(hourly or daily).decode("utf-8", "replace") for hourly, _, daily, _ in found]
    views = [int(hourly or daily) for _, hourly, _, daily in found]
    return pa.array(titles, pa.string()), pa.array(views, pa.int64())
