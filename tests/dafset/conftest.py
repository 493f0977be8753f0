from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from easyedit_dafnet.dafset.engines import duckdb_engine, has_java, spark_engine


@pytest.fixture
def duckdb(tmp_path: Path) -> Any:
    pytest.importorskip("ibis")
    return duckdb_engine(tmp_path)


@pytest.fixture(scope="session")
def spark() -> Iterator[Any]:
    """Spark in this process, with one task at a time: the tables are small."""
    sql = pytest.importorskip("pyspark.sql")
    if not has_java():
        pytest.skip("Spark needs Java, and there is none")
    builder = sql.SparkSession.builder.master("local[1]")
    for name, value in {
        "spark.driver.bindAddress": "127.0.0.1",
        "spark.driver.host": "127.0.0.1",
        "spark.sql.shuffle.partitions": "1",
        "spark.ui.enabled": "false",
        "spark.ui.showConsoleProgress": "false",
    }.items():
        builder = builder.config(name, value)
    session = builder.getOrCreate()
    yield spark_engine(session)
    session.stop()
