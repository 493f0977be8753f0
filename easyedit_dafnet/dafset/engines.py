"""The engines that run the selection's queries, DuckDB or Spark, and the files between its stages.

>>> from easyedit_dafnet.dafset.engines import duckdb_engine, open_tables, write
>>> tables = open_tables(duckdb_engine(out), out / "extract", out / "signals")
>>> write(degrees(tables.triples), out / "select" / "degrees.parquet", ["id"])

DuckDB runs inside this process, within the memory it is given, and puts the rest on disk. Spark
takes the same queries to a cluster whose machines all see the files.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import pyarrow as pa
    from ibis.expr.types import Table

MEMORY_OF_A_THREAD = 0.25
"""Gigabytes that each of DuckDB's threads needs to put its part of a join or sort on disk."""


class Tables(NamedTuple):
    """What the selection reads.

    entities: id, label, aliases, description, title, sitelinks, modified, past; triples: head,
    relation, tail; views: title, views; frequency: id, frequency.
    """

    entities: Table
    triples: Table
    views: Table
    frequency: Table


def duckdb_engine(folder: Path, memory_gb: float = 1.0, threads: int | None = None) -> Any:
    """DuckDB as a backend of Ibis; what exceeds the memory goes to `folder`/spill.

    threads: at most as many as there are processors and as the memory serves, when not given.
    """
    try:
        import duckdb  # noqa: F401
        import ibis
    except ImportError as error:
        raise _missing("DuckDB", "dafset", error) from error
    spill = folder / "spill"
    spill.mkdir(parents=True, exist_ok=True)
    if threads is None:
        threads = min(os.cpu_count() or 1, max(1, int(memory_gb / MEMORY_OF_A_THREAD)))
    engine = ibis.duckdb.connect(
        memory_limit=f"{round(memory_gb * 1000)}MB",
        temp_directory=str(spill),
        threads=threads,
        preserve_insertion_order=False,  # keeping the order takes memory; results are sorted
    )
    engine.settings["enable_progress_bar"] = False  # it writes into the standard output
    return engine


def spark_engine(master: Any = "local[*]") -> Any:
    """Spark as a backend of Ibis: a master's URL, or a running SparkSession."""
    try:
        import ibis
        from pyspark.sql import SparkSession
    except ImportError as error:
        raise _missing("Spark", "dafset-spark", error) from error
    if not isinstance(master, str):
        return ibis.pyspark.connect(master)
    if not has_java():
        raise RuntimeError(
            "Spark needs Java 17 or newer, and there is none: install it (on Debian "
            "`apt install openjdk-17-jre-headless`) or set JAVA_HOME to its folder."
        )
    builder = SparkSession.builder.master(master).appName("easyedit-dafnet dafset")
    session = builder.getOrCreate()
    session.sparkContext.setLogLevel("ERROR")  # it warns of every pattern of files, at length
    return ibis.pyspark.connect(session)


def has_java() -> bool:
    """Whether Spark would find a Java."""
    home = os.environ.get("JAVA_HOME")
    return bool(shutil.which("java", path=f"{home}/bin" if home else None))


def _missing(engine: str, extra: str, error: ImportError) -> ImportError:
    return ImportError(
        f"{engine} needs the package {error.name}, which is not installed: "
        f'run `pip install "easyedit_dafnet[{extra}]"`.'
    )


def open_tables(engine: Any, extract: Path, signals: Path) -> Tables:
    """The Parquet files of the folders that the stages before have written."""
    return Tables(
        entities=read(engine, extract / "entities-*.parquet"),
        triples=read(engine, extract / "triples-*.parquet"),
        views=read(engine, signals / "views.parquet"),
        frequency=read(engine, signals / "frequency.parquet"),
    )


def read(engine: Any, pattern: Path) -> Table:
    """A table of all files whose names match; its times are in UTC, without a zone."""
    if not any(pattern.parent.glob(pattern.name)):
        raise FileNotFoundError(f"There is no {pattern}: run the stage that writes it first.")
    table = engine.read_parquet(str(pattern))
    times = [name for name, kind in table.schema().items() if kind.is_timestamp()]
    return table.cast(dict.fromkeys(times, "timestamp")) if times else table


def write(table: Table, path: Path, order: Sequence[str]) -> int:
    """Write one Parquet file, there as a whole or not at all; returns the number of rows.

    Whatever the engine, the file has the same columns, types and rows, sorted by `order`, which
    should tell all rows apart. Times are in UTC, in milliseconds: Parquet has no seconds.
    """
    import pyarrow.parquet as pq

    path.parent.mkdir(parents=True, exist_ok=True)
    parts, scratch = path.with_name(f".{path.name}.parts"), path.with_name(f".{path.name}.part")
    shutil.rmtree(parts, ignore_errors=True)
    _write_parts(table.order_by(order), parts)
    schema, rows = _schema(table), 0
    with pq.ParquetWriter(scratch, schema) as writer:
        for batch in _batches(parts):
            writer.write_table(batch.select(schema.names).cast(schema))
            rows += len(batch)
    shutil.rmtree(parts)
    scratch.replace(path)
    return rows


def _write_parts(table: Table, folder: Path) -> None:
    """By the engine's own writer, which never has all rows in this process."""
    engine = table.get_backend()
    if engine.name == "duckdb":
        folder.mkdir()
        engine.to_parquet(table, folder / "part-0.parquet")
    else:
        engine.to_parquet(table, folder)


def _batches(folder: Path) -> Iterator[pa.Table]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    for part in sorted(folder.glob("part-*.parquet")):
        with pq.ParquetFile(part) as file:
            for batch in file.iter_batches():
                yield pa.Table.from_batches([batch])


def _schema(table: Table) -> pa.Schema:
    """Engines differ in units of time and in what they know to be never null."""
    import pyarrow as pa

    fields = table.schema().to_pyarrow()
    return pa.schema(
        pa.field(f.name, pa.timestamp("ms") if pa.types.is_timestamp(f.type) else f.type)
        for f in fields
    )
