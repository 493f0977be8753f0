"""What an edit must leave alone of its own subject, and questions that ask it of any subject.

KnowEdit and RippleEdits ask other relations of the edited subject (Relation_Specificity). Most data
sets ask nothing of the kind, so the benchmark has questions of its own: about a person, place, work
or firm alike, of relations that CounterFact does not edit. They have no true answer; the unedited
model's is kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from hashlib import sha256

from ..edit_records import RELATION_SPECIFICITY, EditRecord, Probe
from ..layouts import FORGETFULNESS

OWN_QUESTIONS = "Own questions"
"""The kind of probes that are the benchmark's."""

SAME_SUBJECT = (RELATION_SPECIFICITY, OWN_QUESTIONS)
"""Kinds of locality probes that count as same-subject locality."""

UNCOUNTED = (FORGETFULNESS,)
"""Kinds of locality probes that count in no mean: other objects of the edited subject and relation,
with the target named in the question."""

RELATION_FIRST = (
    "The age of {} is",
    "A photograph of {} shows",
    "The person who knows most about {} is",
    "The most surprising thing about {} is",
    "A well written book about {} begins with",
    "The number of people who have heard of {} is",
    "The colour that goes best with {} is",
    "What most people forget about {} is",
)
SUBJECT_FIRST = (
    "{} is best known for",
    "{} was first mentioned in the year",
    "{} is sometimes confused with",
    "{} is often compared to",
    "{} was once criticised for",
    "{} can be recognised by",
    "{} is admired most by",
    "{} has changed most since",
)
OF_EACH = 2
"""Questions of either form that a record is asked."""
OWN_TOKENS = 3
"""Of what the unedited model says, the answer where a probe of locality has none."""


def with_own_questions(record: EditRecord) -> EditRecord:
    """The record with questions of the benchmark's about its subject, where it brings none.

    Which ones are drawn hangs on the record alone, so that every method is asked the same. None is
    a prompt of the record's.
    """
    if not record.subject or record.locality.get(RELATION_SPECIFICITY):
        return record
    asked = [*_drawn(record, RELATION_FIRST), *_drawn(record, SUBJECT_FIRST)]
    probes = tuple(Probe(prompt, ()) for prompt in asked)
    return replace(record, locality={**record.locality, OWN_QUESTIONS: probes})


def _drawn(record: EditRecord, templates: Sequence[str]) -> list[str]:
    """In the order of a hash, like the streams: it depends on no library's random numbers."""
    order = sorted(templates, key=lambda text: sha256(f"{record.id}\n{text}".encode()).digest())
    filled = (template.replace("{}", record.subject) for template in order)
    return [prompt for prompt in filled if prompt not in record.prompts()][:OF_EACH]
