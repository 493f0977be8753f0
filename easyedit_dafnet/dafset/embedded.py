"""The facts that come with this package as the tables of a dump: a source that needs no download.

Of those that training may see; the benchmark asks for the others. They have no Wikidata numbers,
so entities get negative ones; no times of modification, so none of them is recent; and in place of
page views the number of people who live there, of cities and countries.
"""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

from .. import facts
from ..bench.cells import write_json
from .extract import schemas
from .packages import load
from .provenance import FactSource, Popularity

EMBEDDED = FactSource(
    kind="Embedded facts",
    sources=facts.SOURCES,
    recent="No records: these facts carry no time of their last change.",
    entities="numbers that mean something in this data set alone, of",
    tags=("geonames",),
    popularity=Popularity(
        name="inhabitants",
        title="Inhabitants of the subject",
        meaning="how many people live there by GeoNames, 0 where it is no city or country",
        popular="subjects where many people live",
        limit=", {:,} or more",
    ),
)

NAME = "the facts of easyedit_dafnet"
"""What build.json calls them."""

KIND = 31
"""The relation "instance of"."""


class _Meaning(NamedTuple):
    """A relation of `facts` as one of Wikidata, with the kinds of its ends."""

    relation: int
    head: str
    tail: str


MEANINGS = {
    "city_country": _Meaning(17, "city", "country"),
    "city_continent": _Meaning(30, "city", "continent"),
    "us_city_state": _Meaning(131, "city", "state"),
    "country_capital": _Meaning(36, "country", "city"),
    "country_continent": _Meaning(30, "country", "continent"),
    "country_currency": _Meaning(38, "country", "currency"),
    "country_language": _Meaning(37, "country", "language"),
    "subdivision_country": _Meaning(17, "subdivision", "country"),
    "county_state": _Meaning(131, "county", "state"),
}

INHABITED = ("city", "country")
"""The kinds of ends whose inhabitants are known."""

_Entity = tuple[str, str]  # kind, label


def write_tables(out: Path) -> dict[str, Any]:
    """Write entities, triples and, beside them, inhabitants as views into `out`.

    Returns:
        The counts.
    """
    pa, pq = load("pyarrow"), load("pyarrow.parquet")
    found = sorted(set(_facts()))
    kinds = sorted({("kind", kind) for fact in found for kind, _ in (fact[0], fact[2])})
    ends = {end for head, _, tail in found for end in (head, tail)}
    entities = {entity: -number for number, entity in enumerate([*kinds, *sorted(ends)], start=1)}
    triples = [(entities[head], relation, entities[tail]) for head, relation, tail in found]
    triples += [(entities[end], KIND, entities["kind", end[0]]) for end in sorted(ends)]
    people = _inhabitants()
    inhabited = {label for kind, label in ends if kind in INHABITED and label in people}
    views = [(title, people[title]) for title in sorted(inhabited)]
    rows: list[tuple[Any, ...]] = []
    for (kind, label), number in entities.items():
        # What is looked up by a title is a city's or country's: not a province's of the same name.
        title = label if kind in INHABITED or label not in inhabited else None
        rows.append((number, label, [], kind, title, 0, None, False))
    out.mkdir(parents=True, exist_ok=True)
    for name, columns, schema in (
        ("entities-00000", rows, schemas()[0]),
        ("triples-00000", triples, schemas()[1]),
        ("views", views, _views_schema()),
    ):
        arrays = [
            pa.array(c, t) for c, t in zip(zip(*columns, strict=True), schema.types, strict=True)
        ]
        scratch = out / f".{name}.part"
        pq.write_table(pa.Table.from_arrays(arrays, schema=schema), scratch)
        scratch.replace(out / f"{name}.parquet")
    write_json(out / "done.json", {"source": "facts", "digest": _digest([found, views])})
    return {"items": len(entities), "statements": len(triples), "skipped": {}}


def _digest(found: list[Any]) -> str:
    """Tells the facts of one version of this package from another's."""
    return sha256(repr(found).encode()).hexdigest()


def _facts() -> list[tuple[_Entity, int, _Entity]]:
    """(head, relation, tail); countries and the like without their article."""
    found = []
    for relation in facts.relations():
        if meaning := MEANINGS.get(relation.name):
            for fact in relation.facts:
                if facts.split_of(fact.subject) != "train":
                    continue
                tail = fact.answer.removeprefix("the ")
                ends = (meaning.head, fact.subject), (meaning.tail, tail)
                found.append((ends[0], meaning.relation, ends[1]))
    return found


def _inhabitants() -> dict[str, int]:
    """By name; of several of one name the most."""
    people: dict[str, int] = {}
    for country in facts.read_countries().values():
        people[country.name] = country.population
    for city in facts.read_cities():
        people[city.name] = max(people.get(city.name, 0), city.population)
    return people


def _views_schema() -> Any:
    pa = load("pyarrow")
    return pa.schema([pa.field("title", pa.string()), pa.field("views", pa.int64())])
