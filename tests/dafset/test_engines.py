from __future__ import annotations

import gzip
import importlib
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Generator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from easyedit_dafnet.dafset import select
from easyedit_dafnet.dafset.engines import Tables, duckdb_engine, open_tables, read, spark_engine
from easyedit_dafnet.dafset.engines import write as write_table
from easyedit_dafnet.dafset.select import KEY
from easyedit_dafnet.dafset.wording import RELATIONS as ALL
from tests.dafset.world import NOON, world, write_world

DATA = Path(os.environ.get("DAFNET_DATA") or Path(__file__).parents[3] / "shared" / "data")
SAMPLE = DATA / "wikidata" / "codex-m-in-wikidata-layout.json.bz2"
VIEWS = DATA / "wikidata" / "pageviews-synthetic.gz"
RELATIONS = [17, 19, 20, 26, 27, 30, 36, 69, 106, 131, 136, 140, 159, 495, 740, 1303, 1412]


def read_back(path: Path) -> Any:
    import pyarrow.parquet as pq

    return pq.read_table(path)


def test_a_result_is_written_sorted_and_as_a_whole(duckdb: Any, tmp_path: Path) -> None:
    tables = world(duckdb, tmp_path, {3: "c", 1: "a", 2: "b"}, [(1, 1, 2)])
    path = tmp_path / "select" / "entities.parquet"
    assert write_table(tables.entities, path, ["id"]) == 3
    found = read_back(path)
    assert found["id"].to_pylist() == [1, 2, 3]
    assert found["modified"].to_pylist() == [NOON] * 3
    assert str(found.schema.field("modified").type) == "timestamp[ms]"
    assert [p.name for p in path.parent.iterdir()] == ["entities.parquet"]


def test_a_failed_query_leaves_the_earlier_result(duckdb: Any, tmp_path: Path) -> None:
    tables = world(duckdb, tmp_path, {1: "a"}, [(1, 1, 2)])
    path = tmp_path / "out.parquet"
    write_table(tables.entities.select("id"), path, ["id"])
    before = path.read_bytes()
    wrong = tables.entities.select(id=tables.entities.label.cast("int64"))
    with pytest.raises(Exception, match="Could not convert"):
        write_table(wrong, path, ["id"])
    assert path.read_bytes() == before


def test_an_empty_result_is_a_file_with_its_columns(duckdb: Any, tmp_path: Path) -> None:
    tables = world(duckdb, tmp_path, {1: "a"}, [(1, 1, 2)])
    path = tmp_path / "none.parquet"
    assert write_table(tables.triples.filter(tables.triples.tail > 5), path, KEY) == 0
    assert read_back(path).column_names == list(KEY)


