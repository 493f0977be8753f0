from __future__ import annotations

from pathlib import Path

import pytest

from easyedit_dafnet import facts
from easyedit_dafnet.dafset.embedded import INHABITED, write_tables

parquet = pytest.importorskip("pyarrow.parquet")


def test_only_cities_and_countries_have_inhabitants(tmp_path: Path) -> None:
    """A province that is called as its city must not get the city's."""
    write_tables(tmp_path)
    entities = parquet.read_table(tmp_path / "entities-00000.parquet").to_pylist()
    views = parquet.read_table(tmp_path / "views.parquet").to_pylist()
    people = {row["title"]: row["views"] for row in views}
    assert {row["description"] for row in entities if row["title"] in people} == set(INHABITED)
    assert len(people) > 1000 and people["France"] == facts.read_countries()["FR"].population
    namesakes = {row["label"] for row in entities if row["title"] is None}
    assert namesakes and namesakes <= people.keys(), "else nothing could go wrong"
    assert all(row["title"] in (row["label"], None) for row in entities)
