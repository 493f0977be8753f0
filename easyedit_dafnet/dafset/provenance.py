"""In which words a data set's card and report speak of what it was made from.

Each source states its own: `dump.WIKIDATA`, `embedded.EMBEDDED`, `views.PAGE_VIEWS`.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..sources import Source


@dataclass(frozen=True)
class Popularity:
    """What tells how well known a subject is: the number that records call `views`.

    Attributes:
        name: of the number, in the plural.
        title: of its distribution.
        meaning: of the number of one subject.
        popular: what the popular records are about.
        limit: the same with the threshold; has a place for it.
        sources: beside those of the facts, where the number comes from.
    """

    name: str
    title: str
    meaning: str
    popular: str
    limit: str
    sources: tuple[Source, ...] = ()


@dataclass(frozen=True)
class FactSource:
    """What facts are read from.

    Attributes:
        kind: what it is called in a list of sources.
        sources: whose data it is.
        recent: what the recent records are; has a place for the threshold where there is one.
        entities: what the numbers of entities are, before a list of these.
        tags: of a card.
        popularity: what it says itself of how well known a subject is.
    """

    kind: str
    sources: tuple[Source, ...]
    recent: str
    entities: str
    tags: tuple[str, ...]
    popularity: Popularity | None = None