def test_a_stage_that_has_not_run_is_told(duckdb: Any, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no .*entities-\*\.parquet: run the stage"):
        open_tables(duckdb, tmp_path, tmp_path)


def test_times_with_a_zone_are_read_as_utc(duckdb: Any, tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    times = pa.array([NOON], pa.timestamp("s", tz="UTC"))
    pq.write_table(pa.table({"modified": times}), tmp_path / "zoned.parquet")
    found = read(duckdb, tmp_path / "zoned.parquet").execute()
    assert found.modified.to_list() == [NOON]


LARGE = """
import resource, sys
from pathlib import Path
from easyedit_dafnet.dafset.engines import duckdb_engine, read, write
from easyedit_dafnet.dafset.select import degrees
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
folder, memory_gb, on_disk = Path(sys.argv[1]), float(sys.argv[2]), sys.argv[3]
engine = duckdb_engine(folder, memory_gb)
engine.raw_sql(f"SET max_temp_directory_size = '{on_disk}'")
before = peak()
n = write(degrees(read(engine, folder / "triples-*.parquet")), folder / "degrees.parquet", ["id"])
print(n, peak() - before)
"""


def test_duckdb_keeps_to_its_memory(tmp_path: Path) -> None:
    pytest.importorskip("ibis")
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    rng = np.random.default_rng(0)
    heads, tails = rng.integers(1, 10**9, (2, 3_000_000))
    pq.write_table(pa.table({"head": heads, "tail": tails}), tmp_path / "triples-0.parquet")

    def run(memory_gb: float, on_disk: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", LARGE, str(tmp_path), str(memory_gb), on_disk]
        return subprocess.run(command, capture_output=True, text=True)

    found = run(0.1, "1GB")
    assert found.returncode == 0, found.stderr
    count, megabytes = map(int, found.stdout.split())
    assert count == len(np.union1d(heads, tails))
    assert megabytes < 160  # 250 where memory is plenty
    # It did need the disk.
    assert "OutOfMemory" in run(0.1, "1MB").stderr


def test_spark_without_java_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pyspark")
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.delenv("JAVA_HOME", raising=False)
    with pytest.raises(RuntimeError, match="Spark needs Java 17 or newer"):
        spark_engine("local[1]")


@pytest.mark.parametrize(
    ("package", "extra"),
    [("duckdb", "dafset"), ("ibis", "dafset"), ("pyspark.sql", "dafset-spark")],
)
def test_a_missing_package_is_told_with_its_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str, extra: str
) -> None:
    if package != "ibis":
        pytest.importorskip("ibis")
    monkeypatch.setitem(sys.modules, package, None)
    name = package.split(".")[0]
    with pytest.raises(ImportError, match=rf"package {name}.*easyedit_dafnet\[{extra}\]"):
        spark_engine() if extra == "dafset-spark" else duckdb_engine(tmp_path)


# -- The same rows from both engines ---------------------------------------------------------------


def results(
    tables: Tables, relations: list[int], before: datetime
) -> Generator[tuple[str, Any], Any, None]:
    """All results of the selection, each to be written before the next is asked for."""
    facts = yield "candidates", select.candidates(*tables, relations)
    facts = yield "sensible", select.sensible(facts, tables.triples, ALL)
    yield "ambiguous", select.ambiguous(facts.select(id="head").distinct(), tables.entities)
    recent = yield "recent", select.recent(facts, before)
    popular = yield (
        "popular",
        select.counterfactual(
            select.popular_facts(facts, 0.5), facts, tables.triples, tables.entities
        ),
    )
    rare = yield "long_tail_candidates", select.long_tail_candidates(facts)
    scored = rare.mutate(log_likelihood=-((rare["head"] % 97) / 7))
    long_tail = yield "long_tail", select.long_tail(rare, scored)
    records = yield (
        "combine",
        select.combine({"recent": recent, "popular": popular, "long_tail": long_tail}),
    )
    records = yield "limit_each", select.limit_each(records, per_relation=50, total=300)
    yield "neighbours", select.neighbours(records, facts)
    yield "one_hop", select.one_hop(records, facts, [(a, b) for a in relations for b in relations])
    yield "opposites", select.opposites(records.mutate(neighbour_head=0), facts)
    yield "inverse", select.inverse(records, tables.triples, relations)


def written(engine: Any, source: Path, out: Path, *args: Any) -> dict[str, Any]:
    """The tables of `results`, by name."""
    found: dict[str, Any] = {}
    steps, step = results(open_tables(engine, source, source), *args), None
    while True:
        try:
            name, table = steps.send(step)
        except StopIteration:
            return found
        order = KEY if "head" in table.columns else table.columns
        write_table(table, out / f"{name}.parquet", order)
        step = read(engine, out / f"{name}.parquet")
        found[name] = read_back(out / f"{name}.parquet")


def assert_same_rows(duckdb: Any, spark: Any, source: Path, out: Path, *args: Any) -> Any:
    found = written(duckdb, source, out / "duckdb", *args)
    other = written(spark, source, out / "spark", *args)
    for name, table in found.items():
        assert table.num_rows > 0, name
        assert other[name].schema == table.schema, name
        assert other[name].equals(table), name
    return found


def test_both_engines_select_the_same_rows(duckdb: Any, spark: Any, tmp_path: Path) -> None:
    people, places = range(100, 160), range(200, 212)
    labels = {**{i: f"Person {i}" for i in people}, **{i: f"Place {i}" for i in places}}
    # Java and DuckDB write these in lower case in their own ways.
    labels |= {100: "Person of ΟΔΟΣ", 200: "οδοσ", 101: "Person of İZMIR", 201: "izmir"}
    born = [(i, 19, 200 + i % 12) for i in people]
    cited = [(i, 27, 200 + i % 5) for i in people if i % 3 == 0]
    located = [(i, 131, 200 + i % 3) for i in places if i > 202]
    capital = [(i, 36, i + 25) for i in range(115, 125)]
    near = [(300 + i % 4, 530, i) for i in places]
    modified = {i: NOON.replace(day=1 + i % 31) for i in people}
    modified |= dict.fromkeys(places, NOON.replace(year=2020))
    write_world(
        tmp_path,
        labels | {i: f"Seat {i}" for i in range(140, 150)},
        [*born, *cited, *located, *capital, *near],
        views={i: i % 7 for i in people},
        frequency={i: i % 5 for i in people},
        modified={**modified, 159: None},
        aliases={100: ["Person 105", "P. 100"], 101: ["PERSON 106"], 203: ["Place 204", "οδοσ"]},
    )
    found = assert_same_rows(duckdb, spark, tmp_path, tmp_path, [19, 27, 36, 131], NOON)
    asked = found["candidates"].select(KEY).to_pylist()
    folded = {100: 200 + 100 % 12, 101: 200 + 101 % 12}
    assert not any(row["tail"] == folded.get(row["head"]) in (200, 201) for row in asked)


@pytest.mark.slow
def test_both_engines_select_the_same_rows_of_a_real_sample(
    duckdb: Any, spark: Any, tmp_path: Path
) -> None:
    if not SAMPLE.is_file():
        pytest.skip(f"no {SAMPLE.name}; set DAFNET_DATA to the folder of the data")
    try:
        extract = importlib.import_module("easyedit_dafnet.dafset.extract").extract
    except ImportError as error:
        pytest.skip(str(error))
    import pyarrow as pa
    import pyarrow.parquet as pq

    extract(SAMPLE, tmp_path)
    views: Counter[str] = Counter()
    with gzip.open(VIEWS, "rt", encoding="utf-8") as file:
        for line in file:
            title, count, _ = line.split(" ", 1)[1].rsplit(" ", 2)
            views[title] += int(count)
    pq.write_table(
        pa.table({"title": list(views), "views": list(views.values())}), tmp_path / "views.parquet"
    )
    ids = ids_of(tmp_path)
    frequency = pa.table({"id": ids, "frequency": [i % 5 for i in ids]})
    pq.write_table(frequency, tmp_path / "frequency.parquet")
    before = datetime(2026, 10, 31, 22, 34, 17)
    found = assert_same_rows(duckdb, spark, tmp_path, tmp_path, RELATIONS, before)
    assert found["candidates"].num_rows > 5000


def ids_of(folder: Path) -> list[int]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    parts = [pq.read_table(p, columns=["id"]) for p in sorted(folder.glob("entities-*.parquet"))]
    return pa.concat_tables(parts)["id"].to_pylist()
