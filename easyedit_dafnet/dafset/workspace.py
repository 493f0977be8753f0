"""A DuckDB database that sorts and counts more than fits into memory."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .packages import load

MEMORY = "512MB"  #: what DuckDB holds; the rest is spilled to disk
MANY = 50_000_000  #: rows, 1 or 2 GB on disk, below which adding up is left to the end


@contextmanager
def database(folder: Path, keep: bool = False) -> Iterator[Any]:
    """A connection whose tables and spilled data lie in `folder`, which is removed afterwards.

    keep: leave the folder where the work fails, so that another run finds the tables.
    """
    duckdb = load("duckdb")
    if not keep:  # what a killed process may have left
        shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    done = False
    connection = duckdb.connect(str(folder / "tables.duckdb"))
    try:
        connection.execute(f"SET memory_limit = '{MEMORY}'")
        connection.execute(f"SET temp_directory = {quoted(folder / 'spilled')}")
        connection.execute("SET preserve_insertion_order = false")
        # Each thread has its own buffers, of which the limit allows a few.
        connection.execute("SET threads = least(4, current_setting('threads'))")
        yield connection
        done = True
    finally:
        connection.close()
        if done or not keep:
            shutil.rmtree(folder, ignore_errors=True)


class Sums:
    """The table `sums` (key, n), whose rows of one key are added up before they are too many."""

    def __init__(self, connection: Any, kind: str, many: int | None = None) -> None:
        """kind: the key's type in SQL; goes on with the table where it is there."""
        self.connection, self.many = connection, many or MANY
        connection.execute(f"CREATE TABLE IF NOT EXISTS sums (key {kind}, n BIGINT)")

    def add(self, keys: Any, n: Any) -> None:
        """Rows, as arrays of pyarrow or numpy."""
        append(self.connection, "sums", key=keys, n=n)

    def shrink(self) -> None:
        """Add up where there are many rows; when that leaves many, where there are twice these."""
        if self._rows() > self.many:
            self.connection.execute("BEGIN")
            self.connection.execute(f"CREATE TABLE added AS {self.query('key', 'n')}")
            self.connection.execute("DROP TABLE sums")
            self.connection.execute("ALTER TABLE added RENAME TO sums")
            self.connection.execute("COMMIT")
            self.many = max(self.many, 2 * self._rows())

    def _rows(self) -> int:
        return fetch(self.connection, "SELECT count(*) FROM sums")[0][0]

    def query(self, key: str, n: str) -> str:
        """Selects the sum of each key; key, n: what to call the columns."""
        return f"SELECT key AS {key}, sum(n)::BIGINT AS {n} FROM sums GROUP BY key"


def fetch(connection: Any, query: str, parameters: list[Any] | None = None) -> list[Any]:
    """All rows: a result that is not read to its end blocks the connection."""
    return connection.execute(query, parameters).fetchall()


def append(connection: Any, table: str, **columns: Any) -> None:
    """Add rows to a table, whose columns have the same order."""
    connection.register("batch", load("pyarrow").table(columns))
    connection.execute(f"INSERT INTO {table} SELECT * FROM batch")
    connection.unregister("batch")


def write(connection: Any, query: str, path: Path) -> None:
    """Write a query's rows to a Parquet file that is there as a whole or not at all."""
    scratch = path.with_name(f".{path.name}.part")
    connection.execute(f"COPY ({query}) TO {quoted(scratch)} (FORMAT parquet, COMPRESSION zstd)")
    scratch.replace(path)


def quoted(path: Path | str) -> str:
    """As a literal of SQL."""
    return "'" + str(path).replace("'", "''") + "'"
