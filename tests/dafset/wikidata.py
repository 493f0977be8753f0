"""Small dumps in Wikidata's layout, and what the tables hold."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

DATA = Path(os.environ.get("DAFNET_DATA") or Path(__file__).parents[3] / "shared" / "data")


def item(number: int, label: str = "", **others: Any) -> dict[str, Any]:
    """An item; claims: statements, filed under their properties."""
    entity: dict[str, Any] = {"type": "item", "id": f"Q{number}", "labels": {}, "claims": {}}
    if label:
        entity["labels"] = {"en": {"language": "en", "value": label}}
    for statement in others.pop("claims", ()):
        relation = statement["mainsnak"]["property"]
        entity["claims"].setdefault(relation, []).append(statement)
    return {**entity, **others}


def claim(relation: str, tail: int, rank: str = "normal", **others: Any) -> dict[str, Any]:
    """A statement whose value is an item."""
    value = {"entity-type": "item", "numeric-id": tail, "id": f"Q{tail}"}
    snak = {
        "snaktype": "value",
        "property": relation,
        "datatype": "wikibase-item",
        "datavalue": {"type": "wikibase-entityid", "value": value},
    }
    return {"mainsnak": snak, "type": "statement", "rank": rank, **others}


def unknown(relation: str, kind: str = "somevalue", **others: Any) -> dict[str, Any]:
    """A statement without a value."""
    snak = {"snaktype": kind, "property": relation, "datatype": "wikibase-item"}
    return {"mainsnak": snak, "type": "statement", "rank": "normal", **others}


def literal(relation: str, text: str) -> dict[str, Any]:
    """A statement whose value is a string."""
    snak = {
        "snaktype": "value",
        "property": relation,
        "datatype": "string",
        "datavalue": {"type": "string", "value": text},
    }
    return {"mainsnak": snak, "type": "statement", "rank": "normal"}


def dumped(lines: Iterable[Mapping[str, Any] | str]) -> bytes:
    """A dump's text; lines that are strings are taken as they are."""
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    return ("[\n" + ",\n".join(texts) + "\n]\n").encode()


def rows(folder: Path, table: str) -> list[dict[str, Any]]:
    """All rows of a folder's parts."""
    from pyarrow import parquet

    parts = sorted(folder.glob(f"{table}-*.parquet"))
    return [row for part in parts for row in parquet.read_table(part).to_pylist()]
