"""What is wrong with a data set, and some of its records for a person to read.

>>> from easyedit_dafnet.dafset.check import problems, report, sample, to_text
>>> from easyedit_dafnet.dafset.describe import signals
>>> print(report(problems(dataset)))
>>> for record in sample(dataset, 10, seed=0):
...     print(to_text(record, signals(dataset)))
"""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from .dataset import (
    ALL,
    BUILD,
    PROPERTIES,
    DataSet,
    DataSetError,
    Record,
    faults,
    file_name,
    lines,
    prompts_of,
)
from .exclude import folded


class Excluded(Protocol):
    """What no record may have, `folded`."""

    @property
    def subjects(self) -> frozenset[str]: ...

    @property
    def prompts(self) -> frozenset[str]: ...


@dataclass(frozen=True)
class Problem:
    """kind: the same for all problems of a sort. example: what it is here."""

    kind: str
    place: str
    example: str

    def __str__(self) -> str:
        return f"{self.place}: {self.example}"


class Entry(NamedTuple):
    """A record and where it is."""

    name: str
    number: int
    record: Record

    @property
    def place(self) -> str:
        return f"{file_name(self.name)}, record {self.number}"


def problems(dataset: DataSet, excluded: Excluded | None = None) -> list[Problem]:
    """All that is wrong; of a record that lacks something, only that."""
    entries = [
        Entry(name, number, record)
        for name, records in dataset.records.items()
        for number, record in enumerate(records, 1)
    ]
    complete = [entry for entry in entries if not faults(entry.record)]
    return [
        *_incomplete(entries),
        *_broken_rules(complete),
        *_repeated(complete),
        *_edited_neighbours(complete),
        *_wrong_counts(dataset),
        *_differing_lines(dataset),
        *(_overlaps(complete, excluded) if excluded else ()),
    ]


def report(found: list[Problem], examples: int = 3) -> str:
    """How many problems there are of each kind, with the first of them."""
    if not found:
        return "No problems found."
    kinds: dict[str, list[Problem]] = {}
    for problem in found:
        kinds.setdefault(problem.kind, []).append(problem)
    text = [f"Problems found: {len(found):,}"]
    for kind, of_kind in kinds.items():
        text += ["", f"{kind}: {len(of_kind):,}"]
        text += [f"  {problem}" for problem in of_kind[:examples]]
        if len(of_kind) > examples:
            text.append(f"  and {len(of_kind) - examples:,} more")
    return "\n".join(text)


# -- One record ------------------------------------------------------------------------------------


def _without_subject(record: Record, prompts: list[str]) -> list[str]:
    subject = record["subject"]
    return [f"{prompt!r} does not have {subject!r}" for prompt in prompts if subject not in prompt]


def _subject_in_prompt(record: Record) -> list[str]:
    return _without_subject(record, [record["prompt"]])


def _subject_in_rephrases(record: Record) -> list[str]:
    return _without_subject(record, _rephrases(record))


def _rephrases(record: Record) -> list[str]:
    return list(dict.fromkeys([record["rephrase_prompt"], *record["rephrase_prompts"]]))


def _rephrases_differ(record: Record) -> list[str]:
    return [repr(prompt) for prompt in _rephrases(record) if prompt == record["prompt"]]


def _counterfactual_is_untrue(record: Record) -> list[str]:
    untrue = record["target_new"] != record["ground_truth"]
    return [repr(record["target_new"])] if record["counterfactual"] and not untrue else []


def _fact_is_true(record: Record) -> list[str]:
    target, truth = record["target_new"], record["ground_truth"]
    true = record["counterfactual"] or target == truth
    return [] if true else [f"{target!r} instead of {truth!r}"]


def _locality_differs(record: Record) -> list[str]:
    answer = record["locality_ground_truth"]
    return [repr(answer)] if answer in (record["target_new"], record["ground_truth"]) else []


RULES: Mapping[str, Callable[[Record], list[str]]] = {
    "The prompt does not name the subject": _subject_in_prompt,
    "A rephrase does not name the subject": _subject_in_rephrases,
    "A rephrase is the prompt itself": _rephrases_differ,
    "A counterfactual target is the truth": _counterfactual_is_untrue,
    "A factual target is not the truth": _fact_is_true,
    "The locality answer is one of the edit's": _locality_differs,
}
"""What each record must keep to: the kind of problem, and a function that gives examples of it."""


def _broken_rules(entries: list[Entry]) -> Iterator[Problem]:
    for kind, rule in RULES.items():
        for entry in entries:
            for example in rule(entry.record):
                yield Problem(kind, entry.place, example)
    for entry in entries:
        yield from _of_another_property(entry)


def _of_another_property(entry: Entry) -> Iterator[Problem]:
    named, prefixes = entry.record["property"], entry.record["prefix"]
    if named != entry.name:
        yield Problem("A record is in another property's file", entry.place, named)
    if entry.name == "robust" and not prefixes:
        yield Problem("A robust record has no prefix", entry.place, entry.record["prompt"])
    if entry.name != "robust" and prefixes:
        yield Problem("A record has prefixes and is not robust", entry.place, repr(prefixes[0]))


