"""Small data sets in the layout of finished ones."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from easyedit_dafnet.dafset.dataset import ALL, BUILD, PROPERTIES, Record, file_name
from easyedit_dafnet.dafset.wording import RELATIONS

CITIES = {
    "recent": [("Adaville", "Berin"), ("Celton", "Dorn"), ("Effing", "Gorse")],
    "popular": [("Halle", "Italy"), ("Jena", "Kenia"), ("Lund", "Malta"), ("Nice", "Oman")],
    "long_tail": [("Pisa", "Qatar"), ("Riga", "Spain"), ("Turku", "Umbria")],
    "robust": [("Varna", "Wales"), ("Xanten", "Yemen")],
}
COMMAND = "easyedit-dafnet dafset build --dump tiny.json.bz2 --seed 7 --out dafset"


def record(name: str, number: int, city: str, country: str) -> Record:
    """The edit of a city's country; neighbours and items have numbers of their own."""
    counterfactual = name in ("popular", "robust")
    relation = [17, 131, 36][number % 3]
    target = f"New {country}" if counterfactual else country
    rare = name == "long_tail"
    kinds: dict[str, list[dict[str, str]]] = {
        "one_hop": [{"prompt": f"The capital of the country of {city} is", "ground_truth": "Ur"}]
    }
    if number % 2:
        kinds["subject_alias"] = [{"prompt": f"Old {city[:3]} lies in", "ground_truth": target}]
    robust = name == "robust"
    return {
        "property": name,
        "prompt": f"{city} lies in the country of",
        "target_new": target,
        "subject": city,
        "ground_truth": country,
        "rephrase_prompt": f"In which country is {city}?",
        "rephrase_prompts": [f"In which country is {city}?", f"The country of {city} is"],
        "locality_prompt": f"Place {number} lies in the country of",
        "locality_ground_truth": "Zambia",
        "relation": f"P{relation}",
        "relation_name": RELATIONS[relation].name,
        "counterfactual": counterfactual,
        "wikidata": {
            "head": f"Q{100 + number}",
            "tail": f"Q{200 + number}",
            "target_new": f"Q{300 + number}" if counterfactual else f"Q{200 + number}",
            "neighbour_head": f"Q{400 + number}",
            "neighbour_tail": "Q500",
        },
        "portability": kinds if name != "recent" else {},
        "prefix": ["Many people travel.", "The weather is fine."] if robust else [],
        "opposite": {"prompt": f"{city} does not lie in", "ground_truth": country}
        if robust and number % 2
        else None,
        "stats": {
            "modified": f"2026-10-{10 + number}T20:00:36Z" if number % 4 else None,
            "views": 10 ** (number % 4) * 300 if name == "popular" else number,
            "frequency": 0 if rare else 3**number,
            "degree": 1 + number % 3 if rare else 4 * number + 4,
            "log_likelihood": -7.5 - number if rare else None,
        },
    }


def records() -> dict[str, list[Record]]:
    numbered = iter(range(100))
    return {
        name: [record(name, next(numbered), *place) for place in places]
        for name, places in CITIES.items()
    }


def build(found: dict[str, list[Record]]) -> dict[str, Any]:
    checksum = "0123456789abcdef" * 4
    return {
        "format": 1,
        "command": COMMAND,
        "dump": {
            "name": "tiny.json.bz2",
            "bytes": 12_345,
            "sha256": checksum,
            "date": "2026-10-26",
        },
        "views": [{"name": "pageviews-202610.gz", "sha256": checksum}],
        "text": [{"name": "corpus.txt", "sha256": checksum}],
        "model": {"name": "smollm2-135m"},
        "seed": 7,
        "settings": {"language": "en", "window": 7, "hub": 1000},
        "thresholds": {
            "views": 300,
            "frequency": 2,
            "degree": 5,
            "log_likelihood": -7.1,
            "modified": "2026-10-10T00:00:00Z",
        },
        "counts": {
            "items": 60,
            "statements": 400,
            "skipped": {"damaged line": 2, "no label": 31},
            "candidates": 120,
            **{name: len(listed) for name, listed in found.items()},
        },
        "excluded": {"subjects": 20, "prompts": 21, "files": ["zsre.json"]},
        "versions": {"easyedit_dafnet": "0.1.0", "duckdb": "2.0.0"},
    }


def write_dataset(
    folder: Path, change: Callable[[dict[str, list[Record]]], object] | None = None
) -> Path:
    """Write a sound data set, or one with the change made to its records by property."""
    found = records()
    if change:
        change(found)
    folder.mkdir(parents=True, exist_ok=True)
    for name in PROPERTIES:
        (folder / file_name(name)).write_text(json.dumps(found[name]), encoding="utf-8")
    joined = [json.dumps(entry) for name in PROPERTIES for entry in found[name]]
    (folder / ALL).write_text("".join(f"{line}\n" for line in joined), encoding="utf-8")
    (folder / BUILD).write_text(json.dumps(build(found)), encoding="utf-8")
    return folder


def write_candidates(folder: Path, facts: int = 120) -> None:
    """The facts to choose from, as the selection leaves them."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = {
        "head": range(facts),
        "relation": [17] * facts,
        "tail": range(facts),
        "modified": [None] * facts,
        "views": [3 ** (n % 9) - 1 for n in range(facts)],
        "frequency": [2 ** (n % 10) - 1 for n in range(facts)],
        "degree": [1 + n for n in range(facts)],
    }
    (folder / "select").mkdir(exist_ok=True)
    pq.write_table(pa.table(table), folder / "select" / "candidates.parquet")
