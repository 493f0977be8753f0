"""A small Wikidata, written down as the tables that the selection reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from easyedit_dafnet.dafset.engines import Tables, open_tables

Triple = tuple[int, int, int]
NOON = datetime(2026, 10, 31, 12)


def write_world(
    folder: Path,
    labels: Mapping[int, str],
    triples: Sequence[Triple],
    views: Mapping[int, int] | None = None,
    frequency: Mapping[int, int] | None = None,
    modified: Mapping[int, datetime | None] | None = None,
    aliases: Mapping[int, list[str]] | None = None,
) -> Path:
    """views, frequency, modified, aliases: by entity; page titles are "Page_42"."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    ids = list(labels)
    seen = views or {}
    entities = {
        "id": pa.array(ids, pa.int64()),
        "label": pa.array(labels.values(), pa.string()),
        "aliases": pa.array([(aliases or {}).get(i, []) for i in ids], pa.list_(pa.string())),
        "description": pa.array([None for _ in ids], pa.string()),
        "title": pa.array([f"Page_{i}" if i in seen else None for i in ids], pa.string()),
        "sitelinks": pa.array([0 for _ in ids], pa.int32()),
        "modified": pa.array([(modified or {}).get(i, NOON) for i in ids], pa.timestamp("s")),
        "past": pa.array([False for _ in ids], pa.bool_()),
    }
    columns = list(zip(*triples, strict=True))
    tables = {
        "entities-0": entities,
        "triples-0": {
            "head": pa.array(columns[0], pa.int64()),
            "relation": pa.array(columns[1], pa.int32()),
            "tail": pa.array(columns[2], pa.int64()),
        },
        "views": {
            "title": pa.array([f"Page_{i}" for i in seen], pa.string()),
            "views": pa.array(seen.values(), pa.int64()),
        },
        "frequency": {
            "id": pa.array((frequency or {}).keys(), pa.int64()),
            "frequency": pa.array((frequency or {}).values(), pa.int64()),
        },
    }
    for name, table in tables.items():
        pq.write_table(pa.table(table), folder / f"{name}.parquet")
    return folder


def world(engine: Any, folder: Path, *args: Any, **kwargs: Any) -> Tables:
    """The same, opened."""
    folder = write_world(folder, *args, **kwargs)
    return open_tables(engine, folder, folder)


def rows(table: Any, *columns: str) -> list[tuple[Any, ...]]:
    """Sorted rows of a result."""
    found = table.select(*columns).execute()
    return sorted(tuple(row) for row in found.itertuples(index=False))