def _incomplete(entries: list[Entry]) -> Iterator[Problem]:
    for entry in entries:
        for fault in faults(entry.record):
            yield Problem("A record is incomplete", entry.place, fault)


# -- Records together ------------------------------------------------------------------------------


def _fact(record: Record) -> str:
    return f"{record['wikidata']['head']} {record['relation']}"


UNIQUE: Mapping[str, Callable[[Record], str]] = {
    "A fact is edited twice": _fact,
    "A prompt is there twice": lambda record: record["prompt"],
}


def _repeated(entries: list[Entry]) -> Iterator[Problem]:
    for kind, key in UNIQUE.items():
        seen: dict[str, str] = {}
        for entry in entries:
            value = key(entry.record)
            first = seen.setdefault(value, entry.place)
            if first != entry.place:
                yield Problem(kind, entry.place, f"{value!r} is also {first}")


def _edited_neighbours(entries: list[Entry]) -> Iterator[Problem]:
    edited = {entry.record["wikidata"]["head"]: entry.place for entry in entries}
    for entry in entries:
        head = entry.record["wikidata"]["neighbour_head"]
        if head in edited:
            kind = "The subject of a locality prompt is edited"
            yield Problem(kind, entry.place, f"{head} in {edited[head]}")


def _overlaps(entries: list[Entry], excluded: Excluded) -> Iterator[Problem]:
    for entry in entries:
        if folded(subject := entry.record["subject"]) in excluded.subjects:
            yield Problem("A subject is in an excluded file", entry.place, repr(subject))
        for prompt in sorted(prompts_of(entry.record)):
            if folded(prompt) in excluded.prompts:
                yield Problem("A prompt is in an excluded file", entry.place, repr(prompt))


# -- Files -----------------------------------------------------------------------------------------


def _wrong_counts(dataset: DataSet) -> Iterator[Problem]:
    for name in PROPERTIES:
        told, count = dataset.build["counts"].get(name), len(dataset.records[name])
        if told != count:
            example = f"{told} of {name}, but {file_name(name)} has {count}"
            yield Problem("A count does not match", BUILD, example)


def _differing_lines(dataset: DataSet) -> Iterator[Problem]:
    kind = f"{ALL} differs from the other files"
    try:
        joined = Counter(map(_canonical, lines(dataset)))
    except DataSetError as error:
        yield Problem(kind, ALL, str(error))
        return
    apart = Counter(map(_canonical, dataset))
    for record in joined - apart:
        yield Problem(kind, ALL, f"only there, or more often: {json.loads(record).get('prompt')!r}")
    for record in apart - joined:
        yield Problem(kind, ALL, f"not there: {json.loads(record).get('prompt')!r}")


def _canonical(record: Record) -> str:
    return json.dumps(record, sort_keys=True)


# -- Records to read -------------------------------------------------------------------------------


def sample(dataset: DataSet, n: int, seed: int = 0) -> list[Record]:
    """At most n records, drawn from all complete ones."""
    return draw([record for record in dataset if not faults(record)], n, seed)


def draw(records: list[Record], n: int, seed: int = 0) -> list[Record]:
    return random.Random(seed).sample(records, min(n, len(records)))


def to_text(record: Record, measured: Mapping[str, str]) -> str:
    """A complete record as a few lines. measured: `describe.signals` of its data set."""
    told = [f"{record['prompt']} → {record['target_new']}"]
    told += [f"  {name:<15}{text}" for name, text in details(record, measured)]
    return "\n".join(told)


def details(record: Record, measured: Mapping[str, str]) -> list[tuple[str, str]]:
    """What a complete record says beside its prompt and target, by name, for reading."""
    told = [("truth", record["ground_truth"])]
    told += [("rephrase", prompt) for prompt in _rephrases(record)]
    told.append(("locality", f"{record['locality_prompt']} → {record['locality_ground_truth']}"))
    for kind, probes in record["portability"].items():
        told += [(kind.replace("_", " "), _answered(probe)) for probe in probes]
    told += [("prefix", text) for text in record["prefix"]]
    if record["opposite"]:
        told.append(("opposite", _answered(record["opposite"])))
    head, tail = record["wikidata"]["head"], record["wikidata"]["tail"]
    told.append(("statement", f"{head} {record['relation']} ({record['relation_name']}) {tail}"))
    chosen_for = record["property"].replace("_", " ")
    told.append(("chosen for", f"{chosen_for}: {_stats_text(record['stats'], measured)}"))
    return told


def _answered(probe: Mapping[str, str]) -> str:
    return f"{probe['prompt']} → {probe['ground_truth']}"


def _stats_text(stats: Mapping[str, Any], measured: Mapping[str, str]) -> str:
    told = [f"{what} {stats[name]:,}" for name, what in measured.items()]
    if stats["modified"]:
        told.append(f"modified {stats['modified']}")
    if stats["log_likelihood"] is not None:
        told.append(f"log-likelihood {stats['log_likelihood']:.2f}")
    return ", ".join(told)
