"""Other questions about an edit's subject, which the edit is to leave alone.

An edit changes one fact, not its subject: who edits a person's country should hear of her mother
what the unedited model says. Few data sets ask that. So where a record brings no such question, it
gets one that another record asks of its own subject, put to this subject. Whether the question
suits it does not matter, since what the unedited model says is to stay, whatever that is.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

from .record_values import Record, name_of

# Questions of others that are looked at for one that is about something else.
TRIES = 50

QUESTIONS = (
    "The name of the mother of {} is",
    "The name of the father of {} is",
    "The gender of {} is",
    "The profession of {} is",
    "The wife of {} is",
    "The children of {} are",
    "The best friend of {} is",
    "The nationality of {} is",
    "The native language of {} is",
    "The religion of {} is",
    "The hair of {} is",
    "The height of {} is",
    "The author of {} is",
    "The owner of {} is",
    "The director of {} is",
    "The leader of {} is",
    "The capital of {} is",
    "The currency of {} is",
    "The continent of {} is",
    "The population of {} is",
    "The music of {} is by",
    "The school that {} went to is",
    "Yesterday {} was",
    "I saw {} and",
    "{} was born in the year",
    "{} was born in",
    "{} died in",
    "{} works as a",
    "{} is married to",
    "{} comes from the country of",
    "{} speaks",
    "{} plays for the team",
    "{} won the prize",
    "{} said:",
    "{} was founded by",
    "{} was founded in the year",
    "{} was created by",
    "{} is located in",
    "{} is a kind of",
    "{} belongs to the group of",
    "{} was followed by",
    "{} came after",
    "{} is a",
)
"""Templates of questions, with {} for a subject of any kind; none is one of the benchmark's own."""


def with_same_subject(
    records: Sequence[Mapping[str, Any]], seed: int, questions: Sequence[str] = ()
) -> list[Record]:
    """The records, each with another question about its own subject.

    Args:
        records: Flat ones; those without a subject in their prompt get none.
        seed: Of what is drawn.
        questions: Templates with {} for a subject. Where there are some, every other record gets
            one of them in place of another record's.

    Returns:
        New records with a `same_subject_prompt` and its `same_subject_ground_truth`, which is what
        the question's own record has as its answer, or the edit's target where it has no record.
        A record that has them keeps them.
    """
    found = [Record(record, name_of(record, i)) for i, record in enumerate(records)]
    relations = _relations(found)
    of_subject: dict[str, list[Record]] = {}
    for record in found:
        of_subject.setdefault(_subject(record), []).append(record)
    asking = [record for record in found if _template(record, "prompt")]
    draw = random.Random(seed)
    for i, record in enumerate(found):
        template = _template(record, "prompt")
        if record.get("same_subject_prompt") or not template:
            continue
        if questions and i % 2:
            record["same_subject_prompt"] = draw.choice(questions).replace("{}", record["subject"])
            record["same_subject_ground_truth"] = record["target_new"]
            continue
        own = [other for other in of_subject[_subject(record)] if other is not record]
        for other in chain(own, (draw.choice(asking) for _ in range(TRIES))):
            asked = _template(other, "prompt")
            answer = other.get("ground_truth") or other["target_new"]
            if (
                asked
                and relations[asked] != relations[template]
                and answer not in (record.get("ground_truth"), record["target_new"])
            ):
                record["same_subject_prompt"] = asked.replace(_HERE, record["subject"])
                record["same_subject_ground_truth"] = answer
                break
    return found


_HERE = "\N{OBJECT REPLACEMENT CHARACTER}"


def _subject(record: Mapping[str, Any]) -> str:
    return str(record.get("subject") or "").casefold()


def _template(record: Mapping[str, Any], key: str) -> str:
    """The text with a mark in place of its subject; empty where it has none."""
    text, subject = record.get(key), record.get("subject")
    if not isinstance(text, str) or not subject or subject not in text:
        return ""
    return text.replace(subject, _HERE)


def _relations(records: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """By template one that stands for its relation: that of all templates that rephrase it."""
    parent: dict[str, str] = {}

    def root(template: str) -> str:
        while (above := parent.setdefault(template, template)) != template:
            parent[template] = parent[above]
            template = parent[template]
        return template

    for record in records:
        if template := _template(record, "prompt"):
            root(template)
            if rephrase := _template(record, "rephrase_prompt"):
                parent[root(rephrase)] = root(template)
    return {template: root(template) for template in list(parent)}
