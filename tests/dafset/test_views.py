from __future__ import annotations

import bz2
import gzip
import logging
import os
from pathlib import Path

import pytest

from easyedit_dafnet.dafset.views import _patterns, _work_folder, read_views
from easyedit_dafnet.dafset.workspace import Sums, database, fetch
from tests.dafset.wikidata import DATA

for package in ("duckdb", "pyarrow", "rapidgzip"):
    pytest.importorskip(package)

HOURLY = """\
aa Main_Page 3 0
de Berlin 100 0
en Berlin 7 0
en "Heroes"_(album) 2 0
en Zoë's_'49ers\\ 5 0
en.m Berlin 4 0
en.m.b Berlin 1000 0
en.b Berlin 1000 0
enwiki Berlin 1000 0
"""
DAILY = """\
de.wikipedia Berlin 3354 desktop 900 A900
en.wikipedia Berlin 3354 desktop 50 A20B30
en.wikipedia Berlin 3354 mobile-web 60 A60
en.wikipedia Hidden null mobile-app 1 X1
en.wikibooks Berlin 1 desktop 1000 A1000
"""


def views(path: Path) -> dict[str, int]:
    from pyarrow import parquet

    table = parquet.read_table(path)
    assert [str(kind) for kind in table.schema.types] == ["string", "int64"]
    titles = table["title"].to_pylist()
    assert titles == sorted(titles, key=str.encode)
    return dict(zip(titles, table["views"].to_pylist(), strict=True))


def test_hourly_and_daily_files_add_up(tmp_path: Path) -> None:
    hourly, daily = tmp_path / "pageviews-20261001-000000.gz", tmp_path / "daily.bz2"
    hourly.write_bytes(gzip.compress(HOURLY.encode()))
    daily.write_bytes(bz2.compress(DAILY.encode()))
    out = tmp_path / "signals" / "views.parquet"
    counts = read_views([hourly, daily], out, progress=False)
    assert views(out) == {
        "Berlin": 7 + 4 + 50 + 60,
        '"Heroes"_(album)': 2,
        "Zoë's_'49ers\\": 5,
        "Hidden": 1,
    }
    assert counts == {"files": 2, "titles": 4, "views": 129, "skipped": {}}
    assert [path.name for path in out.parent.iterdir()] == ["views.parquet"]
    read_views([hourly, daily], out, "de", progress=False)
    assert views(out) == {"Berlin": 1000}


def test_damaged_lines_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "hour"
    lines = ["en", "en Berlin", "en Berlin x 0", "en.wikipedia Berlin 1 desktop", "en a b 1 0"]
    path.write_text("\n".join([*lines, "de Berlin", "en Berlin 1 0", "en.m Rome 2 0"]))
    counts = read_views([path], tmp_path / "views.parquet", progress=False)
    assert views(tmp_path / "views.parquet") == {"Berlin": 1, "Rome": 2}
    assert counts["skipped"] == {"damaged line": 5}


def test_a_truncated_file_is_used_and_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "hour.gz"
    text = "".join(f"en Title_{n * 7919 % 10007} {n} 0\n" for n in range(5000))
    path.write_bytes(gzip.compress(text.encode())[:-2000])
    with caplog.at_level(logging.WARNING):
        counts = read_views([path], tmp_path / "views.parquet", progress=False)
    assert counts["skipped"] == {"truncated archive": 1} and 1000 < counts["titles"] < 5000
    assert "hour.gz is cut off or damaged" in caplog.text


def test_files_that_were_read_before_an_interruption_are_not_read_again(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("one", "two")]
    paths[0].write_text("en Berlin 1 0\n")
    paths[1].write_bytes(b"BZh9 no archive")
    out = tmp_path / "views.parquet"
    # What a killed run leaves: one file read, a second one begun.
    with (
        pytest.raises(KeyboardInterrupt),
        database(_work_folder(out, paths, "en"), keep=True) as db,
    ):
        sums = Sums(db, "VARCHAR")
        db.execute("CREATE TABLE files (name VARCHAR)")
        db.execute("CREATE TABLE skipped (reason VARCHAR, n BIGINT)")
        sums.add(["Berlin"], [20])  # not what the file says: it must not be read
        db.execute("INSERT INTO files VALUES (?)", [str(paths[0])])
        db.execute("BEGIN")
        sums.add(["Rome"], [300])
        raise KeyboardInterrupt
    counts = read_views(paths, out, progress=False)
    assert views(out) == {"Berlin": 20} and counts["skipped"] == {"truncated archive": 1}
    assert not list(tmp_path.glob(".*"))


def test_work_on_other_files_is_not_continued(tmp_path: Path) -> None:
    path, out = tmp_path / "hour", tmp_path / "views.parquet"
    path.write_text("en Berlin 1 0\n")
    folder = _work_folder(out, [path], "en")
    folder.mkdir()
    assert _work_folder(out, [path], "en") == folder and folder.exists()
    os.utime(path, (1, 1))
    assert _work_folder(out, [path], "en") != folder and not folder.exists()


def test_sums_are_added_up_when_there_are_many(tmp_path: Path) -> None:
    with database(tmp_path / "work") as db:
        sums = Sums(db, "VARCHAR", many=10)
        for _ in range(8):
            sums.add(["a", "b", "c"], [1, 2, 3])
            sums.shrink()
            assert fetch(db, "SELECT count(*) FROM sums")[0][0] <= 10
        found = db.execute(sums.query("k", "s") + " ORDER BY k").fetchall()
    assert found == [("a", 8), ("b", 16), ("c", 24)] and not (tmp_path / "work").exists()


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--views takes at least one"):
        read_views([], tmp_path / "views.parquet")
    with pytest.raises(FileNotFoundError, match="nowhere"):
        read_views([tmp_path / "nowhere"], tmp_path / "views.parquet")


def test_a_language_is_not_a_pattern() -> None:
    line, ours = _patterns("e.")
    assert not line.search(b"en Berlin 1 0\n") and not ours.search(b"en Berlin\n")


def test_the_shared_file_is_read(tmp_path: Path) -> None:
    path = DATA / "wikidata" / "pageviews-synthetic.gz"
    if not path.is_file():
        pytest.skip("no pageviews-synthetic.gz; set DAFNET_DATA to its folder")
    counts = read_views([path], tmp_path / "views.parquet", progress=False)
    assert counts == {"files": 1, "titles": 3495, "views": 96648, "skipped": {}}
    assert views(tmp_path / "views.parquet")["France"] == 1974
