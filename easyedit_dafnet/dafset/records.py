"""From selected facts to records: numbers become names, and names become sentences."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from .robust import prefixes
from .wording import (
    RELATIONS,
    Name,
    Relation,
    composed,
    render,
    target_words,
    usable_label,
    wordings,
)

ALIASES = 2
"""Probes by other names of the subject, at most."""


@dataclass(frozen=True)
class Entity:
    """What sentences need of an entity."""

    label: str
    aliases: tuple[str, ...] = ()
    """Those by which nothing else is called."""
    past: bool = False

    @property
    def name(self) -> Name:
        return Name(self.label, self.past)


@dataclass(frozen=True)
class Fact:
    """A selected fact and what goes with it; entities by their numbers.

    target_new: the tail to write, the dump's own where the record is no counterfactual.
    neighbour: (head, tail) of the same relation, for locality. opposite: the same of a fact with
    this fact's true tail. hop: (relation, tail) of target_new. invertible: whether the head can be
    asked for by target_new. unrelated: (head, relation, tail) of facts about something else.
    """

    property: str
    head: int
    relation: int
    tail: int
    target_new: int
    neighbour: tuple[int, int]
    opposite: tuple[int, int] | None = None
    hop: tuple[int, int] | None = None
    invertible: bool = False
    unrelated: Sequence[tuple[int, int, int]] = ()
    stats: Mapping[str, Any] = field(default_factory=dict)


class Writer:
    """Words facts; each by a draw of its own, so that others do not change it."""

    def __init__(self, entities: Mapping[int, Entity], seed: int) -> None:
        self.entities, self.seed = entities, seed

    def record(self, fact: Fact) -> dict[str, Any]:
        """The fact as a record, in EasyEdit's flat layout and with more beside it."""
        relation, head = RELATIONS[fact.relation], self.entities[fact.head]
        mixed = random.Random(f"{self.seed} {fact.head} {fact.relation}")
        prompt, *rephrases = self.prompts(fact.head, fact.relation, head.name)
        neighbour, neighbour_tail = fact.neighbour
        robust = fact.property == "robust"
        return {
            "property": fact.property,
            "prompt": prompt,
            "target_new": self.words(fact.target_new),
            "subject": head.label,
            "ground_truth": self.words(fact.tail),
            "rephrase_prompt": rephrases[0],
            "rephrase_prompts": rephrases,
            "locality_prompt": self.question(neighbour, relation, mixed),
            "locality_ground_truth": self.words(neighbour_tail),
            "relation": f"P{relation.id}",
            "relation_name": relation.name,
            "counterfactual": fact.target_new != fact.tail,
            "wikidata": {
                "head": _number(fact.head),
                "tail": _number(fact.tail),
                "target_new": _number(fact.target_new),
                "neighbour_head": _number(neighbour),
                "neighbour_tail": _number(neighbour_tail),
            },
            "portability": self.portability(fact, relation),
            "prefix": self.prefixes(fact, mixed) if robust else [],
            "opposite": self.opposite(fact, relation, mixed) if robust else None,
            "stats": {name: _plain(value) for name, value in fact.stats.items()},
        }

    def prompts(self, head: int, relation: int, name: Name) -> list[str]:
        """The record's own prompt, then its rephrases."""
        mixed = random.Random(f"{self.seed} prompts {head} {relation}")
        return wordings(RELATIONS[relation], name, mixed)

    def words(self, entity: int) -> str:
        """As the end of a sentence."""
        return target_words(self.entities[entity].label)

    def question(self, head: int, relation: Relation, mixed: random.Random) -> str:
        return wordings(relation, self.entities[head].name, mixed)[0]

    def portability(self, fact: Fact, relation: Relation) -> dict[str, list[dict[str, str]]]:
        """What follows from the edit, by kind; a kind that the graph does not give is empty."""
        head, target = self.entities[fact.head], self.entities[fact.target_new]
        probes: dict[str, list[dict[str, str]]] = {
            "one_hop": [],
            "subject_alias": [],
            "inverse": [],
        }
        if fact.hop is not None:
            outer, tail = fact.hop
            prompt = composed(RELATIONS[outer], relation, head.name, target.past)
            probes["one_hop"].append(_probe(prompt, self.words(tail)))
        for alias in [a for a in head.aliases if _other_name(a, head.label)][:ALIASES]:
            mixed = random.Random(f"{self.seed} {alias} {fact.relation}")
            prompt = wordings(relation, Name(alias, head.past), mixed)[0]
            probes["subject_alias"].append(_probe(prompt, self.words(fact.target_new)))
        if fact.invertible and relation.inverse is not None:
            prompt = render(relation.inverse, target.name)
            probes["inverse"].append(_probe(prompt, self.words(fact.head)))
        return probes

    def prefixes(self, fact: Fact, mixed: random.Random) -> list[str]:
        sentences = [
            f"{self.question(head, RELATIONS[relation], mixed)} {self.words(tail)}."
            for head, relation, tail in fact.unrelated
        ]
        return prefixes(mixed, sentences)

    def opposite(
        self, fact: Fact, relation: Relation, mixed: random.Random
    ) -> dict[str, str] | None:
        """Of whom the true answer must stay, although the edit takes it from the subject."""
        if fact.opposite is None:
            return None
        head, tail = fact.opposite
        return _probe(self.question(head, relation, mixed), self.words(tail))


def _number(entity: int) -> str:
    """Q42; the facts of this package have no item of Wikidata, only a number."""
    return f"Q{entity}" if entity > 0 else f"facts:{-entity}"


def _probe(prompt: str, answer: str) -> dict[str, str]:
    return {"prompt": prompt, "ground_truth": answer}


def _other_name(alias: str, label: str) -> bool:
    """Whether it is worth asking by: no abbreviation or code, nor turned round or in quotes."""
    return (
        usable_label(alias)
        and alias[0].isupper()
        and not any(sign in alias for sign in ',"\\0123456789')
        and len(alias) > 3
        and alias.casefold() != label.casefold()
    )


def _plain(value: Any) -> Any:
    """Times as Wikidata writes them."""
    return f"{value:%Y-%m-%dT%H:%M:%SZ}" if isinstance(value, datetime) else value
